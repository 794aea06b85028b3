#include "data/loader.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"

typedef struct slot {
    int32_t *data; /* tokens, targets, positions, doc_start: [4][B * S] */
    int64_t n_valid;
    xp_status status;
    char error[1024];
} slot;

struct xp_loader {
    const xp_dataset *dataset;
    xp_loader_args args;
    int64_t seq_len;
    slot *slots; /* [n_slots]: the one the caller holds and those read ahead */
    int n_slots;
    int64_t next_fill, next_take; /* microbatches since step 0 */
    bool has_thread, stop;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

/* Read microbatch `index` (counted over all steps) into a slot. */
static void fill(const xp_loader *l, int64_t index, slot *s) {
    const xp_loader_args *a = &l->args;
    int64_t n = a->local_batch_size * l->seq_len;
    s->status = XP_OK;
    s->n_valid = 0;
    for (int64_t j = 0; j < a->local_batch_size && s->status == XP_OK; j++) {
        int64_t row = (index * a->n_data_ranks + a->data_rank) * a->local_batch_size + j;
        int32_t *at = s->data + j * l->seq_len;
        s->status = xp_dataset_row(l->dataset, row, at, at + n, at + 2 * n, at + 3 * n);
        for (int64_t i = 0; i < l->seq_len && s->status == XP_OK; i++)
            s->n_valid += at[n + i] >= 0;
    }
    if (s->status != XP_OK)
        strncpy(s->error, xp_last_error(), sizeof s->error - 1);
}

static void *read_ahead(void *arg) {
    xp_loader *l = arg;
    pthread_mutex_lock(&l->lock);
    while (!l->stop) {
        /* The slot before next_take is the caller's. */
        if (l->next_fill - l->next_take >= l->n_slots - 1) {
            pthread_cond_wait(&l->changed, &l->lock);
            continue;
        }
        int64_t index = l->next_fill;
        slot *s = &l->slots[index % l->n_slots];
        pthread_mutex_unlock(&l->lock);
        fill(l, index, s);
        pthread_mutex_lock(&l->lock);
        if (l->next_fill == index) /* no seek came between */
            l->next_fill++;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static void stop_thread(xp_loader *l) {
    if (!l->has_thread)
        return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    l->has_thread = false;
    l->stop = false;
}

static xp_status start_thread(xp_loader *l) {
    if (l->args.n_prefetch == 0)
        return XP_OK;
    if (pthread_create(&l->thread, NULL, read_ahead, l) != 0)
        return xp_error(XP_ENOMEM, "data: cannot start the loader thread");
    l->has_thread = true;
    return XP_OK;
}

xp_status xp_loader_create(const xp_dataset *dataset, const xp_loader_args *args,
                           xp_loader **loader) {
    if (args->local_batch_size < 1 || args->n_microbatches < 1 || args->n_prefetch < 0 ||
        args->data_rank < 0 || args->data_rank >= args->n_data_ranks)
        return xp_error(XP_EINVAL, "loader: bad sizes");
    xp_loader *l = calloc(1, sizeof *l);
    if (l == NULL)
        return xp_error(XP_ENOMEM, "data: out of memory");
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    l->dataset = dataset;
    l->args = *args;
    l->seq_len = xp_dataset_seq_len(dataset);
    l->n_slots = args->n_prefetch + 1;
    l->slots = calloc((size_t)l->n_slots, sizeof *l->slots);
    xp_status status = l->slots == NULL ? xp_error(XP_ENOMEM, "data: out of memory") : XP_OK;
    for (int i = 0; i < l->n_slots && status == XP_OK; i++) {
        l->slots[i].data =
            malloc((size_t)(4 * args->local_batch_size * l->seq_len) * sizeof(int32_t));
        if (l->slots[i].data == NULL)
            status = xp_error(XP_ENOMEM, "data: out of memory");
    }
    if (status == XP_OK)
        status = start_thread(l);
    if (status != XP_OK) {
        xp_loader_destroy(l);
        return status;
    }
    *loader = l;
    return XP_OK;
}

void xp_loader_destroy(xp_loader *l) {
    if (l == NULL)
        return;
    stop_thread(l);
    for (int i = 0; l->slots != NULL && i < l->n_slots; i++)
        free(l->slots[i].data);
    free(l->slots);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->changed);
    free(l);
}

xp_status xp_loader_seek(xp_loader *l, int64_t step) {
    stop_thread(l);
    l->next_fill = l->next_take = step * l->args.n_microbatches;
    return start_thread(l);
}

xp_status xp_loader_next(xp_loader *l, xp_batch *batch) {
    int64_t n_global = l->args.local_batch_size * l->args.n_data_ranks;
    xp_dataset_log_restarts(l->dataset, l->next_take * n_global, n_global, l->args.log);
    slot *s = &l->slots[l->next_take % l->n_slots];
    if (l->args.n_prefetch == 0) {
        fill(l, l->next_take++, s);
    } else {
        pthread_mutex_lock(&l->lock);
        while (l->next_fill <= l->next_take)
            pthread_cond_wait(&l->changed, &l->lock);
        l->next_take++;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->lock);
    }
    if (s->status != XP_OK)
        return xp_error(s->status, "%s", s->error);
    int64_t n = l->args.local_batch_size * l->seq_len;
    *batch = (xp_batch){.n_rows = l->args.local_batch_size,
                        .seq_len = l->seq_len,
                        .tokens = s->data,
                        .targets = s->data + n,
                        .positions = s->data + 2 * n,
                        .doc_start = s->data + 3 * n,
                        .n_valid = s->n_valid};
    return XP_OK;
}
