/** Router, expert histogram and silu * gate * prob, plain: fp64 inside, one rounding per output. */
#include <math.h>
#include "ops/cpu/cpu_ops.h"

/* ---- router ---------------------------------------------------------------------------------- */

static double log_sum_exp(const float *x, int n) {
    double max = -INFINITY;
    for (int e = 0; e < n; e++)
        max = fmax(max, (double)x[e]);
    if (isinf(max))
        max = 0; /* all -Inf, or a +Inf: the sum below says which without Inf - Inf */
    double sum = 0;
    for (int e = 0; e < n; e++)
        sum += exp((double)x[e] - max);
    return max + log(sum);
}

static void score(const xp_router_args *args, const float *logits, double lse, float *scores) {
    for (int e = 0; e < args->n_experts; e++) {
        double logit = (double)logits[e];
        if (args->score_func == XP_SCORE_SIGMOID)
            scores[e] = (float)(1 / (1 + exp(-logit)));
        else
            scores[e] = (float)exp(logit - lse);
    }
}

static bool was_selected(const int32_t *selected, int n, int e) {
    for (int k = 0; k < n; k++)
        if (selected[k] == e)
            return true;
    return false;
}

/** The expert with the largest biased score that is not among the first n assignments; the lower id wins
 * a tie, NaN loses. */
static int best_expert(const xp_router_args *args, const float *scores, const int32_t *selected,
                       int n) {
    int best = -1;
    float best_score = NAN;
    for (int e = 0; e < args->n_experts; e++) {
        if (was_selected(selected, n, e))
            continue;
        float biased = args->bias ? scores[e] + args->bias[e] : scores[e];
        if (best < 0 || biased > best_score || (isnan(best_score) && !isnan(biased))) {
            best = e;
            best_score = biased;
        }
    }
    return best;
}

static void route_token(const xp_router_args *args, int64_t t) {
    const float *logits = args->logits + t * args->n_experts;
    float *scores = args->scores + t * args->n_experts;
    int32_t *idx = args->topk_idx + t * args->top_k;
    float *weight = args->topk_weight + t * args->top_k;

    double lse = log_sum_exp(logits, args->n_experts);
    if (args->lse)
        args->lse[t] = (float)lse;
    score(args, logits, lse, scores);

    double sum = 0;
    for (int k = 0; k < args->top_k; k++) {
        idx[k] =
            args->forced ? args->forced[t * args->top_k + k] : best_expert(args, scores, idx, k);
        sum += (double)scores[idx[k]];
    }
    double scale = (double)args->route_scale;
    if (args->route_norm)
        scale /= sum + 1e-20;
    for (int k = 0; k < args->top_k; k++)
        weight[k] = (float)((double)scores[idx[k]] * scale);
}

static xp_status router_forward(xp_stream *stream, const xp_router_args *args) {
    (void)stream;
    for (int64_t t = 0; t < args->n_tokens; t++)
        route_token(args, t);
    return XP_OK;
}

/**
 * The gradient of the k-th weight is (w_k = route_scale * s_k / S, S = sum of selected s + 1e-20,
 * when normalised): d s_k = route_scale * (dw_k - sum_j dw_j s_j / S) / S
 */
static double score_gradient(const xp_router_backward_args *args, const float *d_weight, int k,
                             double sum, double dot) {
    double scale = (double)args->route_scale;
    if (!args->route_norm)
        return scale * (double)d_weight[k];
    return scale * ((double)d_weight[k] - dot / sum) / sum;
}

/** softmax(logits)[e], from what the forward pass saved. */
static double softmax_from_score(const xp_router_backward_args *args, double s, double lse) {
    if (args->score_func == XP_SCORE_SOFTMAX)
        return s;
    /* exp(logit) = s / (1 - s). A score that rounded to 1 stands for the smallest logit that does.
     */
    double rest = fmax(1 - s, 0x1p-25);
    return fmin(s / rest * exp(-lse), 1);
}

static void route_token_backward(const xp_router_backward_args *args, int64_t t) {
    const float *scores = args->scores + t * args->n_experts;
    const int32_t *idx = args->topk_idx + t * args->top_k;
    const float *d_weight = args->d_topk_weight + t * args->top_k;
    const float *density =
        args->aux_density ? args->aux_density + t / args->seq_len * args->n_experts : NULL;
    float *d_logits = args->dlogits + t * args->n_experts;

    double sum = 1e-20;
    double dot = 0; /* sum over assignments of dw * s */
    for (int k = 0; k < args->top_k; k++) {
        sum += (double)scores[idx[k]];
        dot += (double)d_weight[k] * (double)scores[idx[k]];
    }
    double inner = 0; /* sum over experts of ds * s, what softmax's gradient subtracts */
    for (int k = 0; k < args->top_k; k++)
        inner += score_gradient(args, d_weight, k, sum, dot) * (double)scores[idx[k]];
    for (int e = 0; density && e < args->n_experts; e++)
        inner += (double)density[e] * (double)scores[e];

    double lse = args->lse ? (double)args->lse[t] : 0;
    double d_lse = args->lse ? (double)args->z_scale * lse : 0;
    for (int e = 0; e < args->n_experts; e++) {
        double s = (double)scores[e];
        double ds = density ? (double)density[e] : 0;
        for (int k = 0; k < args->top_k; k++)
            if (idx[k] == e)
                ds += score_gradient(args, d_weight, k, sum, dot);
        double dl = args->score_func == XP_SCORE_SIGMOID ? ds * s * (1 - s) : s * (ds - inner);
        if (args->lse)
            dl += d_lse * softmax_from_score(args, s, lse);
        d_logits[e] = (float)dl;
    }
}

static xp_status router_backward(xp_stream *stream, const xp_router_backward_args *args) {
    (void)stream;
    for (int64_t t = 0; t < args->n_tokens; t++)
        route_token_backward(args, t);
    return XP_OK;
}

static xp_status histogram(xp_stream *stream, const xp_histogram_args *args) {
    (void)stream;
    if (!args->acc)
        for (int e = 0; e < args->n_experts; e++)
            args->counts[e] = 0;
    for (int64_t i = 0; i < args->n; i++)
        if (args->ids[i] >= 0 && args->ids[i] < args->n_experts)
            args->counts[args->ids[i]]++;
    return XP_OK;
}

/* ---- silu * gate * prob ---------------------------------------------------------------------- */

static int64_t count_rows(const xp_silu_gate_prob_args *args) {
    if (args->n_rows_device && *args->n_rows_device < args->n_rows)
        return *args->n_rows_device;
    return args->n_rows;
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static xp_status silu_gate_prob_forward(xp_stream *stream, const xp_silu_gate_prob_args *args) {
    (void)stream;
    int64_t n_rows = count_rows(args);
    for (int64_t r = 0; r < n_rows; r++) {
        double p = args->p ? (double)args->p[r] : 1;
        for (int64_t f = 0; f < args->dim; f++) {
            double a = (double)xp_cpu_load(args->a, args->dtype, r * args->ld + f);
            double b = (double)xp_cpu_load(args->b, args->dtype, r * args->ld + f);
            float h = (float)(a * sigmoid(a) * b * p);
            xp_cpu_store(args->h, args->dtype, r * args->dim + f, h);
        }
    }
    return XP_OK;
}

/**
 * h = silu(a) b p:  da = dh b p silu'(a),  db = dh silu(a) p,  dp = sum over f of dh silu(a) b;
 * silu'(a) = sigmoid(a) (1 + a (1 - sigmoid(a))).
 */
static xp_status silu_gate_prob_backward(xp_stream *stream,
                                         const xp_silu_gate_prob_backward_args *args) {
    (void)stream;
    const xp_silu_gate_prob_args *fwd = &args->forward;
    int64_t n_rows = count_rows(fwd);
    for (int64_t r = 0; r < n_rows; r++) {
        double p = fwd->p ? (double)fwd->p[r] : 1;
        double dp = 0;
        for (int64_t f = 0; f < fwd->dim; f++) {
            int64_t at = r * fwd->dim + f;
            double a = (double)xp_cpu_load(fwd->a, fwd->dtype, r * fwd->ld + f);
            double b = (double)xp_cpu_load(fwd->b, fwd->dtype, r * fwd->ld + f);
            double dh = (double)xp_cpu_load(args->dh, fwd->dtype, at);
            double s = sigmoid(a);
            double silu = a * s;
            double d_silu = s * (1 + a * (1 - s));
            if (fwd->h)
                xp_cpu_store(fwd->h, fwd->dtype, at, (float)(silu * b * p));
            xp_cpu_store(args->da, fwd->dtype, r * args->ldd + f, (float)(dh * b * p * d_silu));
            xp_cpu_store(args->db, fwd->dtype, r * args->ldd + f, (float)(dh * silu * p));
            dp += dh * silu * b;
        }
        if (args->dp)
            args->dp[r] = (float)dp;
    }
    return XP_OK;
}

void xp_cpu_moe_reference(xp_ops *ops) {
    ops->router_forward = router_forward;
    ops->router_backward = router_backward;
    ops->router_linear_backward = xp_cpu_router_linear_backward;
    ops->router_losses = xp_cpu_router_losses;
    ops->histogram = histogram;
    ops->silu_gate_prob_forward = silu_gate_prob_forward;
    ops->silu_gate_prob_backward = silu_gate_prob_backward;
}
