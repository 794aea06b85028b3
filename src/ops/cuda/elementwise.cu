/* AdamW and axpy: one pass over memory. */
#include <math.h>
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/vector.cuh"

namespace {

/* Elements of a thread: accesses of the widest type are 16 bytes, so that neighbours in a warp are
 * neighbours in memory: fp32 state in AdamW, the wider of both in axpy. */
constexpr int THREADS = 256, ADAMW_THREADS = 128, ADAMW_EACH = 4;
template <typename X, typename Y> constexpr int AXPY_EACH = sizeof(X) + sizeof(Y) == 4 ? 8 : 4;

struct adamw_args {
    int64_t n;
    float *master, *m, *v;
    const float *grad_scale;
    float decay, lr1, beta1, rest1, beta2, rest2, root_correction2, eps;
};

/* p: NULL for no rounded copy. decay = 1 - lr * weight_decay; lr1 = lr / correction1. */
template <typename G, typename P, int N>
static __device__ __forceinline__ void adamw_step(const adamw_args &args, float scale, int64_t at,
                                                  const G *grad, P *p) {
    float w[N], m[N], v[N], g[N];
    load_many<float, N>(args.master + at, w);
    load_many<float, N>(args.m + at, m);
    load_many<float, N>(args.v + at, v);
    load_many<G, N>(grad + at, g);
#pragma unroll
    for (int k = 0; k < N; k++) {
        g[k] *= scale;
        m[k] = args.beta1 * m[k] + args.rest1 * g[k];
        v[k] = args.beta2 * v[k] + args.rest2 * g[k] * g[k];
        const float root = sqrtf(v[k]) * args.root_correction2;
        w[k] = args.decay * w[k] - args.lr1 * m[k] / (root + args.eps);
    }
    store_many<float, N>(args.master + at, w);
    store_many<float, N>(args.m + at, m);
    store_many<float, N>(args.v + at, v);
    if (p != NULL)
        store_many<P, N>(p + at, w);
}

/* A thread owns ADAMW_EACH neighbouring elements; the last thread the rest, one by one. Moves grad
 * and param once, master, m and v twice. */
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
    /* the rounded copy of an fp32 parameter that is its own master is the master */
    P *param = a->param == a->master ? NULL : (P *)a->param;
    const bool wide = xp_is_aligned(a->master) && xp_is_aligned(a->m) && xp_is_aligned(a->v) &&
                      xp_is_aligned(a->grad) && xp_is_aligned(param);
    adamw<G, P><<<(unsigned)xp_ceil_div(a->n, ADAMW_THREADS * ADAMW_EACH), ADAMW_THREADS, 0, s>>>(
        *args, (const G *)a->grad, param, wide);
    return xp_cuda_check(cudaGetLastError(), "adamw");
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
        .master = a->master,
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
