/* Moving gradients and parameters between ranks, bucket by bucket, on the worker stream. */
#include "parallel/shard_internal.h"

char *xp_shard_param_at(const xp_shard *shard, int64_t element) {
    return (char *)shard->args.params + (size_t)element * xp_dtype_bytes(shard->args.param_dtype);
}

char *xp_shard_grad_at(const xp_shard *shard, int64_t element) {
    return (char *)shard->args.grads + (size_t)element * xp_dtype_bytes(shard->args.grad_dtype);
}

bool xp_shard_has_remainders(const xp_shard *shard) {
    return shard->args.param_dtype != XP_F32;
}

void xp_shard_expect_groups(xp_shard *shard) {
    for (int b = 0; b < shard->plan.n_buckets; b++)
        shard->n_waiting[b] = shard->plan.buckets[b].n_groups;
    shard->n_fired = 0;
}

/* Elements of rank r's piece that lie inside the group (the rest is padding). */
static int64_t piece_in_group(const xp_shard *shard, const xp_shard_piece *piece, int rank,
                              int64_t *flat) {
    const xp_param_group *group = xp_param_table_group(shard->args.table, piece->group);
    int64_t first = shard->plan.groups[piece->group].chunk_elements * rank + piece->first;
    int64_t n = group->n_elements - first;
    *flat = group->offset + first;
    return n < 0 ? 0 : (n < piece->n ? n : piece->n);
}

typedef enum direction { INTO_STAGE, OUT_OF_STAGE } direction;

/* One rank's section between a flat buffer and the staging memory; padding is sent as zeros. */
static xp_status move_section(const xp_shard *shard, const xp_shard_bucket *bucket, int rank,
                              void *flat, size_t element, direction way) {
    char *section = (char *)shard->stage + (size_t)(rank * bucket->n_each) * element;
    for (int i = 0; i < bucket->n_pieces; i++) {
        const xp_shard_piece *piece = &shard->plan.pieces[bucket->first_piece + i];
        int64_t first = 0;
        int64_t n = piece_in_group(shard, piece, rank, &first);
        char *staged = section + (size_t)piece->stage_offset * element;
        char *flat_at = (char *)flat + (size_t)first * element;
        if (n > 0 && way == INTO_STAGE)
            XP_TRY(xp_copy(shard->worker, staged, flat_at, (size_t)n * element));
        else if (n > 0)
            XP_TRY(xp_copy(shard->worker, flat_at, staged, (size_t)n * element));
        if (n < piece->n && way == INTO_STAGE)
            XP_TRY(xp_zero(shard->worker, staged + (size_t)n * element,
                           (size_t)(piece->n - n) * element));
    }
    return XP_OK;
}

static int bucket_rank(const xp_shard *shard, const xp_shard_bucket *bucket) {
    return bucket->is_expert ? shard->mesh.expert_shard_rank : shard->mesh.shard_rank;
}

static xp_status reduce_bucket(xp_shard *shard, const xp_shard_bucket *bucket) {
    xp_comm *comm = shard->reduce_comm[bucket->is_expert];
    xp_comm *replicas = shard->replica_comm[bucket->is_expert];
    xp_dtype dtype = shard->args.grad_dtype;
    size_t element = xp_dtype_bytes(dtype);
    int rank = bucket_rank(shard, bucket);
    const xp_shard_piece *piece = &shard->plan.pieces[bucket->first_piece];
    char *all =
        bucket->direct
            ? xp_shard_grad_at(shard, xp_param_table_group(shard->args.table, piece->group)->offset)
            : shard->stage;
    char *own = all + (size_t)(rank * bucket->n_each) * element;
    if (!bucket->direct)
        for (int r = 0; r < bucket->n_ranks; r++)
            XP_TRY(move_section(shard, bucket, r, shard->args.grads, element, INTO_STAGE));
    if (comm)
        XP_TRY(xp_comm_reduce_scatter(comm, all, own, bucket->n_each, dtype, shard->worker));
    if (replicas)
        XP_TRY(
            xp_comm_all_reduce(replicas, own, own, bucket->n_each, dtype, XP_SUM, shard->worker));
    if (!bucket->direct)
        XP_TRY(move_section(shard, bucket, rank, shard->args.grads, element, OUT_OF_STAGE));
    return XP_OK;
}

static xp_status gather_bucket(xp_shard *shard, const xp_shard_bucket *bucket) {
    xp_comm *comm = shard->reduce_comm[bucket->is_expert];
    xp_dtype dtype = shard->args.param_dtype;
    size_t element = xp_dtype_bytes(dtype);
    int rank = bucket_rank(shard, bucket);
    const xp_shard_piece *piece = &shard->plan.pieces[bucket->first_piece];
    char *all = bucket->direct
                    ? xp_shard_param_at(
                          shard, xp_param_table_group(shard->args.table, piece->group)->offset)
                    : shard->stage;
    char *own = all + (size_t)(rank * bucket->n_each) * element;
    if (!bucket->direct)
        XP_TRY(move_section(shard, bucket, rank, shard->args.params, element, INTO_STAGE));
    XP_TRY(xp_comm_all_gather(comm, own, all, bucket->n_each, dtype, shard->worker));
    if (!bucket->direct)
        for (int r = 0; r < bucket->n_ranks; r++)
            if (r != rank)
                XP_TRY(move_section(shard, bucket, r, shard->args.params, element, OUT_OF_STAGE));
    return XP_OK;
}

/* The stream goes on when the worker is done with what is queued on it. */
static xp_status join_worker(xp_shard *shard, xp_stream *stream) {
    /* A CPU worker that failed skips what is queued, events too: its error must be read first. */
    if (xp_device_get_kind(shard->args.device) == XP_DEVICE_CPU)
        return xp_stream_sync(shard->worker);
    XP_TRY(xp_event_record(shard->done, shard->worker));
    return xp_event_wait(shard->done, stream);
}

static bool has_group(const xp_shard *shard, const xp_shard_bucket *bucket, int group) {
    for (int i = 0; i < bucket->n_pieces; i++)
        if (shard->plan.pieces[bucket->first_piece + i].group == group)
            return true;
    return false;
}

xp_status xp_shard_gather_bucket(xp_shard *shard, int index) {
    const xp_shard_bucket *bucket = &shard->plan.buckets[index];
    if (!shard->gathered[index])
        return XP_OK;
    shard->n_gathering += !shard->gathering[index];
    shard->gathering[index] = true;
    XP_TRY(gather_bucket(shard, bucket));
    return xp_event_record(shard->gathered[index], shard->worker);
}

xp_status xp_shard_finish_gather(xp_shard *shard, xp_stream *stream) {
    if (shard->n_gathering == 0)
        return XP_OK;
    for (int b = 0; b < shard->plan.n_buckets; b++)
        shard->gathering[b] = false;
    shard->n_gathering = 0;
    return join_worker(shard, stream);
}

xp_status xp_shard_group_needed(xp_shard *shard, int group, xp_stream *stream) {
    if (shard->n_gathering == 0)
        return XP_OK;
    for (int b = 0; b < shard->plan.n_buckets; b++) {
        if (!shard->gathering[b] || !has_group(shard, &shard->plan.buckets[b], group))
            continue;
        XP_TRY(xp_event_wait(shard->gathered[b], stream));
        shard->gathering[b] = false;
        shard->n_gathering--;
    }
    return XP_OK;
}

xp_status xp_shard_group_ready(xp_shard *shard, int group, xp_stream *stream) {
    for (int b = 0; b < shard->plan.n_buckets; b++) {
        const xp_shard_bucket *bucket = &shard->plan.buckets[b];
        if (!has_group(shard, bucket, group) || --shard->n_waiting[b] > 0)
            continue;
        shard->n_fired++;
        int kind = bucket->is_expert;
        if (!shard->reduce_comm[kind] && !shard->replica_comm[kind])
            continue;
        XP_TRY(xp_event_record(shard->ready, stream));
        XP_TRY(xp_event_wait(shard->ready, shard->worker));
        XP_TRY(reduce_bucket(shard, bucket));
    }
    return XP_OK;
}

bool xp_shard_has_peers(const xp_shard *shard) {
    return shard->worker != NULL;
}

xp_status xp_shard_finish_reduce(xp_shard *shard, xp_stream *stream) {
    int n_fired = shard->n_fired;
    xp_shard_expect_groups(shard);
    if (shard->worker)
        XP_TRY(join_worker(shard, stream));
    if (n_fired != shard->plan.n_buckets)
        return xp_error(XP_EINTERNAL, "backward ended with %d of %d gradient buckets ready",
                        n_fired, shard->plan.n_buckets);
    return XP_OK;
}
