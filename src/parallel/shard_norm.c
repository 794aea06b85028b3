/* The global gradient norm; which parameter is the first that is not finite. */
#include <limits.h>
#include <math.h>
#include "parallel/shard_internal.h"

static xp_status sum_squares(xp_shard *shard, const void *x, int64_t n, xp_dtype dtype, int slot,
                             xp_stream *stream) {
    xp_sum_squares_args args = {
        .n = n, .x = x, .dtype = dtype, .out = shard->sums + slot, .scratch = shard->sums_scratch};
    return shard->ops->sum_squares(stream, &args);
}

static xp_status queue_sums(xp_shard *shard, int n, xp_stream *stream) {
    return xp_copy(stream, shard->host_sums, shard->sums, (size_t)n * sizeof(double));
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
            XP_TRY(sum_squares(shard, xp_shard_grad_at(shard, begin), end - begin,
                               shard->args.grad_dtype, p, stream));
    }
    XP_TRY(queue_sums(shard, n, stream));
    XP_TRY(xp_stream_sync(stream));
    return agree_on_bad(shard, name);
}

xp_status xp_shard_find_bad_param(xp_shard *shard, xp_stream *stream, const char **name) {
    int n = xp_param_table_n_params(shard->args.table);
    XP_TRY(xp_shard_finish_gather(shard, stream));
    /* Downwards: slot 0 takes what each piece gives. */
    for (int p = n - 1; p >= 0; p--) {
        const xp_param *param = xp_param_table_param(shard->args.table, p);
        /* In pieces no larger than a chunk: that is what the scratch is made for. */
        int64_t step = shard->plan.groups[param->group].chunk_elements;
        double total = 0;
        for (int64_t done = 0; done < param->n_elements; done += step) {
            int64_t left = param->n_elements - done;
            XP_TRY(sum_squares(shard, xp_shard_param_at(shard, param->offset + done),
                               left < step ? left : step, shard->args.param_dtype, 0, stream));
            XP_TRY(queue_sums(shard, 1, stream));
            XP_TRY(xp_stream_sync(stream));
            total += shard->host_sums[0];
        }
        shard->host_sums[p] = total;
    }
    return agree_on_bad(shard, name);
}

xp_status xp_shard_queue_norm(xp_shard *shard, xp_stream *stream) {
    int n = shard->plan.n_groups;
    const xp_sum_squares_parts_args args = {.n_parts = n,
                                            .parts = shard->chunks,
                                            .x = shard->args.grads,
                                            .dtype = shard->args.grad_dtype,
                                            .out = shard->sums,
                                            .scratch = shard->sums_scratch};
    XP_TRY(shard->ops->sum_squares_parts(stream, &args));
    /* The shard ranks of one replica hold every dense chunk and every expert's chunk once. */
    if (shard->mesh.shard) {
        xp_comm_set_phase(shard->mesh.shard, "gradient norm");
        XP_TRY(xp_comm_all_reduce(shard->mesh.shard, shard->sums, shard->sums, n, XP_F64, XP_SUM,
                                  stream));
    }
    return queue_sums(shard, n, stream);
}

xp_status xp_shard_read_norm(xp_shard *shard, xp_stream *stream, double *norm) {
    double total = 0;
    for (int g = 0; g < shard->plan.n_groups; g++)
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

xp_status xp_shard_grad_norm(xp_shard *shard, xp_stream *stream, double *norm) {
    XP_TRY(xp_shard_queue_norm(shard, stream));
    XP_TRY(xp_stream_sync(stream));
    return xp_shard_read_norm(shard, stream, norm);
}
