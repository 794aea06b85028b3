/*
 * Router: scores, the K largest, their weights; and the gradient. One warp a token; lane l owns
 * experts l, l + 32, ... The arithmetic is fp64, as in the plain code: it costs a few operations a
 * score, and the selected experts do not depend on the device.
 */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/reduce.cuh"

namespace {

constexpr int THREADS = 128, MOST_EXPERTS = 512;
constexpr unsigned ALL = 0xffffffffu;

static __device__ __forceinline__ int64_t token_of_warp() {
    return (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
}

static __device__ __forceinline__ double warp_max(double x) {
    for (int step = 16; step > 0; step /= 2)
        x = fmax(x, __shfl_xor_sync(ALL, x, step)); /* the one that is not NaN */
    return x;
}

/* NaN loses, then the larger value wins, then the lower id. e = INT_MAX: no candidate. */
static __device__ __forceinline__ bool is_better(float a, int a_id, float b, int b_id) {
    if (a_id == INT_MAX || b_id == INT_MAX)
        return b_id == INT_MAX && a_id != INT_MAX;
    if (isnan(a) != isnan(b))
        return isnan(b);
    if (a > b || a < b)
        return a > b;
    return a_id < b_id;
}

/* V: experts a lane. */
template <int V> __global__ void __launch_bounds__(THREADS) forward(xp_router_args args) {
    const int64_t t = token_of_warp();
    const int lane = (int)threadIdx.x % 32, n = args.n_experts;
    if (t >= args.n_tokens)
        return;
    const float *logits = args.logits + t * n;
    float *scores = args.scores + t * n;
    int32_t *idx = args.topk_idx + t * args.top_k;

    float x[V];
    double max = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int e = lane + 32 * i;
        x[i] = e < n ? logits[e] : -INFINITY;
        max = fmax(max, (double)x[i]);
    }
    max = warp_max(max);
    if (isinf(max))
        max = 0; /* all -Inf, or a +Inf: the sum says which without Inf - Inf */
#pragma unroll
    for (int i = 0; i < V; i++)
        if (lane + 32 * i < n)
            sum += exp((double)x[i] - max);
    const double lse = max + log(warp_sum(sum));
    if (args.lse != NULL && lane == 0)
        args.lse[t] = (float)lse;
    float biased[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int e = lane + 32 * i;
        if (e >= n)
            continue;
        const double logit = (double)x[i];
        x[i] = args.score_func == XP_SCORE_SIGMOID ? (float)(1 / (1 + exp(-logit)))
                                                   : (float)exp(logit - lse);
        scores[e] = x[i];
        biased[i] = args.bias != NULL ? x[i] + args.bias[e] : x[i];
    }
    unsigned selected = 0; /* bit i: expert lane + 32 i */
    for (int k = 0; args.forced == NULL && k < args.top_k; k++) {
        float best = NAN;
        int best_id = INT_MAX;
#pragma unroll
        for (int i = 0; i < V; i++) {
            const int e = lane + 32 * i;
            if (e < n && (selected >> i & 1) == 0 && is_better(biased[i], e, best, best_id)) {
                best = biased[i];
                best_id = e;
            }
        }
        for (int step = 16; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(ALL, best, step);
            const int other_id = __shfl_xor_sync(ALL, best_id, step);
            if (is_better(other, other_id, best, best_id)) {
                best = other;
                best_id = other_id;
            }
        }
        if (best_id % 32 == lane)
            selected |= 1u << (best_id / 32);
        if (lane == 0)
            idx[k] = best_id;
    }
    for (int k = lane; args.forced != NULL && k < args.top_k; k += 32)
        idx[k] = args.forced[t * args.top_k + k];
    __syncwarp(); /* scores and idx of all lanes */
    double scale = (double)args.route_scale, of_assignments = 0;
    for (int k = 0; k < args.top_k; k++)
        of_assignments += (double)scores[idx[k]];
    if (args.route_norm)
        scale /= of_assignments + 1e-20;
    for (int k = lane; k < args.top_k; k += 32)
        args.topk_weight[t * args.top_k + k] = (float)((double)scores[idx[k]] * scale);
}

/* d s_k of the k-th assignment; see the plain code. */
static __device__ __forceinline__ double score_gradient(const xp_router_backward_args &args,
                                                        double d_weight, double sum, double dot) {
    const double scale = (double)args.route_scale;
    return args.route_norm ? scale * (d_weight - dot / sum) / sum : scale * d_weight;
}

static __device__ __forceinline__ double softmax_from_score(const xp_router_backward_args &args,
                                                            double s, double lse) {
    if (args.score_func == XP_SCORE_SOFTMAX)
        return s;
    /* exp(logit) = s / (1 - s). A score that rounded to 1 stands for the smallest logit that does.
     */
    const double rest = fmax(1 - s, 0x1p-25);
    return fmin(s / rest * exp(-lse), 1.0);
}

template <int V> __global__ void __launch_bounds__(THREADS) backward(xp_router_backward_args args) {
    const int64_t t = token_of_warp();
    const int lane = (int)threadIdx.x % 32, n = args.n_experts;
    if (t >= args.n_tokens)
        return;
    const float *scores = args.scores + t * n, *d_weight = args.d_topk_weight + t * args.top_k;
    const int32_t *idx = args.topk_idx + t * args.top_k;
    const float *density =
        args.aux_density != NULL ? args.aux_density + t / args.seq_len * n : NULL;

    double s[V], ds[V];
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int e = lane + 32 * i;
        s[i] = e < n ? (double)scores[e] : 0.0;
        ds[i] = e < n && density != NULL ? (double)density[e] : 0.0;
    }
    double sum = 1e-20, dot = 0, inner = 0;
    for (int k = 0; k < args.top_k; k++) { /* all lanes alike */
        const double score = (double)scores[idx[k]];
        sum += score;
        dot += (double)d_weight[k] * score;
    }
    if (density != NULL) {
#pragma unroll
        for (int i = 0; i < V; i++)
            inner += ds[i] * s[i];
        inner = warp_sum(inner);
    }
    for (int k = 0; k < args.top_k; k++) {
        const int e = idx[k];
        const double g = score_gradient(args, (double)d_weight[k], sum, dot);
        inner += g * (double)scores[e];
#pragma unroll
        for (int i = 0; i < V; i++)
            ds[i] += e == lane + 32 * i ? g : 0.0;
    }
    __syncwarp(); /* dlogits may lie on scores: all reads come before */
    const double lse = args.lse != NULL ? (double)args.lse[t] : 0.0;
    const double d_lse = (double)args.z_scale * lse;
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int e = lane + 32 * i;
        if (e >= n)
            continue;
        double dl = args.score_func == XP_SCORE_SIGMOID ? ds[i] * s[i] * (1 - s[i])
                                                        : s[i] * (ds[i] - inner);
        if (args.lse != NULL)
            dl += d_lse * softmax_from_score(args, s[i], lse);
        args.dlogits[t * n + e] = (float)dl;
    }
}

xp_status check_experts(int n_experts, const char *op) {
    if (n_experts <= MOST_EXPERTS)
        return XP_OK;
    return xp_error(XP_ENOTSUP, "%s: %d experts; the GPU's router takes at most %d", op, n_experts,
                    MOST_EXPERTS);
}

unsigned blocks_of(int64_t n_tokens) {
    return (unsigned)xp_ceil_div(n_tokens, THREADS / 32);
}

} // namespace

extern "C" xp_status xp_cuda_router_forward(xp_stream *stream, const xp_router_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    XP_TRY(check_experts(args->n_experts, "router_forward"));
    if (args->n_tokens == 0)
        return XP_OK;
    const unsigned n_blocks = blocks_of(args->n_tokens);
    if (args->n_experts <= 32)
        forward<1><<<n_blocks, THREADS, 0, s>>>(*args);
    else if (args->n_experts <= 64)
        forward<2><<<n_blocks, THREADS, 0, s>>>(*args);
    else if (args->n_experts <= 128)
        forward<4><<<n_blocks, THREADS, 0, s>>>(*args);
    else
        forward<16><<<n_blocks, THREADS, 0, s>>>(*args);
    return xp_cuda_check(cudaGetLastError(), "router_forward");
}

extern "C" xp_status xp_cuda_router_backward(xp_stream *stream,
                                             const xp_router_backward_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    XP_TRY(check_experts(args->n_experts, "router_backward"));
    if (args->n_tokens == 0)
        return XP_OK;
    const unsigned n_blocks = blocks_of(args->n_tokens);
    if (args->n_experts <= 32)
        backward<1><<<n_blocks, THREADS, 0, s>>>(*args);
    else if (args->n_experts <= 64)
        backward<2><<<n_blocks, THREADS, 0, s>>>(*args);
    else if (args->n_experts <= 128)
        backward<4><<<n_blocks, THREADS, 0, s>>>(*args);
    else
        backward<16><<<n_blocks, THREADS, 0, s>>>(*args);
    return xp_cuda_check(cudaGetLastError(), "router_backward");
}
