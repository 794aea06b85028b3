#include <stdlib.h>
#include <string.h>
#include "train/run_state.h"

#define FIELDS 4 /* tokens, targets, positions, doc_start */

xp_status xp_step_batches_create(const xp_run *run, xp_step_batches *batches) {
    memset(batches, 0, sizeof *batches);
    int64_t n = run->n_microbatches;
    batches->items = calloc((size_t)n, sizeof *batches->items);
    if (!batches->items)
        return xp_error(XP_ENOMEM, "no memory for %lld microbatches", (long long)n);
    batches->n = n;
    batches->device = run->device;
    if (n == 1 && xp_device_host_accessible(run->device))
        return XP_OK;
    size_t elements = (size_t)(n * FIELDS * run->local_batch * run->seq_len);
    void *memory = NULL;
    XP_TRY(xp_host_alloc(run->device, elements * sizeof *batches->memory, "batches", &memory));
    batches->memory = memory;
    return XP_OK;
}

void xp_step_batches_destroy(xp_step_batches *batches) {
    free(batches->items);
    if (batches->memory)
        xp_host_free(batches->device, batches->memory);
    memset(batches, 0, sizeof *batches);
}

static const int32_t *keep(const int32_t *from, int32_t *to, int64_t n) {
    if (!from)
        return NULL;
    memcpy(to, from, (size_t)n * sizeof *to);
    return to;
}

/* The loader's memory is good until its next batch only. */
static void keep_batch(xp_batch *batch, int32_t *memory) {
    int64_t n = batch->n_rows * batch->seq_len;
    batch->tokens = keep(batch->tokens, memory, n);
    batch->targets = keep(batch->targets, memory + n, n);
    batch->positions = keep(batch->positions, memory + 2 * n, n);
    batch->doc_start = keep(batch->doc_start, memory + 3 * n, n);
}

xp_status xp_step_batches_read(xp_loader *loader, xp_step_batches *batches) {
    batches->n_valid = 0;
    for (int64_t m = 0; m < batches->n; m++) {
        xp_batch *batch = &batches->items[m];
        XP_TRY(xp_loader_next(loader, batch));
        batches->n_valid += batch->n_valid;
        if (batches->memory)
            keep_batch(batch, batches->memory + m * FIELDS * batch->n_rows * batch->seq_len);
    }
    return XP_OK;
}
