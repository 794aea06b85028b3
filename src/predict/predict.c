#include "predict/predict.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "parallel/run.h"

#define BATCH_FIELDS 4           /* tokens, targets, positions, doc_start */
#define N_PREFETCH   3           /* batches of the loader: two ahead and the current one */
#define PIECE_BYTES  400         /* a checkpoint piece: two records and its name */
#define THREAD_BYTES (160 << 10) /* stack pages a rank's thread touches */

static void read_tags(const xp_device *device, xp_memory_prediction *out) {
    const char *tag = NULL;
    for (int i = 0; i < XP_PREDICT_MAX_TAGS && (tag = xp_device_tag(device, i)) != NULL; i++) {
        xp_predicted_tag *entry = &out->tags[out->n_tags++];
        snprintf(entry->tag, sizeof entry->tag, "%s", tag);
        entry->n_bytes = xp_device_bytes(device, tag);
    }
    out->device_bytes = xp_device_bytes(device, NULL);
}

/* Masters and moments of this rank's chunks, and the tables that list them. */
static int64_t checkpoint_bytes(const xp_config *config, const xp_run *run) {
    const xp_param_table *table = xp_model_params(run->model);
    int64_t elements = 0;
    int64_t slices = 0;
    for (int g = 0; g < xp_param_table_n_groups(table); g++)
        elements += xp_shard_get_chunk(run->shard, g).n;
    for (int p = 0; p < xp_param_table_n_params(table); p++)
        slices += xp_param_table_param(table, p)->n_slices;
    int64_t tables = slices * 3 * PIECE_BYTES;
    const char *mode = config->checkpoint.async_mode;
    bool staged = config->checkpoint.enable && !(mode && strcmp(mode, "disabled") == 0) &&
                  xp_shard_is_writer(run->shard);
    return tables + (staged ? 3 * elements * (int64_t)sizeof(float) : 0);
}

static int64_t batch_bytes(const xp_run *run) {
    int64_t each = BATCH_FIELDS * run->local_batch * run->seq_len * (int64_t)sizeof(int32_t);
    bool on_cpu = xp_device_like(run->device) == XP_DEVICE_CPU;
    int64_t kept = run->n_microbatches > 1 || !on_cpu ? run->n_microbatches : 0;
    int64_t validation =
        BATCH_FIELDS * run->validation_batch * run->validation_seq_len * (int64_t)sizeof(int32_t);
    return each * (N_PREFETCH + kept) + validation;
}

xp_status xp_predict_memory(const xp_config *config, const xp_mesh *layout,
                            xp_memory_prediction *prediction) {
    return xp_predict_memory_on(xp_run_device_kind(config), config, layout, prediction);
}

xp_status xp_predict_memory_on(xp_device_kind kind, const xp_config *config, const xp_mesh *layout,
                               xp_memory_prediction *prediction) {
    return xp_predict_memory_within(kind, 0, config, layout, prediction);
}

xp_status xp_predict_memory_within(xp_device_kind kind, int64_t total_bytes,
                                   const xp_config *config, const xp_mesh *layout,
                                   xp_memory_prediction *prediction) {
    xp_device_args args = {
        .kind = XP_DEVICE_NULL, .n_threads = 1, .like = kind, .total_bytes = total_bytes};
    xp_device *device = NULL;
    xp_run run;
    memset(prediction, 0, sizeof *prediction);
    prediction->kind = kind;
    XP_TRY(xp_device_create(&args, &device));
    xp_status status = xp_run_reserve(config, device, NULL, layout, &run);
    if (status == XP_OK) {
        read_tags(device, prediction);
        prediction->host_bytes = checkpoint_bytes(config, &run) + batch_bytes(&run) + THREAD_BYTES;
        xp_run_release(&run);
    }
    xp_device_destroy(device);
    return status;
}

static int larger_first(const void *a, const void *b) {
    const xp_predicted_tag *left = a, *right = b;
    if (left->n_bytes != right->n_bytes)
        return left->n_bytes < right->n_bytes ? 1 : -1;
    return strcmp(left->tag, right->tag);
}

void xp_predict_sort_tags(xp_memory_prediction *prediction) {
    qsort(prediction->tags, (size_t)prediction->n_tags, sizeof *prediction->tags, larger_first);
}

int64_t xp_predict_process_bytes(const xp_memory_prediction *prediction, int n_local_ranks,
                                 int64_t base_bytes) {
    bool on_host = prediction->kind == XP_DEVICE_CPU;
    int64_t each = prediction->host_bytes + (on_host ? prediction->device_bytes : 0);
    return base_bytes + n_local_ranks * each;
}
