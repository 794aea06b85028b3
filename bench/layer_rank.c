#include "layer_rank.h"

#include <stdlib.h>
#include <string.h>
#include "core/arena.h"

/* ---- memory ------------------------------------------------------------------------------ */

static xp_status take(xp_layer_rank *r, int64_t n, xp_dtype dtype, void **data) {
    return xp_device_alloc(r->d.device, (size_t)n * xp_dtype_bytes(dtype), "layer", data);
}

static xp_status reserve_weights(xp_layer_rank *r) {
    const xp_moe_core_args *m = &r->c->model;
    const int64_t gate = m->n_experts * m->dim, local = m->n_experts / r->c->ep_size,
                  w2 = local * m->dim * m->moe_dim;
    void *data[6];
    XP_TRY(take(r, gate, m->dtype, &data[0]));
    XP_TRY(take(r, 2 * w2, m->dtype, &data[1]));
    XP_TRY(take(r, w2, m->dtype, &data[2]));
    XP_TRY(take(r, gate, m->grad_dtype, &data[3]));
    XP_TRY(take(r, 2 * w2, m->grad_dtype, &data[4]));
    XP_TRY(take(r, w2, m->grad_dtype, &data[5]));
    r->weights = (xp_moe_weights){.gate = data[0],
                                  .w13 = data[1],
                                  .w2 = data[2],
                                  .d_gate = data[3],
                                  .d_w13 = data[4],
                                  .d_w2 = data[5]};
    return XP_OK;
}

static xp_status reserve_saved(xp_layer_rank *r, xp_moe_saved *saved) {
    const xp_moe_core_args *m = &r->c->model;
    const int64_t n = r->c->n_tokens;
    void *data[5];
    XP_TRY(take(r, n * m->n_experts, XP_F32, &data[0]));
    XP_TRY(take(r, n * m->top_k, XP_I32, &data[1]));
    XP_TRY(take(r, n * m->top_k, XP_F32, &data[2]));
    XP_TRY(take(r, n, XP_F32, &data[3]));
    XP_TRY(take(r, m->n_experts, XP_F32, &data[4])); /* all tokens are one sequence */
    saved->scores = data[0];
    saved->topk_idx = data[1];
    saved->topk_weight = data[2];
    saved->router_lse = data[3];
    saved->aux_density = data[4];
    return XP_OK;
}

static xp_status reserve_lane(xp_layer_rank *r, int i) {
    const xp_bench_setting *s = &r->c->settings[i];
    const int64_t n_rows = r->c->n_tokens * r->c->model.dim;
    xp_layer_lane *lane = &r->lanes[i];
    xp_moe_core_args args = r->c->model;
    args.max_tokens = r->c->n_tokens;
    args.n_layers = 1;
    args.overlap = xp_overlap_choose(s->overlap, r->c->ep_size, r->c->cuda, r->d.shares_gpu);
    args.overlap_split = s->overlap_split;
    args.save_recv = s->save_recv;
    args.ep.transport = s->transport;
    args.ep.num_sms = s->num_sms;
    args.ep.shares_gpus = r->d.shares_gpu;
    args.ep.on_gpu = r->c->cuda;
    args.comm = r->ep;
    args.n_ranks = r->c->ep_size;
    args.shares_gpus = r->d.shares_gpu;
    args.device = r->d.device;
    XP_TRY(take(r, n_rows, args.dtype, &lane->out));
    XP_TRY(take(r, n_rows, args.dtype, &lane->dx));
    XP_TRY(reserve_saved(r, &lane->saved));
    XP_TRY(xp_moe_core_create(&args, &lane->core));
    return xp_moe_core_layer_create(lane->core, &lane->saved);
}

xp_status xp_layer_reserve(xp_layer_rank *r) {
    const int64_t n_rows = r->c->n_tokens * r->c->model.dim;
    void *targets;
    XP_TRY(reserve_weights(r));
    XP_TRY(take(r, n_rows, r->c->model.dtype, &r->x));
    XP_TRY(take(r, n_rows, r->c->model.dtype, &r->d_out));
    XP_TRY(take(r, r->c->n_tokens, XP_I32, &targets));
    r->targets = targets;
    for (int i = 0; i < 2; i++)
        XP_TRY(reserve_lane(r, i));
    return XP_OK;
}

void xp_layer_release(xp_layer_rank *r) {
    for (int i = 0; i < 2; i++) {
        xp_moe_core_layer_destroy(&r->lanes[i].saved);
        xp_moe_core_destroy(r->lanes[i].core);
    }
    xp_comm_destroy(r->ep);
}

/* ---- values ------------------------------------------------------------------------------ */

/* Evenly spread in (-size, size), the same in every run. */
static xp_status fill(xp_layer_rank *r, const void *data, int64_t n, xp_dtype dtype, float size,
                      uint64_t seed) {
    float *values = malloc((size_t)n * sizeof *values + 1);
    if (!values)
        return xp_error(XP_ENOMEM, "no memory for the values of a layer");
    uint16_t *narrow = (uint16_t *)values;
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005U + 1442695040888963407U;
        const float value = ((float)(int32_t)(seed >> 32) / 2147483648.0F) * size;
        if (dtype == XP_BF16)
            narrow[i] = xp_bf16_from_f32(value);
        else
            values[i] = value;
    }
    xp_status status =
        xp_copy(r->d.stream, (void *)(uintptr_t)data, values, (size_t)n * xp_dtype_bytes(dtype));
    if (status == XP_OK)
        status = xp_stream_sync(r->d.stream);
    free(values);
    return status;
}

xp_status xp_layer_fill(xp_layer_rank *r) {
    const xp_moe_core_args *m = &r->c->model;
    const int64_t n_rows = r->c->n_tokens * m->dim,
                  w2 = m->n_experts / r->c->ep_size * m->dim * m->moe_dim;
    const uint64_t seed = 16 + 8 * (uint64_t)r->rank->rank;
    const float small = 0.02F; /* about what weights are drawn with */
    XP_TRY(fill(r, r->weights.gate, m->n_experts * m->dim, m->dtype, small, 1));
    XP_TRY(fill(r, r->weights.w13, 2 * w2, m->dtype, small, seed));
    XP_TRY(fill(r, r->weights.w2, w2, m->dtype, small, seed + 1));
    XP_TRY(fill(r, r->x, n_rows, m->dtype, 1, seed + 2));
    XP_TRY(fill(r, r->d_out, n_rows, m->dtype, 1, seed + 3));
    XP_TRY(xp_zero(r->d.stream, r->targets, (size_t)r->c->n_tokens * sizeof *r->targets));
    return xp_stream_sync(r->d.stream);
}

/* ---- a pass ------------------------------------------------------------------------------ */

xp_status xp_layer_pass(xp_layer_rank *r, xp_layer_lane *lane) {
    const xp_moe_pass pass = {.n_tokens = r->c->n_tokens,
                              .seq_len = r->c->n_tokens,
                              .weights = &r->weights,
                              .saved = &lane->saved,
                              .x = r->x,
                              .out = lane->out,
                              .d_out = r->d_out,
                              .dx = lane->dx,
                              .targets = r->targets,
                              .loss_scale = 1.0F / (float)r->c->n_tokens};
    xp_moe_core_begin(lane->core);
    XP_TRY(xp_moe_core_forward(lane->core, &pass, r->d.stream));
    return xp_moe_core_backward(lane->core, &pass, r->d.stream);
}
