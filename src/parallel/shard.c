#include "parallel/shard.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "ops/ops.h"
#include "parallel/shard_plan.h"

struct xp_shard {
    xp_shard_args args;
    xp_mesh mesh;
    const xp_ops *ops;
    xp_shard_plan plan;
    /* Communicators of the worker stream: its collectives run beside those of the compute stream
     * (expert dispatch), so the two may not share one. [0] dense, [1] experts. */
    xp_comm *reduce_comm[2], *replica_comm[2];
    xp_stream *worker;     /* NULL when one rank owns everything */
    xp_event *ready;       /* compute -> worker */
    xp_event *done;        /* worker -> compute */
    int *n_waiting;        /* [n_buckets] groups that are not ready yet */
    int n_fired;           /* buckets of this step */
    void *stage;           /* [stage_elements] */
    float *master, *m, *v; /* [state_elements]; master NULL when parameters are fp32 */
    double *sums;          /* [n_sums] device: squares of each group, or of each parameter */
    double *sums_scratch;  /* device */
    float *grad_scale;     /* [1] device */
    double *host_sums;     /* [n_sums] */
    float host_scale;
    int n_sums;
};

static char *param_at(const xp_shard *shard, int64_t element) {
    return (char *)shard->args.params + (size_t)element * xp_dtype_bytes(shard->args.param_dtype);
}

static char *grad_at(const xp_shard *shard, int64_t element) {
    return (char *)shard->args.grads + (size_t)element * xp_dtype_bytes(shard->args.grad_dtype);
}

static bool owns_masters(const xp_shard *shard) {
    return shard->args.param_dtype != XP_F32;
}

/* ---- create ------------------------------------------------------------------------------ */

static xp_status split_comms(xp_shard *shard) {
    xp_comm *const groups[2] = {shard->mesh.shard, shard->mesh.expert_shard};
    xp_comm *const replicas[2] = {shard->mesh.replicate, shard->mesh.expert_replicate};
    for (int kind = 0; kind < 2; kind++) {
        if (groups[kind]) {
            XP_TRY(xp_comm_split(groups[kind], 0, &shard->reduce_comm[kind]));
            xp_comm_set_phase(shard->reduce_comm[kind], "gradient reduction");
        }
        if (replicas[kind]) {
            XP_TRY(xp_comm_split(replicas[kind], 0, &shard->replica_comm[kind]));
            xp_comm_set_phase(shard->replica_comm[kind], "gradient all-reduce over replicas");
        }
    }
    return XP_OK;
}

static xp_status reserve_state(xp_shard *shard) {
    xp_device *device = shard->args.device;
    size_t bytes = (size_t)shard->plan.state_elements * sizeof(float);
    void *data = NULL;
    if (owns_masters(shard)) {
        XP_TRY(xp_device_alloc(device, bytes, "optimizer", &data));
        shard->master = data;
    }
    XP_TRY(xp_device_alloc(device, bytes, "optimizer", &data));
    shard->m = data;
    XP_TRY(xp_device_alloc(device, bytes, "optimizer", &data));
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
    int64_t largest = 0;
    for (int g = 0; g < shard->plan.n_groups; g++)
        if (shard->plan.groups[g].chunk_elements > largest)
            largest = shard->plan.groups[g].chunk_elements;
    int n_params = xp_param_table_n_params(shard->args.table);
    shard->n_sums = n_params > shard->plan.n_groups ? n_params : shard->plan.n_groups;
    size_t sums_bytes = (size_t)shard->n_sums * sizeof(double);
    size_t scratch_bytes = (size_t)xp_sum_squares_scratch(largest) * sizeof(double);
    XP_TRY(xp_device_alloc(device, sums_bytes, "staging", &data));
    shard->sums = data;
    XP_TRY(xp_device_alloc(device, scratch_bytes, "staging", &data));
    shard->sums_scratch = data;
    XP_TRY(xp_device_alloc(device, sizeof(float), "staging", &data));
    shard->grad_scale = data;
    shard->host_sums = calloc((size_t)shard->n_sums, sizeof(double));
    shard->n_waiting = calloc((size_t)shard->plan.n_buckets + 1, sizeof(int));
    if (!shard->host_sums || !shard->n_waiting)
        return xp_error(XP_ENOMEM, "no memory for the optimizer's tables");
    return XP_OK;
}

static void expect_groups(xp_shard *shard) {
    for (int b = 0; b < shard->plan.n_buckets; b++)
        shard->n_waiting[b] = shard->plan.buckets[b].n_groups;
    shard->n_fired = 0;
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
    expect_groups(shard);
    if (mesh->n_ranks == 1)
        return XP_OK;
    XP_TRY(xp_event_create(shard->args.device, &shard->ready));
    XP_TRY(xp_event_create(shard->args.device, &shard->done));
    XP_TRY(xp_stream_create(shard->args.device, XP_STREAM_WORKER, &shard->worker));
    return split_comms(shard);
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
    for (int kind = 1; kind >= 0; kind--) {
        xp_comm_destroy(shard->replica_comm[kind]);
        xp_comm_destroy(shard->reduce_comm[kind]);
    }
    xp_device *device = shard->args.device;
    xp_device_free(device, shard->grad_scale);
    xp_device_free(device, shard->sums_scratch);
    xp_device_free(device, shard->sums);
    xp_device_free(device, shard->stage);
    xp_device_free(device, shard->v);
    xp_device_free(device, shard->m);
    xp_device_free(device, shard->master);
    free(shard->host_sums);
    free(shard->n_waiting);
    xp_shard_plan_destroy(&shard->plan);
    free(shard);
}

/* ---- moving buckets ---------------------------------------------------------------------- */

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
        char *home = (char *)flat + (size_t)first * element;
        if (n > 0 && way == INTO_STAGE)
            XP_TRY(xp_copy(shard->worker, staged, home, (size_t)n * element));
        else if (n > 0)
            XP_TRY(xp_copy(shard->worker, home, staged, (size_t)n * element));
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
    char *all = bucket->direct
                    ? grad_at(shard, xp_param_table_group(shard->args.table, piece->group)->offset)
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
    if (!comm)
        return XP_OK;
    xp_dtype dtype = shard->args.param_dtype;
    size_t element = xp_dtype_bytes(dtype);
    int rank = bucket_rank(shard, bucket);
    const xp_shard_piece *piece = &shard->plan.pieces[bucket->first_piece];
    char *all = bucket->direct
                    ? param_at(shard, xp_param_table_group(shard->args.table, piece->group)->offset)
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

xp_status xp_shard_finish_reduce(xp_shard *shard, xp_stream *stream) {
    int n_fired = shard->n_fired;
    expect_groups(shard);
    if (shard->worker)
        XP_TRY(join_worker(shard, stream));
    if (n_fired != shard->plan.n_buckets)
        return xp_error(XP_EINTERNAL, "backward ended with %d of %d gradient buckets ready",
                        n_fired, shard->plan.n_buckets);
    return XP_OK;
}

/* ---- norm and checks --------------------------------------------------------------------- */

static xp_status sum_squares(xp_shard *shard, const void *x, int64_t n, xp_dtype dtype, int slot,
                             xp_stream *stream) {
    xp_sum_squares_args args = {
        .n = n, .x = x, .dtype = dtype, .out = shard->sums + slot, .scratch = shard->sums_scratch};
    return shard->ops->optim.sum_squares(stream, &args);
}

static xp_status read_sums(xp_shard *shard, int n, xp_stream *stream) {
    XP_TRY(xp_copy(stream, shard->host_sums, shard->sums, (size_t)n * sizeof(double)));
    return xp_stream_sync(stream);
}

/* Over all ranks the lowest index of a parameter whose slot is not finite; its name or NULL. */
static xp_status agree_on_bad(xp_shard *shard, const char **name) {
    int n = xp_param_table_n_params(shard->args.table);
    int64_t first_bad = INT_MAX;
    for (int p = n - 1; p >= 0; p--)
        if (!isfinite(shard->host_sums[p]))
            first_bad = p;
    if (shard->mesh.world)
        XP_TRY(
            xp_comm_all_reduce(shard->mesh.world, &first_bad, &first_bad, 1, XP_I64, XP_MIN, NULL));
    *name = first_bad < n ? xp_param_table_param(shard->args.table, (int)first_bad)->name : NULL;
    return XP_OK;
}

static xp_status find_bad_grad(xp_shard *shard, xp_stream *stream, const char **name) {
    int n = xp_param_table_n_params(shard->args.table);
    XP_TRY(xp_zero(stream, shard->sums, (size_t)n * sizeof(double)));
    for (int p = 0; p < n; p++) {
        const xp_param *param = xp_param_table_param(shard->args.table, p);
        const xp_shard_group *cut = &shard->plan.groups[param->group];
        int64_t begin = param->offset > cut->first ? param->offset : cut->first;
        int64_t end = param->offset + param->n_elements;
        end = end < cut->first + cut->n ? end : cut->first + cut->n;
        if (begin < end)
            XP_TRY(sum_squares(shard, grad_at(shard, begin), end - begin, shard->args.grad_dtype, p,
                               stream));
    }
    XP_TRY(read_sums(shard, n, stream));
    return agree_on_bad(shard, name);
}

xp_status xp_shard_find_bad_param(xp_shard *shard, xp_stream *stream, const char **name) {
    int n = xp_param_table_n_params(shard->args.table);
    for (int p = 0; p < n; p++) {
        const xp_param *param = xp_param_table_param(shard->args.table, p);
        /* In pieces no larger than a chunk: that is what the scratch is made for. */
        int64_t step = shard->plan.groups[param->group].chunk_elements;
        double total = 0;
        for (int64_t done = 0; done < param->n_elements; done += step) {
            int64_t left = param->n_elements - done;
            XP_TRY(sum_squares(shard, param_at(shard, param->offset + done),
                               left < step ? left : step, shard->args.param_dtype, 0, stream));
            double sum = 0;
            XP_TRY(xp_copy(stream, &sum, shard->sums, sizeof sum));
            XP_TRY(xp_stream_sync(stream));
            total += sum;
        }
        shard->host_sums[p] = total;
    }
    return agree_on_bad(shard, name);
}

xp_status xp_shard_grad_norm(xp_shard *shard, xp_stream *stream, double *norm) {
    int n = shard->plan.n_groups;
    XP_TRY(xp_zero(stream, shard->sums, (size_t)n * sizeof(double)));
    for (int g = 0; g < n; g++) {
        const xp_shard_group *cut = &shard->plan.groups[g];
        if (cut->n > 0)
            XP_TRY(sum_squares(shard, grad_at(shard, cut->first), cut->n, shard->args.grad_dtype, g,
                               stream));
    }
    /* The shard ranks of one replica hold every dense chunk and every expert's chunk once. */
    if (shard->mesh.shard) {
        xp_comm_set_phase(shard->mesh.shard, "gradient norm");
        XP_TRY(xp_comm_all_reduce(shard->mesh.shard, shard->sums, shard->sums, n, XP_F64, XP_SUM,
                                  stream));
    }
    XP_TRY(read_sums(shard, n, stream));
    double total = 0;
    for (int g = 0; g < n; g++)
        total += shard->host_sums[g];
    if (!isfinite(total)) {
        const char *name = NULL;
        XP_TRY(find_bad_grad(shard, stream, &name));
        return xp_error(XP_ENUMERIC, "the gradient of %s is not finite (NaN or Inf)",
                        name ? name : "an unknown parameter");
    }
    *norm = sqrt(total);
    return XP_OK;
}

/* ---- update ------------------------------------------------------------------------------ */

static float *master_at(const xp_shard *shard, int group, int64_t in_chunk) {
    const xp_shard_group *cut = &shard->plan.groups[group];
    if (owns_masters(shard))
        return shard->master + cut->state_offset + in_chunk;
    return (float *)shard->args.params + cut->first + in_chunk;
}

/* This rank's part of a piece, without padding. */
static int64_t own_elements(const xp_shard *shard, const xp_shard_piece *piece) {
    int64_t n = shard->plan.groups[piece->group].n - piece->first;
    return n < 0 ? 0 : (n < piece->n ? n : piece->n);
}

static xp_status update_piece(xp_shard *shard, const xp_shard_piece *piece,
                              const xp_adam_step *step, xp_stream *stream) {
    const xp_shard_group *cut = &shard->plan.groups[piece->group];
    int64_t state = cut->state_offset + piece->first;
    xp_adamw_args args = {
        .n = own_elements(shard, piece),
        .master = master_at(shard, piece->group, piece->first),
        .param = owns_masters(shard) ? param_at(shard, cut->first + piece->first) : NULL,
        .param_dtype = shard->args.param_dtype,
        .grad = grad_at(shard, cut->first + piece->first),
        .grad_dtype = shard->args.grad_dtype,
        .m = shard->m + state,
        .v = shard->v + state,
        .lr = step->lr,
        .beta1 = step->beta1,
        .beta2 = step->beta2,
        .eps = step->eps,
        .weight_decay = step->weight_decay,
        .step = step->step,
        .grad_scale = shard->grad_scale,
    };
    return args.n > 0 ? shard->ops->optim.adamw(stream, &args) : XP_OK;
}

/* What to do to a bucket's own pieces before its parameters are gathered. */
typedef xp_status (*piece_fn)(xp_shard *shard, const xp_shard_piece *piece,
                              const xp_adam_step *step, xp_stream *stream);

static xp_status for_each_bucket(xp_shard *shard, piece_fn fn, const xp_adam_step *step,
                                 xp_stream *stream) {
    for (int b = 0; b < shard->plan.n_buckets; b++) {
        const xp_shard_bucket *bucket = &shard->plan.buckets[b];
        for (int i = 0; i < bucket->n_pieces; i++)
            XP_TRY(fn(shard, &shard->plan.pieces[bucket->first_piece + i], step, stream));
        if (!shard->reduce_comm[bucket->is_expert])
            continue;
        XP_TRY(xp_event_record(shard->ready, stream));
        XP_TRY(xp_event_wait(shard->ready, shard->worker));
        XP_TRY(gather_bucket(shard, bucket));
    }
    return shard->worker ? join_worker(shard, stream) : XP_OK;
}

xp_status xp_shard_update(xp_shard *shard, const xp_adam_step *step, xp_stream *stream) {
    shard->host_scale = (float)step->grad_scale;
    XP_TRY(xp_copy(stream, shard->grad_scale, &shard->host_scale, sizeof(float)));
    return for_each_bucket(shard, update_piece, step, stream);
}

static xp_status cast_piece(xp_shard *shard, const xp_shard_piece *piece, const xp_adam_step *step,
                            xp_stream *stream) {
    (void)step;
    int64_t n = own_elements(shard, piece);
    if (!owns_masters(shard) || n == 0)
        return XP_OK;
    xp_axpy_args args = {
        .n = n,
        .alpha = 1,
        .x = master_at(shard, piece->group, piece->first),
        .y = param_at(shard, shard->plan.groups[piece->group].first + piece->first),
        .x_dtype = XP_F32,
        .y_dtype = shard->args.param_dtype,
    };
    return shard->ops->optim.axpy(stream, &args);
}

xp_status xp_shard_publish_params(xp_shard *shard, xp_stream *stream) {
    return for_each_bucket(shard, cast_piece, NULL, stream);
}

xp_status xp_shard_adopt_params(xp_shard *shard, xp_stream *stream) {
    size_t bytes = (size_t)shard->plan.state_elements * sizeof(float);
    XP_TRY(xp_zero(stream, shard->m, bytes));
    XP_TRY(xp_zero(stream, shard->v, bytes));
    if (!owns_masters(shard))
        return XP_OK;
    XP_TRY(xp_zero(stream, shard->master, bytes));
    for (int g = 0; g < shard->plan.n_groups; g++) {
        const xp_shard_group *cut = &shard->plan.groups[g];
        xp_axpy_args args = {
            .n = cut->n,
            .alpha = 1,
            .x = param_at(shard, cut->first),
            .y = shard->master + cut->state_offset,
            .x_dtype = shard->args.param_dtype,
            .y_dtype = XP_F32,
        };
        if (cut->n > 0)
            XP_TRY(shard->ops->optim.axpy(stream, &args));
    }
    return XP_OK;
}

xp_shard_chunk xp_shard_get_chunk(const xp_shard *shard, int group) {
    const xp_shard_group *cut = &shard->plan.groups[group];
    return (xp_shard_chunk){
        .first = cut->first,
        .n = cut->n,
        .master = master_at(shard, group, 0),
        .m = shard->m + cut->state_offset,
        .v = shard->v + cut->state_offset,
        .grad = grad_at(shard, cut->first),
    };
}

bool xp_shard_is_writer(const xp_shard *shard) {
    return shard->mesh.replica == 0;
}
