/* RMSNorm backward: dx and the partial sums of dw in one pass over s and dy. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/partial_sums.h"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/vector.cuh"
#include "ops/ops_blocks.h"

namespace {

constexpr int FEW_THREADS = 256, MANY_THREADS = 1024;

struct backward_args {
    const void *s, *w, *dy, *d_residual;
    const float *rstd;
    void *dx;
    float *partial; /* [blocks, D] */
    int64_t n_rows, block_rows;
    int n_vectors; /* of a row */
    float dim;
};

/*
 * Sums of ROWS rows over the block, each in the order of its warps; every thread gets them. One barrier:
 * callers change between two arrays `partial`, so that a thread that is one turn ahead writes the other.
 */
template <int ROWS, int WARPS>
static __device__ __forceinline__ void rows_sum(float (&x)[ROWS], float (*partial)[WARPS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        x[r] = warp_sum(x[r]);
    if (threadIdx.x % 32 == 0)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            partial[r][threadIdx.x / 32] = x[r];
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++)
            sum += partial[r][i];
        x[r] = sum;
    }
}

/*
 * A block owns block_rows rows, one after the other, and sums their part of dw; a thread owns the
 * vectors threadIdx.x, threadIdx.x + THREADS, ... (at most V) of every row, so that w and its
 * sums stay in registers. ROWS rows are loaded before the first is used. Moves s, dy (d_residual)
 * and dx once.
 */
template <typename T, int N, int V, int ROWS, int THREADS>
__global__ void __launch_bounds__(THREADS, V == 1 ? 2 : 1) backward(backward_args args) {
    __shared__ __align__(16) float shared[2][ROWS][THREADS / 32];
    float w[V][N], dw[V][N];
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int v = (int)(threadIdx.x + i * THREADS);
        const bool mine = v < args.n_vectors;
#pragma unroll
        for (int k = 0; k < N; k++) {
            w[i][k] = mine ? to_float(((const T *)args.w)[v * N + k]) : 0.0f;
            dw[i][k] = 0;
        }
    }
    const int64_t first = blockIdx.x * args.block_rows;
    const int64_t last =
        first + args.block_rows < args.n_rows ? first + args.block_rows : args.n_rows;
    int turn = 0;
    for (int64_t row = first; row < last; row += ROWS, turn ^= 1) {
        vec<T, N> s[ROWS][V], dy[ROWS][V], past[ROWS][V];
        float rstd[ROWS], dot[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            dot[r] = 0;
            rstd[r] = row + r < last ? args.rstd[row + r] : 0.0f;
#pragma unroll
            for (int i = 0; i < V; i++) {
                const int v = (int)(threadIdx.x + i * THREADS);
                if (v >= args.n_vectors || row + r >= last)
                    continue;
                const int64_t at = ((row + r) * args.n_vectors + v) * N;
                s[r][i] = load_vec<T, N>((const T *)args.s + at);
                dy[r][i] = load_vec<T, N>((const T *)args.dy + at);
                if (args.d_residual != NULL)
                    past[r][i] = load_vec<T, N>((const T *)args.d_residual + at);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int i = 0; i < V; i++) {
                const int v = (int)(threadIdx.x + i * THREADS);
                if (v >= args.n_vectors || row + r >= last)
                    continue;
                float n[N], g[N];
                unpack(s[r][i], n);
                unpack(dy[r][i], g);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    n[k] *= rstd[r];
                    dw[i][k] += g[k] * n[k];
                    dot[r] += g[k] * w[i][k] * n[k];
                }
            }
        rows_sum<ROWS, THREADS / 32>(dot, shared[turn]);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            dot[r] /= args.dim;
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int i = 0; i < V; i++) {
                const int v = (int)(threadIdx.x + i * THREADS);
                if (v >= args.n_vectors || row + r >= last)
                    continue;
                float n[N], g[N], d[N];
                unpack(s[r][i], n);
                unpack(dy[r][i], g);
                if (args.d_residual != NULL)
                    unpack(past[r][i], d);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    const float through = rstd[r] * (g[k] * w[i][k] - n[k] * rstd[r] * dot[r]);
                    d[k] = args.d_residual != NULL ? d[k] + through : through;
                }
                store_vec<T, N>((T *)args.dx + ((row + r) * args.n_vectors + v) * N, d);
            }
    }
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int v = (int)(threadIdx.x + i * THREADS);
        if (v < args.n_vectors)
#pragma unroll
            for (int k = 0; k < N; k++)
                args.partial[((int64_t)blockIdx.x * args.n_vectors + v) * N + k] = dw[i][k];
    }
}

template <typename T, int N>
xp_status launch(const xp_rmsnorm_backward_args *a, cudaStream_t stream) {
    const int64_t n_vectors = a->dim / N;
    const backward_args args = {.s = a->s,
                                .w = a->w,
                                .dy = a->dy,
                                .d_residual = a->d_residual,
                                .rstd = a->rstd,
                                .dx = a->dx,
                                .partial = a->scratch,
                                .n_rows = a->n_rows,
                                .block_rows = xp_ops_gpu_block_rows(a->n_rows),
                                .n_vectors = (int)n_vectors,
                                .dim = (float)a->dim};
    const unsigned n_blocks = (unsigned)xp_ops_n_gpu_blocks(a->n_rows);
    if (n_vectors <= FEW_THREADS)
        backward<T, N, 1, 4, FEW_THREADS><<<n_blocks, FEW_THREADS, 0, stream>>>(args);
    else if (n_vectors <= 2 * FEW_THREADS)
        backward<T, N, 2, 2, FEW_THREADS><<<n_blocks, FEW_THREADS, 0, stream>>>(args);
    else if (n_vectors <= 4 * FEW_THREADS)
        backward<T, N, 4, 1, FEW_THREADS><<<n_blocks, FEW_THREADS, 0, stream>>>(args);
    else if (n_vectors <= 4 * MANY_THREADS)
        backward<T, N, 4, 1, MANY_THREADS><<<n_blocks, MANY_THREADS, 0, stream>>>(args);
    else
        return xp_error(XP_ENOTSUP, "rmsnorm_backward: rows of %lld elements are too long",
                        (long long)a->dim);
    return xp_cuda_check(cudaGetLastError(), "rmsnorm_backward");
}

xp_status backward_rows(const xp_rmsnorm_backward_args *a, cudaStream_t stream) {
    const bool aligned = xp_is_aligned(a->s) && xp_is_aligned(a->dy) &&
                         xp_is_aligned(a->d_residual) && xp_is_aligned(a->dx);
    if (a->dtype == XP_F32)
        return aligned && a->dim % 4 == 0 ? launch<float, 4>(a, stream)
                                          : launch<float, 1>(a, stream);
    return aligned && a->dim % 8 == 0 ? launch<bf16, 8>(a, stream) : launch<bf16, 1>(a, stream);
}

} // namespace

extern "C" xp_status xp_cuda_rmsnorm_backward(xp_stream *stream,
                                              const xp_rmsnorm_backward_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (args->n_rows > 0 && args->part != XP_NORM_WEIGHTS)
        XP_TRY(backward_rows(args, s));
    if (args->part == XP_NORM_ROWS)
        return XP_OK;
    const xp_cuda_partial_sums sums = {.partial = args->scratch,
                                       .n_partials = xp_ops_n_gpu_blocks(args->n_rows),
                                       .ld = args->dim,
                                       .width = args->dim,
                                       .out = args->dw,
                                       .out_dtype = args->dw_dtype,
                                       .acc = args->acc};
    return xp_cuda_add_partials(s, &sums);
}
