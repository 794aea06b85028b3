/* RMSNorm forward, with the residual sum before it, and its repetition from saved statistics. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/vector.cuh"

namespace {

/* Vectors that a thread keeps of its row, all loaded before the first is used: FEW where a block's
 * threads can hold a row so, MANY for longer rows. */
constexpr int FEW = 2, MANY = 8;
constexpr int LEAST_THREADS = 128, MOST_THREADS = 1024;

struct forward_args {
    const void *x, *residual, *w;
    void *sum, *y;
    float *rstd;
    int64_t n_rows;
    int n_vectors; /* of a row */
    float dim, eps;
    int warps; /* that share a row */
};

/*
 * `warps` neighbouring warps own a row; a thread owns its vectors lane, lane + 32 * warps, ... One
 * read of x (and residual), one write of the sum and y.
 */
template <typename T, int N, int KEPT, int THREADS>
__global__ void __launch_bounds__(THREADS, 1) forward(forward_args args) {
    __shared__ float partial[THREADS / 32];
    const int stride = 32 * args.warps, lane = (int)threadIdx.x % stride;
    const int64_t row = (int64_t)blockIdx.x * (THREADS / stride) + threadIdx.x / stride;
    const int n = row < args.n_rows ? args.n_vectors : 0;
    const int64_t first = row * args.n_vectors * N;
    const T *x = (const T *)args.x + first, *residual = (const T *)args.residual + first;
    vec<T, N> loaded[KEPT], more[KEPT];
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        if (lane + i * stride < n) {
            loaded[i] = load_vec<T, N>(x + (lane + i * stride) * N);
            if (args.residual != NULL)
                more[i] = load_vec<T, N>(residual + (lane + i * stride) * N);
        }
    float squares = 0;
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        if (lane + i * stride < n) {
            float s[N], r[N];
            unpack(loaded[i], s);
            if (args.residual != NULL) {
                unpack(more[i], r);
#pragma unroll
                for (int k = 0; k < N; k++)
                    s[k] += r[k];
                loaded[i] = pack<T, N>(s);
                *(vec<T, N> *)((T *)args.sum + first + (lane + i * stride) * N) = loaded[i];
                unpack(loaded[i], s); /* rounded, as backward will see the sum */
            }
#pragma unroll
            for (int k = 0; k < N; k++)
                squares += s[k] * s[k];
        }
    squares = warps_sum(squares, args.warps, partial);
    const float rstd = 1.0f / sqrtf(squares / args.dim + args.eps);
    if (n > 0 && lane == 0)
        args.rstd[row] = rstd;
    if (args.y == NULL)
        return;
#pragma unroll
    for (int i = 0; i < KEPT; i++)
        if (lane + i * stride < n) {
            const int at = (lane + i * stride) * N;
            float s[N], w[N];
            unpack(loaded[i], s);
            unpack(load_vec<T, N>((const T *)args.w + at), w);
#pragma unroll
            for (int k = 0; k < N; k++)
                s[k] = s[k] * rstd * w[k];
            store_vec<T, N>((T *)args.y + first + at, s);
        }
}

struct apply_args {
    const void *s, *w;
    const float *rstd;
    void *y;
    int64_t n_rows;
    int n_vectors;
};

/* One warp a row; the same product in the same order as forward. */
template <typename T, int N>
__global__ void __launch_bounds__(LEAST_THREADS) apply(apply_args args) {
    const int64_t row = (int64_t)blockIdx.x * (LEAST_THREADS / 32) + threadIdx.x / 32;
    if (row >= args.n_rows)
        return;
    const int64_t first = row * args.n_vectors * N;
    const float rstd = args.rstd[row];
#pragma unroll 4
    for (int v = (int)threadIdx.x % 32; v < args.n_vectors; v += 32) {
        float s[N], w[N];
        unpack(load_vec<T, N>((const T *)args.s + first + v * N), s);
        unpack(load_vec<T, N>((const T *)args.w + v * N), w);
#pragma unroll
        for (int k = 0; k < N; k++)
            s[k] = s[k] * rstd * w[k];
        store_vec<T, N>((T *)args.y + first + v * N, s);
    }
}

template <typename T, int N, int KEPT, int THREADS>
xp_status launch_rows(const xp_rmsnorm_args *a, int warps, cudaStream_t s) {
    const forward_args args = {.x = a->x,
                               .residual = a->residual,
                               .w = a->w,
                               .sum = a->sum,
                               .y = a->y,
                               .rstd = a->rstd,
                               .n_rows = a->n_rows,
                               .n_vectors = (int)(a->dim / N),
                               .dim = (float)a->dim,
                               .eps = a->eps,
                               .warps = warps};
    const int64_t n_blocks = xp_ceil_div(a->n_rows, THREADS / (32 * warps));
    forward<T, N, KEPT, THREADS><<<(unsigned)n_blocks, THREADS, 0, s>>>(args);
    return xp_cuda_check(cudaGetLastError(), "rmsnorm_forward");
}

/* The least power of two of warps that hold a row with so many vectors a thread. */
int warps_for(int64_t n_vectors, int kept) {
    int warps = 1;
    while ((int64_t)warps * 32 * kept < n_vectors)
        warps *= 2;
    return warps;
}

template <typename T, int N> xp_status launch_forward(const xp_rmsnorm_args *a, cudaStream_t s) {
    const int64_t n_vectors = a->dim / N;
    const int few = warps_for(n_vectors, FEW), many = warps_for(n_vectors, MANY);
    if (few * 32 <= LEAST_THREADS)
        return launch_rows<T, N, FEW, LEAST_THREADS>(a, few, s);
    if (few * 32 <= 2 * LEAST_THREADS)
        return launch_rows<T, N, FEW, 2 * LEAST_THREADS>(a, few, s);
    if (many * 32 <= LEAST_THREADS)
        return launch_rows<T, N, MANY, LEAST_THREADS>(a, many, s);
    if (many * 32 <= MOST_THREADS)
        return launch_rows<T, N, MANY, MOST_THREADS>(a, many, s);
    return xp_error(XP_ENOTSUP, "rmsnorm_forward: rows of %lld elements are too long",
                    (long long)a->dim);
}

template <typename T, int N>
xp_status launch_apply(const xp_rmsnorm_apply_args *a, cudaStream_t s) {
    const apply_args args = {.s = a->s,
                             .w = a->w,
                             .rstd = a->rstd,
                             .y = a->y,
                             .n_rows = a->n_rows,
                             .n_vectors = (int)(a->dim / N)};
    const int64_t n_blocks = xp_ceil_div(a->n_rows, LEAST_THREADS / 32);
    apply<T, N><<<(unsigned)n_blocks, LEAST_THREADS, 0, s>>>(args);
    return xp_cuda_check(cudaGetLastError(), "rmsnorm_apply");
}

} // namespace

extern "C" xp_status xp_cuda_rmsnorm_forward(xp_stream *stream, const xp_rmsnorm_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (args->n_rows == 0)
        return XP_OK;
    const bool aligned = xp_is_aligned(args->x) && xp_is_aligned(args->residual) &&
                         xp_is_aligned(args->sum) && xp_is_aligned(args->y) &&
                         xp_is_aligned(args->w);
    if (args->dtype == XP_F32)
        return aligned && args->dim % 4 == 0 ? launch_forward<float, 4>(args, s)
                                             : launch_forward<float, 1>(args, s);
    return aligned && args->dim % 8 == 0 ? launch_forward<bf16, 8>(args, s)
                                         : launch_forward<bf16, 1>(args, s);
}

extern "C" xp_status xp_cuda_rmsnorm_apply(xp_stream *stream, const xp_rmsnorm_apply_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (args->n_rows == 0)
        return XP_OK;
    const bool aligned = xp_is_aligned(args->s) && xp_is_aligned(args->y) && xp_is_aligned(args->w);
    if (args->dtype == XP_F32)
        return aligned && args->dim % 4 == 0 ? launch_apply<float, 4>(args, s)
                                             : launch_apply<float, 1>(args, s);
    return aligned && args->dim % 8 == 0 ? launch_apply<bf16, 8>(args, s)
                                         : launch_apply<bf16, 1>(args, s);
}
