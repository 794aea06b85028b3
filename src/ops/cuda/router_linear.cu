/*
 * Gradients of a bf16 router's logits on tensor cores. An fp32 gradient is the exact sum of three
 * bf16 parts (8 of its 24 bits each), so a bf16 GEMM over three times as many columns computes with
 * all of it: d_gate by parts = parts^T x, dx += parts [gate; gate; gate].
 */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/vector.cuh"
#include "ops/ops_blocks.h"

namespace {

constexpr int THREADS = 256;

struct parts_args {
    const float *dlogits; /* [T, E] */
    const bf16 *gate;     /* [E, D] */
    bf16 *parts;          /* [T, width] */
    bf16 *gates;          /* [width, D] */
    int64_t n_tokens, dim, width, n_split_blocks;
    int n_experts;
};

/* The leading 8 bits of x as bf16, cut off, not rounded: what is left has 8 bits less. */
static __device__ __forceinline__ bf16 cut(float x) {
    return __ushort_as_bfloat16((unsigned short)(__float_as_uint(x) >> 16));
}

/* A thread cuts one dlogit into its parts, or clears one of the columns past them. */
static __device__ __forceinline__ void split(const parts_args &args, int64_t i) {
    const int64_t n_columns = args.width - 2 * args.n_experts;
    const int64_t t = i / n_columns, e = i % n_columns;
    if (t >= args.n_tokens)
        return;
    bf16 *row = args.parts + t * args.width;
    if (e >= args.n_experts) {
        row[2 * args.n_experts + e] = from_float<bf16>(0.0f);
        return;
    }
    const float x = args.dlogits[t * args.n_experts + e];
    const bool finite = isfinite(x);
    const bf16 high = finite ? cut(x) : from_float<bf16>(x);
    const float rest = finite ? x - to_float(high) : 0.0f;
    const bf16 middle = cut(rest);
    row[e] = high;
    row[args.n_experts + e] = middle;
    row[2 * args.n_experts + e] = cut(rest - to_float(middle));
}

static __device__ __forceinline__ void repeat(const parts_args &args, int64_t i) {
    const int64_t row = i / args.dim;
    if (row >= args.width)
        return;
    args.gates[i] = row < 3 * args.n_experts ? args.gate[i % (args.n_experts * args.dim)]
                                             : from_float<bf16>(0.0f);
}

/* The first n_split_blocks blocks cut dlogits, a thread an element; the others copy the gate. */
__global__ void __launch_bounds__(THREADS) make_parts(parts_args args) {
    const int64_t block = blockIdx.x;
    if (block < args.n_split_blocks)
        split(args, block * THREADS + threadIdx.x);
    else
        repeat(args, (block - args.n_split_blocks) * THREADS + threadIdx.x);
}

/* d_gate (+)= the sum of its three parts, the smallest first; n = E D. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    add_parts(const float *parts, T *d_gate, int64_t n, bool acc) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    const float sum = (parts[2 * n + i] + parts[n + i]) + parts[i];
    d_gate[i] = from_float<T>(acc ? to_float(d_gate[i]) + sum : sum);
}

unsigned blocks_of(int64_t n) {
    return (unsigned)xp_ceil_div(n, THREADS);
}

xp_status launch_add(const xp_router_linear_args *a, const float *parts, cudaStream_t s) {
    const int64_t n = a->n_experts * a->dim;
    if (a->grad_dtype == XP_F32)
        add_parts<<<blocks_of(n), THREADS, 0, s>>>(parts, (float *)a->d_gate, n, a->acc);
    else
        add_parts<<<blocks_of(n), THREADS, 0, s>>>(parts, (bf16 *)a->d_gate, n, a->acc);
    return xp_cuda_check(cudaGetLastError(), "router_linear_backward");
}

/* c[m, D] = parts b[k, D], or of the parts' transpose. */
xp_status run_gemm(xp_stream *stream, const xp_router_linear_args *a, const parts_args &parts,
                   bool of_gate, float *d_gates) {
    xp_gemm_args gemm = {};
    gemm.m = of_gate ? parts.width : a->n_tokens;
    gemm.n = gemm.ldb = gemm.ldc = a->dim;
    gemm.k = of_gate ? a->n_tokens : parts.width;
    gemm.trans_a = of_gate;
    gemm.a = parts.parts;
    gemm.lda = parts.width;
    gemm.b = of_gate ? a->x : parts.gates;
    gemm.c = of_gate ? (void *)d_gates : a->dx;
    gemm.ab_dtype = XP_BF16;
    gemm.c_dtype = of_gate ? XP_F32 : XP_BF16;
    gemm.alpha = 1.0f;
    gemm.acc = !of_gate;
    return xp_cuda_gemm(stream, &gemm);
}

} // namespace

extern "C" xp_status xp_cuda_router_linear_backward(xp_stream *stream,
                                                    const xp_router_linear_args *a) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (a->dim == 0)
        return XP_OK;
    const xp_router_parts at = xp_router_parts_of(a->n_tokens, a->n_experts, a->dim);
    char *scratch = (char *)a->scratch;
    float *d_gates = (float *)(scratch + at.d_gate_at);
    const int64_t n_split = a->n_tokens * (at.width - 2 * a->n_experts);
    const parts_args args = {.dlogits = a->dlogits,
                             .gate = (const bf16 *)a->gate,
                             .parts = (bf16 *)scratch,
                             .gates = (bf16 *)(scratch + at.gate_at),
                             .n_tokens = a->n_tokens,
                             .dim = a->dim,
                             .width = at.width,
                             .n_split_blocks = xp_ceil_div(n_split, THREADS),
                             .n_experts = a->n_experts};
    const unsigned n_blocks = (unsigned)args.n_split_blocks + blocks_of(at.width * a->dim);
    if (a->part != XP_ROUTER_GATE)
        make_parts<<<n_blocks, THREADS, 0, s>>>(args);
    XP_TRY(xp_cuda_check(cudaGetLastError(), "router_linear_backward"));
    if (a->part != XP_ROUTER_ROWS) {
        XP_TRY(run_gemm(stream, a, args, true, d_gates));
        XP_TRY(launch_add(a, d_gates, s));
    }
    return a->part != XP_ROUTER_GATE ? run_gemm(stream, a, args, false, NULL) : XP_OK;
}
