#include "parallel/shard.h"

#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"
#include "device/device_internal.h"
#include "parallel/shard_internal.h"

/* ---- create ------------------------------------------------------------------------------ */

static xp_status split_comms(xp_shard *shard) {
    xp_comm *const groups[2] = {shard->mesh.shard, shard->mesh.expert_shard};
    xp_comm *const replicas[2] = {shard->mesh.replicate, shard->mesh.expert_replicate};
    for (int kind = 0; kind < 2; kind++) {
        if (groups[kind]) {
            XP_TRY(xp_comm_split(groups[kind], 0, &shard->reduce_comm[kind]));
            shard->reduce_comm[kind]->max_ctas = XP_SHARD_BESIDE_CTAS;
            xp_comm_set_phase(shard->reduce_comm[kind], "gradient reduction");
        }
        if (replicas[kind]) {
            XP_TRY(xp_comm_split(replicas[kind], 0, &shard->replica_comm[kind]));
            shard->replica_comm[kind]->max_ctas = XP_SHARD_BESIDE_CTAS;
            xp_comm_set_phase(shard->replica_comm[kind], "gradient all-reduce over replicas");
        }
    }
    return XP_OK;
}

/* Bytes of the largest bucket, all ranks' parts together. */
static size_t largest_bucket(const xp_shard *shard, int kind) {
    size_t element = xp_dtype_bytes(shard->args.grad_dtype), largest = 0;
    if (xp_dtype_bytes(shard->args.param_dtype) > element)
        element = xp_dtype_bytes(shard->args.param_dtype);
    for (int b = 0; b < shard->plan.n_buckets; b++) {
        const xp_shard_bucket *bucket = &shard->plan.buckets[b];
        const size_t bytes = (size_t)bucket->n_each * (size_t)bucket->n_ranks * element;
        if (bucket->is_expert == (kind == 1) && bytes > largest)
            largest = bytes;
    }
    return largest;
}

/* What collectives on a GPU need is made here, and counted where a run is only predicted. */
static xp_status prepare(xp_shard *shard, xp_comm *comm, int n_ranks, size_t max_bytes,
                         void **counted) {
    if (xp_device_get_kind(shard->args.device) != XP_DEVICE_NULL)
        return comm ? xp_comm_prepare(comm, shard->args.device, max_bytes) : XP_OK;
    if (xp_device_like(shard->args.device) != XP_DEVICE_CUDA || n_ranks == 1 ||
        shard->mesh.shares_gpus)
        return XP_OK;
    return xp_device_alloc(shard->args.device, xp_comm_device_bytes(n_ranks, max_bytes),
                           "communication", counted);
}

static xp_status prepare_comms(xp_shard *shard) {
    const xp_mesh *mesh = &shard->mesh;
    const int n_ranks[2] = {mesh->n_shard, mesh->n_expert_shard};
    for (int kind = 0; kind < 2; kind++) {
        const size_t bytes = largest_bucket(shard, kind);
        XP_TRY(
            prepare(shard, shard->reduce_comm[kind], n_ranks[kind], bytes, &shard->counted[kind]));
        XP_TRY(prepare(shard, shard->replica_comm[kind], mesh->n_replicate,
                       bytes / (size_t)n_ranks[kind], &shard->counted[2 + kind]));
    }
    return prepare(shard, mesh->shard, mesh->n_shard, (size_t)shard->plan.n_groups * sizeof(double),
                   &shard->counted[4]);
}

/* What follows a group's chunk in the state, up to the next group's: neither initial values nor a checkpoint
 * fill it. */
static xp_status clear_padding(xp_shard *shard, void *state, size_t element) {
    const xp_shard_plan *plan = &shard->plan;
    for (int g = 0; g < plan->n_groups; g++) {
        const int64_t begin = plan->groups[g].state_offset + plan->groups[g].n,
                      end = g + 1 < plan->n_groups ? plan->groups[g + 1].state_offset
                                                   : plan->state_elements;
        if (begin < end)
            XP_TRY(xp_device_clear(shard->args.device, (char *)state + (size_t)begin * element,
                                   (size_t)(end - begin) * element));
    }
    return XP_OK;
}

static xp_status reserve_array(xp_shard *shard, size_t element, void **data) {
    XP_TRY(xp_device_alloc(shard->args.device, (size_t)shard->plan.state_elements * element,
                           "optimizer", data));
    return clear_padding(shard, *data, element);
}

static xp_status reserve_state(xp_shard *shard) {
    void *data = NULL;
    if (xp_shard_has_remainders(shard)) {
        XP_TRY(reserve_array(shard, sizeof *shard->remainder, &data));
        shard->remainder = data;
    }
    XP_TRY(reserve_array(shard, sizeof *shard->m, &data));
    shard->m = data;
    XP_TRY(reserve_array(shard, sizeof *shard->v, &data));
    shard->v = data;
    return XP_OK;
}

static xp_status reserve_staging(xp_shard *shard) {
    xp_device *device = shard->args.device;
    void *data = NULL;
    size_t element = xp_dtype_bytes(shard->args.grad_dtype);
    if (xp_dtype_bytes(shard->args.param_dtype) > element)
        element = xp_dtype_bytes(shard->args.param_dtype);
    if (shard->plan.stage_elements > 0) {
        size_t bytes = (size_t)shard->plan.stage_elements * element;
        XP_TRY(xp_device_alloc(device, bytes, "staging", &shard->stage));
    }
    const int n_groups = shard->plan.n_groups;
    shard->chunks = calloc((size_t)n_groups, sizeof *shard->chunks);
    if (!shard->chunks)
        return xp_error(XP_ENOMEM, "no memory for the optimizer's tables");
    int64_t largest = 0; /* a rank at the end may own less of a group than it looks at */
    for (int g = 0; g < n_groups; g++) {
        const xp_shard_group *cut = &shard->plan.groups[g];
        shard->chunks[g] = (xp_ops_part){cut->first, cut->n};
        largest = cut->chunk_elements > largest ? cut->chunk_elements : largest;
    }
    int n_params = xp_param_table_n_params(shard->args.table);
    shard->n_sums = n_params > shard->plan.n_groups ? n_params : shard->plan.n_groups;
    size_t sums_bytes = (size_t)shard->n_sums * sizeof(double);
    const int64_t all = xp_sum_squares_parts_scratch(shard->chunks, n_groups),
                  one = xp_sum_squares_scratch(largest);
    size_t scratch_bytes = (size_t)(all > one ? all : one) * sizeof(double);
    XP_TRY(xp_device_alloc(device, sums_bytes, "staging", &data));
    shard->sums = data;
    XP_TRY(xp_device_alloc(device, scratch_bytes, "staging", &data));
    shard->sums_scratch = data;
    XP_TRY(xp_device_alloc(device, sizeof(float), "staging", &data));
    shard->grad_scale = data;
    XP_TRY(xp_host_alloc(device, sums_bytes, "staging", &data));
    shard->host_sums = data;
    const size_t n_buckets = (size_t)shard->plan.n_buckets + 1;
    shard->n_waiting = calloc(n_buckets, sizeof *shard->n_waiting);
    shard->gathering = calloc(n_buckets, sizeof *shard->gathering);
    shard->gathered = calloc(n_buckets, sizeof *shard->gathered);
    if (!shard->n_waiting || !shard->gathering || !shard->gathered)
        return xp_error(XP_ENOMEM, "no memory for the optimizer's tables");
    return XP_OK;
}

static xp_status create_parts(xp_shard *shard) {
    const xp_mesh *mesh = &shard->mesh;
    int64_t element = (int64_t)xp_dtype_bytes(shard->args.grad_dtype);
    XP_TRY(xp_ops_get(shard->args.device, &shard->ops));
    XP_TRY(xp_shard_plan_create(shard->args.table, mesh->n_shard, mesh->shard_rank,
                                mesh->n_expert_shard, mesh->expert_shard_rank,
                                shard->args.bucket_bytes / element, &shard->plan));
    XP_TRY(reserve_state(shard));
    XP_TRY(reserve_staging(shard));
    xp_shard_expect_groups(shard);
    if (mesh->n_ranks == 1)
        return XP_OK;
    XP_TRY(xp_event_create(shard->args.device, &shard->ready));
    XP_TRY(xp_event_create(shard->args.device, &shard->done));
    XP_TRY(xp_stream_create(shard->args.device, XP_STREAM_WORKER, &shard->worker));
    XP_TRY(split_comms(shard));
    for (int b = 0; b < shard->plan.n_buckets; b++)
        if (shard->reduce_comm[shard->plan.buckets[b].is_expert])
            XP_TRY(xp_event_create(shard->args.device, &shard->gathered[b]));
    return prepare_comms(shard);
}

xp_status xp_shard_create(const xp_shard_args *args, xp_shard **shard) {
    xp_shard *s = calloc(1, sizeof *s);
    if (!s)
        return xp_error(XP_ENOMEM, "no memory for the sharded optimizer");
    s->args = *args;
    s->mesh = *args->mesh;
    xp_status status = create_parts(s);
    if (status != XP_OK) {
        xp_shard_destroy(s);
        return status;
    }
    *shard = s;
    return XP_OK;
}

void xp_shard_destroy(xp_shard *shard) {
    if (!shard)
        return;
    xp_stream_destroy(shard->worker);
    xp_event_destroy(shard->ready);
    xp_event_destroy(shard->done);
    for (int b = 0; shard->gathered && b < shard->plan.n_buckets; b++)
        xp_event_destroy(shard->gathered[b]);
    free(shard->gathered);
    free(shard->gathering);
    for (int kind = 1; kind >= 0; kind--) {
        xp_comm_destroy(shard->replica_comm[kind]);
        xp_comm_destroy(shard->reduce_comm[kind]);
    }
    xp_device *device = shard->args.device;
    for (int i = 0; i < 5; i++)
        xp_device_free(device, shard->counted[i]);
    xp_device_free(device, shard->grad_scale);
    xp_device_free(device, shard->sums_scratch);
    xp_device_free(device, shard->sums);
    xp_device_free(device, shard->stage);
    xp_device_free(device, shard->v);
    xp_device_free(device, shard->m);
    xp_device_free(device, shard->remainder);
    xp_host_free(device, shard->host_sums);
    free(shard->chunks);
    free(shard->n_waiting);
    xp_shard_plan_destroy(&shard->plan);
    free(shard);
}

/* ---- update ------------------------------------------------------------------------------ */

/* This rank's part of a piece, without padding. */
static int64_t own_elements(const xp_shard *shard, const xp_shard_piece *piece) {
    int64_t n = shard->plan.groups[piece->group].n - piece->first;
    return n < 0 ? 0 : (n < piece->n ? n : piece->n);
}

/* Elements [first, first + n) of this rank's chunk of a group. */
static xp_status update_range(xp_shard *shard, int group, int64_t first, int64_t n, float decay,
                              const xp_adam_step *step, xp_stream *stream) {
    const xp_shard_group *cut = &shard->plan.groups[group];
    int64_t state = cut->state_offset + first;
    xp_adamw_args args = {
        .n = n,
        .param = xp_shard_param_at(shard, cut->first + first),
        .param_dtype = shard->args.param_dtype,
        .remainder = shard->remainder ? shard->remainder + state : NULL,
        .grad = xp_shard_grad_at(shard, cut->first + first),
        .grad_dtype = shard->args.grad_dtype,
        .m = shard->m + state,
        .v = shard->v + state,
        .lr = step->lr,
        .beta1 = step->beta1,
        .beta2 = step->beta2,
        .eps = step->eps,
        .weight_decay = decay,
        .step = step->step,
        .grad_scale = shard->grad_scale,
    };
    return args.n > 0 ? shard->ops->adamw(stream, &args) : XP_OK;
}

/* In runs of parameters that decay alike; what pads a parameter goes with it. */
static xp_status update_by_kind(xp_shard *shard, const xp_shard_piece *piece,
                                const xp_adam_step *step, xp_stream *stream) {
    const xp_param_table *table = shard->args.table;
    const xp_param_group *group = xp_param_table_group(table, piece->group);
    int64_t chunk = shard->plan.groups[piece->group].first;
    int64_t at = piece->first, end = piece->first + own_elements(shard, piece);
    for (int p = group->first_param; p < group->first_param + group->n_params && at < end; p++) {
        bool last = p == group->first_param + group->n_params - 1;
        bool decays = xp_param_table_param(table, p)->n_dims > 1;
        int64_t next = last ? end : xp_param_table_param(table, p + 1)->offset - chunk;
        if (!last && (xp_param_table_param(table, p + 1)->n_dims > 1) == decays)
            continue;
        next = next < end ? next : end;
        if (next <= at)
            continue;
        XP_TRY(update_range(shard, piece->group, at, next - at, decays ? step->weight_decay : 0,
                            step, stream));
        at = next;
    }
    return XP_OK;
}

static xp_status update_piece(xp_shard *shard, const xp_shard_piece *piece,
                              const xp_adam_step *step, xp_stream *stream) {
    if (step->decay_matrices_only && step->weight_decay != 0)
        return update_by_kind(shard, piece, step, stream);
    return update_range(shard, piece->group, piece->first, own_elements(shard, piece),
                        step->weight_decay, step, stream);
}

/* All chunks of a GPU that has no peers, in one launch: then groups lie in the state as they lie in the flat buffers, and
 * what pads them is zero in all of them. False: they are updated one by one. */
static bool are_in_one_run(const xp_shard *shard, const xp_adam_step *step) {
    const xp_shard_group *groups = shard->plan.groups;
    bool same = !shard->worker && xp_device_get_kind(shard->args.device) == XP_DEVICE_CUDA &&
                !(step->decay_matrices_only && step->weight_decay != 0);
    for (int g = 0; g < shard->plan.n_groups; g++)
        same = same && groups[g].n_ranks == 1 && groups[g].first == groups[g].state_offset;
    return same;
}

static xp_status update_in_one_run(xp_shard *shard, const xp_adam_step *step, xp_stream *stream) {
    const xp_shard_group *last = &shard->plan.groups[shard->plan.n_groups - 1];
    return update_range(shard, 0, 0, last->first + last->n, step->weight_decay, step, stream);
}

/* What to do to a bucket's own pieces before its parameters are gathered. */
typedef xp_status (*piece_fn)(xp_shard *shard, const xp_shard_piece *piece,
                              const xp_adam_step *step, xp_stream *stream);

/* In the order in which the next forward pass needs them: the embedding is gathered first, beside the
 * updates of all others, and the head last, beside the forward pass. */
static xp_status for_each_bucket(xp_shard *shard, piece_fn fn, const xp_adam_step *step,
                                 xp_stream *stream) {
    for (int b = shard->plan.n_buckets - 1; b >= 0; b--) {
        const xp_shard_bucket *bucket = &shard->plan.buckets[b];
        for (int i = 0; i < bucket->n_pieces; i++)
            XP_TRY(fn(shard, &shard->plan.pieces[bucket->first_piece + i], step, stream));
        if (!shard->reduce_comm[bucket->is_expert])
            continue;
        XP_TRY(xp_event_record(shard->ready, stream));
        XP_TRY(xp_event_wait(shard->ready, shard->worker));
        XP_TRY(xp_shard_gather_bucket(shard, b));
    }
    return XP_OK;
}

xp_status xp_shard_update(xp_shard *shard, const xp_adam_step *step, xp_stream *stream) {
    const xp_clip_scale_args clip = {.n = shard->plan.n_groups,
                                     .squares = shard->sums,
                                     .max_norm = step->max_norm,
                                     .stop = {step->stop[0], step->stop[1]},
                                     .scale = shard->grad_scale};
    XP_TRY(shard->ops->clip_scale(stream, &clip));
    if (are_in_one_run(shard, step))
        return update_in_one_run(shard, step, stream);
    XP_TRY(for_each_bucket(shard, update_piece, step, stream));
    /* A CPU's cores have gathered before they could compute anything beside it. */
    return xp_device_host_accessible(shard->args.device) ? xp_shard_finish_gather(shard, stream)
                                                         : XP_OK;
}

static xp_status leave_piece(xp_shard *shard, const xp_shard_piece *piece, const xp_adam_step *step,
                             xp_stream *stream) {
    (void)shard, (void)piece, (void)step, (void)stream;
    return XP_OK;
}

xp_status xp_shard_publish_params(xp_shard *shard, xp_stream *stream) {
    XP_TRY(for_each_bucket(shard, leave_piece, NULL, stream));
    return xp_shard_finish_gather(shard, stream);
}

xp_status xp_shard_adopt_params(xp_shard *shard, xp_stream *stream) {
    const size_t n = (size_t)shard->plan.state_elements;
    XP_TRY(xp_zero(stream, shard->m, n * sizeof *shard->m));
    XP_TRY(xp_zero(stream, shard->v, n * sizeof *shard->v));
    return shard->remainder ? xp_zero(stream, shard->remainder, n * sizeof *shard->remainder)
                            : XP_OK;
}

/* Drawn where first moments lie, which are zeros afterwards as before. */
static xp_status draw_and_split(xp_shard *shard, int group, uint64_t seed, xp_stream *stream) {
    const xp_shard_group *cut = &shard->plan.groups[group];
    const xp_remainder_args args = {.n = cut->n,
                                    .master = shard->m + cut->state_offset,
                                    .param = (uint16_t *)shard->args.params + cut->first,
                                    .remainder = shard->remainder + cut->state_offset,
                                    .v = shard->v + cut->state_offset};
    XP_TRY(xp_param_table_draw(shard->args.table, seed, cut->first, cut->n, stream, args.master));
    XP_TRY(shard->ops->remainder_split(stream, &args));
    return cut->n > 0 ? xp_zero(stream, args.master, (size_t)cut->n * sizeof(float)) : XP_OK;
}

xp_status xp_shard_draw_params(xp_shard *shard, uint64_t seed, xp_stream *stream) {
    for (int g = 0; g < shard->plan.n_groups; g++) {
        const xp_shard_group *cut = &shard->plan.groups[g];
        if (shard->remainder)
            XP_TRY(draw_and_split(shard, g, seed, stream));
        else
            XP_TRY(xp_param_table_draw(shard->args.table, seed, cut->first, cut->n, stream,
                                       (float *)shard->args.params + cut->first));
    }
    return xp_shard_publish_params(shard, stream);
}

xp_shard_chunk xp_shard_get_chunk(const xp_shard *shard, int group) {
    const xp_shard_group *cut = &shard->plan.groups[group];
    return (xp_shard_chunk){
        .first = cut->first,
        .n = cut->n,
        .param = xp_shard_param_at(shard, cut->first),
        .remainder = shard->remainder ? shard->remainder + cut->state_offset : NULL,
        .m = shard->m + cut->state_offset,
        .v = shard->v + cut->state_offset,
        .grad = xp_shard_grad_at(shard, cut->first),
    };
}

bool xp_shard_is_writer(const xp_shard *shard) {
    return shard->mesh.replica == 0;
}
