/** Router and silu * gate * prob over the pool: tiles of rows, row kernels inside. */
#include <math.h>
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/pool_scratch.h"
#include "ops/cpu/row_kernels.h"

enum { TILE_TOKENS = 64, TILE_ELEMENTS = 32 * 1024 };

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* ---- router ---------------------------------------------------------------------------------- */

typedef struct router_job {
    const xp_router_args *args;
    const xp_row_kernels *kernels;
    xp_stream *stream;
} router_job;

static size_t router_scratch_bytes(int n_experts) {
    return (size_t)n_experts * sizeof(int64_t);
}

/** Scores and lse of one token; scores may be logits. */
static void score_token(const router_job *j, int64_t t) {
    const xp_router_args *args = j->args;
    const float *logits = args->logits + t * args->n_experts;
    float *scores = args->scores + t * args->n_experts;
    bool softmax = args->score_func == XP_SCORE_SOFTMAX;
    if (softmax || args->lse) {
        float max = j->kernels->max(logits, args->n_experts);
        float shift = isfinite(max) ? max : 0;
        double sum = j->kernels->exp_sum(logits, args->n_experts, shift, softmax ? scores : NULL);
        if (args->lse)
            args->lse[t] = (float)((double)shift + log(sum));
        if (softmax)
            j->kernels->scale(scores, args->n_experts, (float)(1 / sum));
    }
    if (!softmax)
        j->kernels->sigmoid(logits, args->n_experts, scores);
}

static void route_token(const router_job *j, int64_t t, int64_t *keys) {
    const xp_router_args *args = j->args;
    const float *scores = args->scores + t * args->n_experts;
    int32_t *idx = args->topk_idx + t * args->top_k;
    float *weight = args->topk_weight + t * args->top_k;
    if (args->forced == NULL)
        j->kernels->topk_keys(scores, args->bias, args->n_experts, keys);
    float sum = 0;
    for (int k = 0; k < args->top_k; k++) {
        idx[k] = args->forced ? args->forced[t * args->top_k + k]
                              : j->kernels->select(keys, args->n_experts);
        weight[k] = scores[idx[k]];
        sum += weight[k];
    }
    float scale = args->route_norm ? args->route_scale / (sum + 1e-20F) : args->route_scale;
    for (int k = 0; k < args->top_k; k++)
        weight[k] *= scale;
}

static void router_tile(void *context, int64_t tile, int worker) {
    const router_job *j = context;
    int64_t *keys =
        xp_cpu_stream_scratch(j->stream, worker, router_scratch_bytes(j->args->n_experts));
    int64_t first = tile * TILE_TOKENS;
    int64_t end = smaller(first + TILE_TOKENS, j->args->n_tokens);
    for (int64_t t = first; t < end; t++) {
        score_token(j, t);
        route_token(j, t, keys);
    }
}

static xp_status router_forward(xp_stream *stream, const xp_router_args *args) {
    router_job j = {.args = args, .kernels = xp_row_kernels_of(stream), .stream = stream};
    XP_TRY(xp_cpu_reserve_scratch(stream, router_scratch_bytes(args->n_experts)));
    xp_pool_run(xp_cpu_stream_pool(stream), router_tile, &j,
                (args->n_tokens + TILE_TOKENS - 1) / TILE_TOKENS);
    return XP_OK;
}

/**
 * Formulas: reference_moe.c. A token's own terms are K assignments; all other experts get -scores * inner
 * (softmax), the density's and the z-loss's share.
 */
static void route_token_backward(const xp_router_backward_args *args, int64_t t, float *d_scores) {
    int n_experts = args->n_experts;
    const float *scores = args->scores + t * n_experts;
    const int32_t *idx = args->topk_idx + t * args->top_k;
    const float *d_weight = args->d_topk_weight + t * args->top_k;
    float *d_logits = args->dlogits + t * n_experts;

    /* The few terms of the assignments in fp64: what cancels in theory (one normalised assignment) then cancels
     * here. */
    double sum = 1e-20;
    double dot = 0;
    for (int k = 0; k < args->top_k; k++) {
        sum += (double)scores[idx[k]];
        dot += (double)d_weight[k] * (double)scores[idx[k]];
    }
    const float *density =
        args->aux_density ? args->aux_density + t / args->seq_len * n_experts : NULL;
    double inner = 0; /* sum of d_scores * scores */
    for (int e = 0; e < n_experts; e++)
        d_scores[e] = density ? density[e] : 0;
    for (int e = 0; density && e < n_experts; e++)
        inner += (double)density[e] * (double)scores[e];
    double scale = args->route_norm ? (double)args->route_scale / sum : (double)args->route_scale;
    double mean = args->route_norm ? dot / sum : 0;
    for (int k = 0; k < args->top_k; k++) {
        double d_score = scale * ((double)d_weight[k] - mean);
        inner += d_score * (double)scores[idx[k]];
        d_scores[idx[k]] += (float)d_score;
    }

    float lse = args->lse ? args->lse[t] : 0;
    float d_lse = args->z_scale * lse;
    if (args->score_func == XP_SCORE_SOFTMAX) {
        for (int e = 0; e < n_experts; e++)
            d_logits[e] = scores[e] * (d_scores[e] - (float)inner + d_lse);
        return;
    }
    float inverse_sum = args->lse ? expf(-lse) : 0;
    for (int e = 0; e < n_experts; e++) {
        float s = scores[e];
        float rest = 1 - s > 0x1p-25F ? 1 - s : 0x1p-25F;
        float softmax = s / rest * inverse_sum;
        d_logits[e] = d_scores[e] * s * (1 - s) + d_lse * (softmax > 1 ? 1 : softmax);
    }
}

typedef struct router_backward_job {
    const xp_router_backward_args *args;
    xp_stream *stream;
} router_backward_job;

static void router_backward_tile(void *context, int64_t tile, int worker) {
    const router_backward_job *j = context;
    float *d_scores =
        xp_cpu_stream_scratch(j->stream, worker, router_scratch_bytes(j->args->n_experts));
    int64_t first = tile * TILE_TOKENS;
    int64_t end = smaller(first + TILE_TOKENS, j->args->n_tokens);
    for (int64_t t = first; t < end; t++)
        route_token_backward(j->args, t, d_scores);
}

static xp_status router_backward(xp_stream *stream, const xp_router_backward_args *args) {
    router_backward_job j = {.args = args, .stream = stream};
    XP_TRY(xp_cpu_reserve_scratch(stream, router_scratch_bytes(args->n_experts)));
    xp_pool_run(xp_cpu_stream_pool(stream), router_backward_tile, &j,
                (args->n_tokens + TILE_TOKENS - 1) / TILE_TOKENS);
    return XP_OK;
}

/* ---- silu * gate * prob ---------------------------------------------------------------------- */

typedef struct silu_job {
    const xp_silu_gate_prob_args *forward;
    const xp_silu_gate_prob_backward_args *backward; /* NULL in the forward op */
    const xp_row_kernels *kernels;
    int64_t n_rows, tile_rows;
} silu_job;

static void silu_forward_row(const silu_job *j, int64_t r) {
    const xp_silu_gate_prob_args *args = j->forward;
    float block_a[XP_ROW_BLOCK], block_b[XP_ROW_BLOCK], block_h[XP_ROW_BLOCK];
    float p = args->p ? args->p[r] : 1;
    for (int64_t f = 0; f < args->dim; f += XP_ROW_BLOCK) {
        int64_t n = smaller(XP_ROW_BLOCK, args->dim - f);
        int64_t in = r * args->ld + f;
        int64_t out = r * args->dim + f;
        float *h = xp_row_target(args->h, args->dtype, out, block_h);
        j->kernels->silu(xp_row_read(j->kernels, args->a, args->dtype, in, n, block_a),
                         xp_row_read(j->kernels, args->b, args->dtype, in, n, block_b), p, n, h);
        xp_row_write(j->kernels, args->h, args->dtype, out, n, h);
    }
}

static void silu_backward_row(const silu_job *j, int64_t r) {
    const xp_silu_gate_prob_args *fwd = j->forward;
    const xp_silu_gate_prob_backward_args *args = j->backward;
    const xp_row_kernels *kernels = j->kernels;
    xp_dtype dtype = fwd->dtype;
    float block_a[XP_ROW_BLOCK], block_b[XP_ROW_BLOCK], block_h[XP_ROW_BLOCK];
    double dp = 0;
    for (int64_t f = 0; f < fwd->dim; f += XP_ROW_BLOCK) {
        int64_t n = smaller(XP_ROW_BLOCK, fwd->dim - f);
        int64_t in = r * fwd->ld + f;
        int64_t out = r * args->ldd + f;
        int64_t at = r * fwd->dim + f;
        /* A block that is read may be the block that is written: the kernel reads a vector before
         * it writes it. */
        xp_silu_row row = {
            .n = n,
            .a = xp_row_read(kernels, fwd->a, dtype, in, n, block_a),
            .b = xp_row_read(kernels, fwd->b, dtype, in, n, block_b),
            .dh = xp_row_read(kernels, args->dh, dtype, at, n, block_h),
            .p = fwd->p ? fwd->p[r] : 1,
            .h = fwd->h ? xp_row_target(fwd->h, dtype, at, block_h) : NULL,
            .da = xp_row_target(args->da, dtype, out, block_a),
            .db = xp_row_target(args->db, dtype, out, block_b),
        };
        dp += kernels->silu_backward(&row);
        if (row.h)
            xp_row_write(kernels, fwd->h, dtype, at, n, row.h);
        xp_row_write(kernels, args->da, dtype, out, n, row.da);
        xp_row_write(kernels, args->db, dtype, out, n, row.db);
    }
    if (args->dp)
        args->dp[r] = (float)dp;
}

static void silu_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const silu_job *j = context;
    int64_t first = tile * j->tile_rows;
    int64_t end = smaller(first + j->tile_rows, j->n_rows);
    for (int64_t r = first; r < end; r++) {
        if (j->backward)
            silu_backward_row(j, r);
        else
            silu_forward_row(j, r);
    }
}

static xp_status run_silu(xp_stream *stream, const xp_silu_gate_prob_args *forward,
                          const xp_silu_gate_prob_backward_args *backward) {
    int64_t tile_rows = forward->dim > 0 ? TILE_ELEMENTS / forward->dim : 1;
    silu_job j = {
        .forward = forward,
        .backward = backward,
        .kernels = xp_row_kernels_of(stream),
        .n_rows = forward->n_rows,
        .tile_rows = tile_rows > 1 ? tile_rows : 1,
    };
    if (forward->n_rows_device)
        j.n_rows = smaller(j.n_rows, *forward->n_rows_device);
    xp_pool_run(xp_cpu_stream_pool(stream), silu_tile, &j,
                (j.n_rows + j.tile_rows - 1) / j.tile_rows);
    return XP_OK;
}

static xp_status silu_gate_prob_forward(xp_stream *stream, const xp_silu_gate_prob_args *args) {
    return run_silu(stream, args, NULL);
}

static xp_status silu_gate_prob_backward(xp_stream *stream,
                                         const xp_silu_gate_prob_backward_args *args) {
    return run_silu(stream, &args->forward, args);
}

void xp_cpu_moe_fast(xp_ops *ops, unsigned caps) {
    if (xp_row_kernels_for(caps) == NULL)
        return;
    ops->router_forward = router_forward;
    ops->router_backward = router_backward;
    ops->silu_gate_prob_forward = silu_gate_prob_forward;
    ops->silu_gate_prob_backward = silu_gate_prob_backward;
}
