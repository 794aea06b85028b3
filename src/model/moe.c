/* expar/moe.h: one core with one layer that owns its weights. */
#include "expar/moe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "model/balance.h"
#include "model/moe_core.h"
#include "device/scope.h"

struct xp_moe {
    xp_moe_args args; /* defaults filled in; strings not kept */
    xp_moe_core *core;
    xp_device *device;
    xp_stream *setup; /* for filling and reading outside of passes */
    int rank, n_local;
    void *params, *grads, *saved_memory;
    xp_tensor weights[XP_MOE_N_WEIGHTS], gradients[XP_MOE_N_WEIGHTS];
    xp_moe_weights bound;
    xp_moe_saved saved;
    int64_t *counts;  /* [E] */
    double *losses;   /* [2] */
    float *bias;      /* [E] */
    int32_t *targets; /* [T] zeros: every token counts in the extra losses */
    int64_t n_tokens; /* of the last forward; -1: none */
};

static xp_status read_choices(const xp_moe_args *args, xp_moe_core_args *core) {
    const char *score = args->score_func ? args->score_func : "softmax";
    if (strcmp(score, "sigmoid") == 0)
        core->score_func = XP_SCORE_SIGMOID;
    else if (strcmp(score, "softmax") != 0)
        return xp_error(XP_EINVAL, "xp_moe_args: score_func '%s' must be softmax or sigmoid",
                        score);
    const char *forced = args->force_load_balance;
    if (!forced)
        return XP_OK;
    if (strcmp(forced, "modulo") == 0)
        core->forced = XP_FORCED_MODULO;
    else if (strcmp(forced, "spread") == 0)
        core->forced = XP_FORCED_SPREAD;
    else
        return xp_error(XP_EINVAL, "xp_moe_args: force_load_balance '%s' must be modulo or spread",
                        forced);
    return XP_OK;
}

static xp_status check_args(const xp_moe_args *args, int n_ranks) {
    if (args->num_experts < 1 || args->num_experts % n_ranks != 0)
        return xp_error(XP_EINVAL,
                        "xp_moe_args: num_experts = %d must be a multiple of the %d ranks",
                        args->num_experts, n_ranks);
    if (args->top_k < 1 || args->top_k > args->num_experts)
        return xp_error(XP_EINVAL, "xp_moe_args: top_k = %d must be between 1 and num_experts = %d",
                        args->top_k, args->num_experts);
    if (args->dim < 1 || args->moe_dim < 1 || args->max_tokens < 1 || args->seq_len < 0)
        return xp_error(XP_EINVAL, "xp_moe_args: dim, moe_dim and max_tokens must be positive");
    if (args->route_scale < 0.0 || args->capacity_factor < 0.0)
        return xp_error(XP_EINVAL,
                        "xp_moe_args: route_scale and capacity_factor must not be negative");
    bool bf16 = args->dtype == XP_BF16;
    if ((!bf16 && args->dtype != XP_F32) ||
        (args->grad_dtype != XP_F32 && !(bf16 && args->grad_dtype == XP_BF16)))
        return xp_error(XP_EINVAL, "xp_moe_args: %s weights with %s gradients is no combination",
                        xp_dtype_name(args->dtype), xp_dtype_name(args->grad_dtype));
    return XP_OK;
}

static xp_status create_core(xp_moe *moe, xp_comm *comm) {
    const xp_moe_args *args = &moe->args;
    xp_moe_core_args core = {.max_tokens = args->max_tokens,
                             .dim = args->dim,
                             .moe_dim = args->moe_dim,
                             .n_experts = args->num_experts,
                             .top_k = args->top_k,
                             .n_layers = 1,
                             .route_norm = args->route_norm,
                             .route_scale = args->route_scale > 0.0 ? args->route_scale : 1.0,
                             .dtype = args->dtype,
                             .grad_dtype = args->grad_dtype,
                             .inference = args->inference,
                             .save_gate_up = !args->recompute,
                             .save_recv = !args->recompute,
                             .overlap = args->overlap ? XP_OVERLAP_HALVES : XP_OVERLAP_NONE,
                             .overlap_split = 0.5,
                             .aux_coeff = args->aux_loss_coeff,
                             .z_coeff = args->z_loss_coeff,
                             .comm = comm,
                             .n_ranks = comm ? xp_comm_size(comm) : 1,
                             .device = moe->device};
    XP_TRY(read_choices(args, &core));
    core.ep.capacity_factor = args->capacity_factor > 0.0 ? args->capacity_factor : 2.0;
    core.ep.transport = args->use_deepep ? XP_EP_P2P : XP_EP_A2A;
    core.ep.num_sms = args->num_sms;
    core.ep.timeout_s = args->timeout_s;
    XP_TRY(xp_moe_core_create(&core, &moe->core));
    return xp_moe_core_layer_create(moe->core, &moe->saved);
}

/* The three weights one after the other, each 256-byte aligned, as views into `base`. */
static void carve_weights(xp_moe *moe, xp_slab *slab, xp_dtype dtype, xp_tensor *views) {
    const xp_moe_args *args = &moe->args;
    views[XP_MOE_GATE] = xp_tensor_2d(NULL, dtype, args->num_experts, args->dim);
    views[XP_MOE_W13] = xp_tensor_3d(NULL, dtype, moe->n_local, 2 * args->moe_dim, args->dim);
    views[XP_MOE_W2] = xp_tensor_3d(NULL, dtype, moe->n_local, args->dim, args->moe_dim);
    for (int i = 0; i < XP_MOE_N_WEIGHTS; i++)
        views[i].data =
            xp_slab_take(slab, (size_t)xp_tensor_count(&views[i]) * xp_dtype_bytes(dtype));
}

static void carve_saved(xp_moe *moe, xp_slab *slab) {
    const size_t tokens = (size_t)moe->args.max_tokens, experts = (size_t)moe->args.num_experts;
    const size_t assignments = tokens * (size_t)moe->args.top_k;
    moe->counts = xp_slab_take(slab, experts * sizeof(int64_t));
    moe->losses = xp_slab_take(slab, 2 * sizeof(double));
    moe->bias = xp_slab_take(slab, experts * sizeof(float));
    moe->targets = xp_slab_take(slab, tokens * sizeof(int32_t));
    moe->saved.scores = xp_slab_take(slab, tokens * experts * sizeof(float));
    moe->saved.topk_idx = xp_slab_take(slab, assignments * sizeof(int32_t));
    moe->saved.topk_weight = xp_slab_take(slab, assignments * sizeof(float));
    moe->saved.router_lse = xp_slab_take(slab, tokens * sizeof(float));
    size_t sequences = moe->args.seq_len > 0 ? tokens / (size_t)moe->args.seq_len : 1;
    moe->saved.aux_density = xp_slab_take(slab, sequences * experts * sizeof(float));
}

/* Reserve a set of weights (or gradients), zeroed. */
static xp_status reserve_weights(xp_moe *moe, xp_dtype dtype, const char *tag, void **memory,
                                 xp_tensor *views) {
    xp_slab slab = {0};
    carve_weights(moe, &slab, dtype, views);
    XP_TRY(xp_device_alloc(moe->device, slab.used, tag, memory));
    XP_TRY(xp_zero(moe->setup, *memory, slab.used));
    slab = (xp_slab){.base = *memory, .n_bytes = slab.used};
    carve_weights(moe, &slab, dtype, views);
    return XP_OK;
}

static xp_status reserve(xp_moe *moe) {
    const xp_moe_args *args = &moe->args;
    XP_TRY(xp_stream_create(moe->device, XP_STREAM_COMPUTE, &moe->setup));
    XP_TRY(reserve_weights(moe, args->dtype, "params", &moe->params, moe->weights));
    if (!args->inference)
        XP_TRY(reserve_weights(moe, args->grad_dtype, "grads", &moe->grads, moe->gradients));
    xp_slab slab = {0};
    carve_saved(moe, &slab);
    XP_TRY(xp_device_alloc(moe->device, slab.used, "activations", &moe->saved_memory));
    XP_TRY(xp_zero(moe->setup, moe->saved_memory, slab.used));
    slab = (xp_slab){.base = moe->saved_memory, .n_bytes = slab.used};
    carve_saved(moe, &slab);
    moe->bound = (xp_moe_weights){.gate = moe->weights[XP_MOE_GATE].data,
                                  .w13 = moe->weights[XP_MOE_W13].data,
                                  .w2 = moe->weights[XP_MOE_W2].data,
                                  .d_gate = moe->gradients[XP_MOE_GATE].data,
                                  .d_w13 = moe->gradients[XP_MOE_W13].data,
                                  .d_w2 = moe->gradients[XP_MOE_W2].data,
                                  .bias = moe->bias};
    return xp_stream_sync(moe->setup);
}

xp_status xp_moe_create(const xp_moe_args *args, xp_comm *comm, xp_device *device, xp_moe **moe) {
    XP_DEVICE_SCOPE(device);
    int n_ranks = comm ? xp_comm_size(comm) : 1;
    XP_TRY(check_args(args, n_ranks));
    xp_moe *made = calloc(1, sizeof(*made));
    if (!made)
        return xp_error(XP_ENOMEM, "MoE layer: out of memory");
    made->args = *args;
    made->device = device;
    made->rank = comm ? xp_comm_rank(comm) : 0;
    made->n_local = args->num_experts / n_ranks;
    made->n_tokens = -1;
    xp_status status = create_core(made, comm);
    if (status == XP_OK)
        status = reserve(made);
    if (status != XP_OK) {
        xp_moe_destroy(made);
        return status;
    }
    made->args.score_func = made->args.force_load_balance = NULL;
    *moe = made;
    return XP_OK;
}

void xp_moe_destroy(xp_moe *moe) {
    XP_DEVICE_SCOPE(moe ? moe->device : NULL);
    if (!moe)
        return;
    xp_moe_core_layer_destroy(&moe->saved);
    xp_moe_core_destroy(moe->core);
    xp_stream_destroy(moe->setup);
    xp_device_free(moe->device, moe->params);
    xp_device_free(moe->device, moe->grads);
    xp_device_free(moe->device, moe->saved_memory);
    free(moe);
}

xp_tensor xp_moe_param(const xp_moe *moe, xp_moe_weight which) {
    return moe->weights[which];
}

xp_tensor xp_moe_grad(const xp_moe *moe, xp_moe_weight which) {
    return moe->gradients[which];
}

int64_t *xp_moe_expert_counts(const xp_moe *moe) {
    return moe->counts;
}

float *xp_moe_expert_bias(const xp_moe *moe) {
    return moe->bias;
}

xp_ep_group *xp_moe_ep_group(const xp_moe *moe) {
    return xp_moe_core_group(moe->core);
}

/* Draw `n` elements of a stream of their own into elements [first, first + n) of the weight. */
static xp_status draw(xp_moe *moe, xp_tensor *weight, uint64_t seed, const char *name,
                      int64_t first, int64_t n, float std) {
    float *values = malloc((size_t)n * sizeof(float));
    if (!values)
        return xp_error(XP_ENOMEM, "MoE layer: no memory for initial values");
    xp_rng_fill_normal(seed, xp_rng_stream(name), 0, n, std, values);
    uint16_t *narrow = (uint16_t *)values;
    for (int64_t i = 0; weight->dtype == XP_BF16 && i < n; i++) {
        float value;
        memcpy(&value, (const char *)values + (size_t)i * sizeof(float), sizeof(value));
        narrow[i] = xp_bf16_from_f32(value);
    }
    size_t element = xp_dtype_bytes(weight->dtype);
    xp_status status = xp_copy(moe->setup, (char *)weight->data + (size_t)first * element, values,
                               (size_t)n * element);
    if (status == XP_OK)
        status = xp_stream_sync(moe->setup);
    free(values);
    return status;
}

xp_status xp_moe_init_params(xp_moe *moe, uint64_t seed, float std, float out_std) {
    XP_DEVICE_SCOPE(moe->device);
    const int64_t n13 = 2 * moe->args.moe_dim * moe->args.dim,
                  n2 = moe->args.moe_dim * moe->args.dim;
    xp_tensor *gate = &moe->weights[XP_MOE_GATE];
    XP_TRY(draw(moe, gate, seed, "gate", 0, xp_tensor_count(gate), std));
    for (int e = 0; e < moe->n_local; e++) {
        char name[48];
        int expert = moe->rank * moe->n_local + e;
        snprintf(name, sizeof(name), "experts.%d.w13", expert);
        XP_TRY(draw(moe, &moe->weights[XP_MOE_W13], seed, name, e * n13, n13, std));
        snprintf(name, sizeof(name), "experts.%d.w2", expert);
        XP_TRY(draw(moe, &moe->weights[XP_MOE_W2], seed, name, e * n2, n2, out_std));
    }
    return XP_OK;
}

static xp_status check_rows(const xp_moe *moe, const char *name, const xp_tensor *rows,
                            int64_t n_tokens) {
    if (rows->n_dims != 2 || rows->shape[0] != n_tokens || rows->shape[1] != moe->args.dim ||
        rows->dtype != moe->args.dtype || (!rows->data && n_tokens > 0))
        return xp_error(XP_EINVAL, "MoE layer: %s must be [%lld, %lld] %s", name,
                        (long long)n_tokens, (long long)moe->args.dim,
                        xp_dtype_name(moe->args.dtype));
    return XP_OK;
}

static xp_moe_pass pass_of(xp_moe *moe, const xp_tensor *x) {
    int64_t n = x->shape[0];
    return (xp_moe_pass){.n_tokens = n,
                         .seq_len = moe->args.seq_len > 0 ? moe->args.seq_len
                                    : n > 0               ? n
                                                          : 1,
                         .weights = &moe->bound,
                         .saved = &moe->saved,
                         .x = x->data,
                         .targets = moe->targets,
                         .loss_scale = n > 0 ? 1.0F / (float)n : 0.0F};
}

xp_status xp_moe_forward(xp_moe *moe, const xp_tensor *x, xp_tensor *out, bool training,
                         xp_stream *stream) {
    XP_DEVICE_SCOPE(moe->device);
    int64_t n = x->shape[0];
    if (n < 0 || n > moe->args.max_tokens || (moe->args.seq_len > 0 && n % moe->args.seq_len != 0))
        return xp_error(XP_EINVAL,
                        "MoE layer: %lld tokens, made for at most %lld in sequences of "
                        "%lld (0: any)",
                        (long long)n, (long long)moe->args.max_tokens,
                        (long long)moe->args.seq_len);
    XP_TRY(check_rows(moe, "x", x, n));
    XP_TRY(check_rows(moe, "out", out, n));
    xp_moe_pass pass = pass_of(moe, x);
    pass.out = out->data;
    pass.losses = moe->losses;
    pass.counts = training ? moe->counts : NULL;
    moe->n_tokens = n;
    xp_moe_core_begin(moe->core);
    XP_TRY(xp_zero(stream, moe->losses, 2 * sizeof(double)));
    return xp_moe_core_forward(moe->core, &pass, stream);
}

xp_status xp_moe_backward(xp_moe *moe, const xp_tensor *x, const xp_tensor *d_out, xp_tensor *dx,
                          bool accumulate, xp_stream *stream) {
    XP_DEVICE_SCOPE(moe->device);
    if (moe->args.inference || moe->n_tokens < 0)
        return xp_error(XP_EINVAL, moe->args.inference ? "MoE layer: made for inference"
                                                       : "MoE layer: backward without a forward");
    XP_TRY(check_rows(moe, "x", x, moe->n_tokens));
    XP_TRY(check_rows(moe, "d_out", d_out, moe->n_tokens));
    XP_TRY(check_rows(moe, "dx", dx, moe->n_tokens));
    xp_moe_pass pass = pass_of(moe, x);
    pass.d_out = d_out->data;
    pass.dx = dx->data;
    pass.accumulate = accumulate;
    moe->n_tokens = -1; /* the saved rows are spent */
    return xp_moe_core_backward(moe->core, &pass, stream);
}

xp_status xp_moe_read_losses(xp_moe *moe, xp_stream *stream, double *aux_loss, double *z_loss) {
    XP_DEVICE_SCOPE(moe->device);
    double losses[2];
    XP_TRY(xp_copy(stream, losses, moe->losses, sizeof(losses)));
    XP_TRY(xp_stream_sync(stream));
    *aux_loss = losses[0];
    *z_loss = losses[1];
    return XP_OK;
}

xp_status xp_moe_update_bias(xp_moe *moe, double coeff, xp_comm *comm, xp_stream *stream) {
    XP_DEVICE_SCOPE(moe->device);
    const int n = moe->args.num_experts;
    const size_t n_counts = (size_t)n * sizeof(int64_t), n_bias = (size_t)n * sizeof(float);
    int64_t *counts = malloc(n_counts + n_bias);
    if (!counts)
        return xp_error(XP_ENOMEM, "MoE layer: no memory for the balance");
    float *bias = (float *)(counts + n);
    xp_status status = XP_OK;
    XP_TRY_GOTO(status, xp_copy(stream, counts, moe->counts, n_counts), done);
    XP_TRY_GOTO(status, xp_copy(stream, bias, moe->bias, n_bias), done);
    XP_TRY_GOTO(status, xp_stream_sync(stream), done);
    if (comm)
        XP_TRY_GOTO(status, xp_comm_all_reduce(comm, counts, counts, n, XP_I64, XP_SUM, NULL),
                    done);
    xp_balance_update(n, coeff, counts, bias);
    XP_TRY_GOTO(status, xp_copy(stream, moe->bias, bias, n_bias), done);
    XP_TRY_GOTO(status, xp_zero(stream, moe->counts, n_counts), done);
    status = xp_stream_sync(stream);
done:
    free(counts);
    return status;
}
