/* AdamW, its weights in two parts, and axpy: one pass over memory. */
#include <math.h>
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/vector.cuh"

namespace {

/* Elements of a thread: accesses of the widest type are 16 bytes, so that neighbours in a warp are
 * neighbours in memory: fp32 state in AdamW, the wider of both in axpy. */
constexpr int THREADS = 256, ADAMW_THREADS = 128, ADAMW_EACH = 4;
template <typename X, typename Y> constexpr int AXPY_EACH = sizeof(X) + sizeof(Y) == 4 ? 8 : 4;

/* decay = 1 - lr * weight_decay; lr1 = lr / correction1. */
struct adamw_args {
    int64_t n;
    uint16_t *remainder;
    float *m, *v;
    const float *grad_scale;
    float decay, lr1, beta1, rest1, beta2, rest2, root_correction2, eps;
};

constexpr uint32_t SIGN = 0x80000000u;

/* fp32 weights of a bf16 parameter, and v as the second moment alone: see core/remainder.h. */
template <int N>
static __device__ __forceinline__ void
join_weights(const uint32_t (&upper)[N], const uint32_t (&lower)[N], float (&v)[N], float (&w)[N]) {
#pragma unroll
    for (int k = 0; k < N; k++) {
        const uint32_t moment = __float_as_uint(v[k]);
        w[k] = __uint_as_float((upper[k] - (moment >> 31)) << 16 | lower[k]);
        v[k] = __uint_as_float(moment & ~SIGN);
    }
}

/* The lower halves of w, and the sign of v: whether rounding w to bf16 goes up. */
template <int N>
static __device__ __forceinline__ void split_weights(const float (&w)[N], uint32_t (&lower)[N],
                                                     float (&v)[N]) {
#pragma unroll
    for (int k = 0; k < N; k++) {
        const uint32_t bits = __float_as_uint(w[k]);
        lower[k] = bits & 0xffffu;
        const uint32_t up = (lower[k] + 0x7fffu + (bits >> 16 & 1)) >> 16;
        v[k] = __uint_as_float((__float_as_uint(v[k]) & ~SIGN) | up << 31);
    }
}

/* 1 or 4 halves of words, in one access. */
static __device__ __forceinline__ void load_halves(const void *from, uint32_t (&x)[1]) {
    x[0] = *(const uint16_t *)from;
}
static __device__ __forceinline__ void load_halves(const void *from, uint32_t (&x)[4]) {
    const uint2 words = *(const uint2 *)from;
    x[0] = words.x & 0xffffu, x[1] = words.x >> 16;
    x[2] = words.y & 0xffffu, x[3] = words.y >> 16;
}
static __device__ __forceinline__ void store_halves(void *to, const uint32_t (&x)[1]) {
    *(uint16_t *)to = (uint16_t)x[0];
}
static __device__ __forceinline__ void store_halves(void *to, const uint32_t (&x)[4]) {
    *(uint2 *)to = make_uint2(x[0] | x[1] << 16, x[2] | x[3] << 16);
}

/* w and v as they are in registers, from element `at` on. */
template <typename P, int N>
static __device__ __forceinline__ void load_state(const P *param, const uint16_t *remainder,
                                                  const float *moments, int64_t at, float (&w)[N],
                                                  float (&v)[N]) {
    load_many<float, N>(moments + at, v);
    if constexpr (sizeof(P) == 4) {
        load_many<P, N>(param + at, w);
    } else {
        uint32_t upper[N], lower[N];
        load_halves(param + at, upper);
        load_halves(remainder + at, lower);
        join_weights<N>(upper, lower, v, w);
    }
}

template <typename P, int N>
static __device__ __forceinline__ void store_state(P *param, uint16_t *remainder, float *moments,
                                                   int64_t at, const float (&w)[N], float (&v)[N]) {
    store_many<P, N>(param + at, w);
    if constexpr (sizeof(P) == 2) {
        uint32_t lower[N];
        split_weights<N>(w, lower, v);
        store_halves(remainder + at, lower);
    }
    store_many<float, N>(moments + at, v);
}

template <typename G, typename P, int N>
static __device__ __forceinline__ void adamw_step(const adamw_args &args, float scale, int64_t at,
                                                  const G *grad, P *p) {
    float w[N], m[N], v[N], g[N];
    load_state<P, N>(p, args.remainder, args.v, at, w, v);
    load_many<float, N>(args.m + at, m);
    load_many<G, N>(grad + at, g);
#pragma unroll
    for (int k = 0; k < N; k++) {
        g[k] *= scale;
        /* which product is rounded must not depend on the width of accesses */
        m[k] = __fmaf_rn(args.rest1, g[k], args.beta1 * m[k]);
        v[k] = args.beta2 * v[k] + args.rest2 * g[k] * g[k];
        const float root = sqrtf(v[k]) * args.root_correction2;
        w[k] = args.decay * w[k] - args.lr1 * m[k] / (root + args.eps);
    }
    store_many<float, N>(args.m + at, m);
    store_state<P, N>(p, args.remainder, args.v, at, w, v);
}

/* A thread owns ADAMW_EACH neighbouring elements; the last thread the rest, one by one. Moves grad
 * once, the weight, m and v twice. */
template <typename G, typename P>
__global__ void __launch_bounds__(ADAMW_THREADS)
    adamw(adamw_args args, const G *grad, P *p, bool wide) {
    const int64_t first = ((int64_t)blockIdx.x * ADAMW_THREADS + threadIdx.x) * ADAMW_EACH;
    const float scale = *args.grad_scale;
    if (isnan(scale))
        return;
    if (wide && first + ADAMW_EACH <= args.n) {
        adamw_step<G, P, ADAMW_EACH>(args, scale, first, grad, p);
        return;
    }
    for (int64_t i = first; i < first + ADAMW_EACH && i < args.n; i++)
        adamw_step<G, P, 1>(args, scale, i, grad, p);
}

/* fp32 masters into parameters, remainders and the sign of v, or back. */
template <bool JOIN, int N>
static __device__ __forceinline__ void remainder_step(const xp_remainder_args &a, int64_t at) {
    float w[N], v[N];
    bf16 *param = (bf16 *)a.param;
    if constexpr (JOIN) {
        load_state<bf16, N>(param, a.remainder, a.v, at, w, v);
        store_many<float, N>(a.master + at, w);
        store_many<float, N>(a.v + at, v);
    } else {
        load_many<float, N>(a.master + at, w);
        load_many<float, N>(a.v + at, v);
        store_state<bf16, N>(param, a.remainder, a.v, at, w, v);
    }
}

/* As in adamw. */
template <bool JOIN>
__global__ void __launch_bounds__(ADAMW_THREADS) remainder(xp_remainder_args a, bool wide) {
    const int64_t first = ((int64_t)blockIdx.x * ADAMW_THREADS + threadIdx.x) * ADAMW_EACH;
    if (wide && first + ADAMW_EACH <= a.n) {
        remainder_step<JOIN, ADAMW_EACH>(a, first);
        return;
    }
    for (int64_t i = first; i < first + ADAMW_EACH && i < a.n; i++)
        remainder_step<JOIN, 1>(a, i);
}

template <typename X, typename Y, int N>
static __device__ __forceinline__ void axpy_step(float alpha, const X *x, Y *y, bool acc) {
    float a[N], b[N];
    load_many<X, N>(x, a);
    if (acc)
        load_many<Y, N>(y, b);
#pragma unroll
    for (int k = 0; k < N; k++)
        a[k] = acc ? b[k] + alpha * a[k] : alpha * a[k];
    store_many<Y, N>(y, a);
}

template <typename X, typename Y>
__global__ void __launch_bounds__(THREADS)
    axpy(int64_t n, float alpha, const X *x, Y *y, bool acc, bool wide) {
    constexpr int EACH = AXPY_EACH<X, Y>;
    const int64_t first = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * EACH;
    if (wide && first + EACH <= n) {
        axpy_step<X, Y, EACH>(alpha, x + first, y + first, acc);
        return;
    }
    for (int64_t i = first; i < first + EACH && i < n; i++)
        axpy_step<X, Y, 1>(alpha, x + i, y + i, acc);
}

template <typename G, typename P>
xp_status launch_adamw(const xp_adamw_args *a, const adamw_args *args, cudaStream_t s) {
    const bool wide = xp_is_aligned(a->remainder) && xp_is_aligned(a->m) && xp_is_aligned(a->v) &&
                      xp_is_aligned(a->grad) && xp_is_aligned(a->param);
    adamw<G, P><<<(unsigned)xp_ceil_div(a->n, ADAMW_THREADS * ADAMW_EACH), ADAMW_THREADS, 0, s>>>(
        *args, (const G *)a->grad, (P *)a->param, wide);
    return xp_cuda_check(cudaGetLastError(), "adamw");
}

template <bool JOIN>
xp_status launch_remainder(xp_stream *stream, const xp_remainder_args *a, const char *op) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (a->n == 0)
        return XP_OK;
    const bool wide = xp_is_aligned(a->master) && xp_is_aligned(a->param) &&
                      xp_is_aligned(a->remainder) && xp_is_aligned(a->v);
    remainder<JOIN>
        <<<(unsigned)xp_ceil_div(a->n, ADAMW_THREADS * ADAMW_EACH), ADAMW_THREADS, 0, s>>>(*a,
                                                                                           wide);
    return xp_cuda_check(cudaGetLastError(), op);
}

template <typename X, typename Y> xp_status launch_axpy(const xp_axpy_args *a, cudaStream_t s) {
    const bool wide = xp_is_aligned(a->x) && xp_is_aligned(a->y);
    const unsigned n_blocks = (unsigned)xp_ceil_div(a->n, THREADS * AXPY_EACH<X, Y>);
    axpy<X, Y>
        <<<n_blocks, THREADS, 0, s>>>(a->n, a->alpha, (const X *)a->x, (Y *)a->y, a->acc, wide);
    return xp_cuda_check(cudaGetLastError(), "axpy");
}

} // namespace

extern "C" xp_status xp_cuda_adamw(xp_stream *stream, const xp_adamw_args *a) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (a->n == 0)
        return XP_OK;
    const double lr = (double)a->lr, beta1 = (double)a->beta1, beta2 = (double)a->beta2;
    const adamw_args args = {
        .n = a->n,
        .remainder = a->remainder,
        .m = a->m,
        .v = a->v,
        .grad_scale = a->grad_scale,
        .decay = (float)(1 - lr * (double)a->weight_decay),
        .lr1 = (float)(lr / (1 - pow(beta1, (double)a->step))),
        .beta1 = a->beta1,
        .rest1 = (float)(1 - beta1),
        .beta2 = a->beta2,
        .rest2 = (float)(1 - beta2),
        .root_correction2 = (float)(1 / sqrt(1 - pow(beta2, (double)a->step))),
        .eps = a->eps,
    };
    if (a->grad_dtype == XP_F32)
        return a->param_dtype == XP_F32 ? launch_adamw<float, float>(a, &args, s)
                                        : launch_adamw<float, bf16>(a, &args, s);
    return a->param_dtype == XP_F32 ? launch_adamw<bf16, float>(a, &args, s)
                                    : launch_adamw<bf16, bf16>(a, &args, s);
}

extern "C" xp_status xp_cuda_remainder_split(xp_stream *stream, const xp_remainder_args *a) {
    return launch_remainder<false>(stream, a, "remainder_split");
}

extern "C" xp_status xp_cuda_remainder_join(xp_stream *stream, const xp_remainder_args *a) {
    return launch_remainder<true>(stream, a, "remainder_join");
}

extern "C" xp_status xp_cuda_axpy(xp_stream *stream, const xp_axpy_args *a) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (a->n == 0)
        return XP_OK;
    if (a->x_dtype == XP_F32)
        return a->y_dtype == XP_F32 ? launch_axpy<float, float>(a, s)
                                    : launch_axpy<float, bf16>(a, s);
    return a->y_dtype == XP_F32 ? launch_axpy<bf16, float>(a, s) : launch_axpy<bf16, bf16>(a, s);
}
