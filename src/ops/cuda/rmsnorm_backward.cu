/* RMSNorm backward: dx and the partial sums of dw in one pass over s and dy. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/mma.cuh"
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

/* As rows_sum, of a block of any size. */
template <int ROWS>
static __device__ __forceinline__ void rows_sum_of(float (&x)[ROWS],
                                                   float (*partial)[FEW_THREADS / 32]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        x[r] = warp_sum(x[r]);
    if (threadIdx.x % 32 == 0)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            partial[r][threadIdx.x / 32] = x[r];
    __syncthreads();
    const int n_warps = (int)blockDim.x / 32;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        x[r] = 0;
    for (int i = 0; i < n_warps; i++)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            x[r] += partial[r][i];
}

/* This thread's vectors of ROWS rows in a stage of the ring: [tensor][row][vector][thread]. */
template <int V, int ROWS> struct ring_stage {
    uint4 *at; /* the stage's first vector of this thread */
    __device__ __forceinline__ uint4 *of(int tensor, int r, int i) const {
        return at + ((tensor * ROWS + r) * V + i) * (int)blockDim.x;
    }
};

/* The tensors of a stage. */
enum { RING_S, RING_DY, RING_PAST, RING_TENSORS };

/* Queue the copies of this thread's vectors of rows row to row + ROWS - 1, those before `last`, as one
 * group. */
template <typename T, int N, int V, int ROWS>
static __device__ __forceinline__ void load_stage(const backward_args &args, int64_t row,
                                                  int64_t last, const ring_stage<V, ROWS> &to) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < V; i++) {
            const int v = (int)(threadIdx.x + i * blockDim.x);
            if (v >= args.n_vectors || row + r >= last)
                continue;
            const int64_t at = ((row + r) * args.n_vectors + v) * N;
            copy_async((bf16 *)to.of(RING_S, r, i), (const bf16 *)((const T *)args.s + at), true);
            copy_async((bf16 *)to.of(RING_DY, r, i), (const bf16 *)((const T *)args.dy + at), true);
            if (args.d_residual != NULL)
                copy_async((bf16 *)to.of(RING_PAST, r, i),
                           (const bf16 *)((const T *)args.d_residual + at), true);
        }
    commit();
}

template <typename T, int N> static __device__ __forceinline__ vec<T, N> vec_of(const uint4 *at) {
    return {*at};
}

/* This thread's part of dw and of each row's dot product of dy w with the normalised row. */
template <typename T, int N, int V, int ROWS>
static __device__ __forceinline__ void add_stage(const backward_args &args, int64_t row,
                                                 int64_t last, const ring_stage<V, ROWS> &from,
                                                 const vec<T, N> (&w)[V], const float (&rstd)[ROWS],
                                                 float (&dw)[V][N], float (&dot)[ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        dot[r] = 0;
#pragma unroll
        for (int i = 0; i < V; i++) {
            if ((int)(threadIdx.x + i * blockDim.x) >= args.n_vectors || row + r >= last)
                continue;
            float n[N], g[N], weight[N];
            unpack(vec_of<T, N>(from.of(RING_S, r, i)), n);
            unpack(vec_of<T, N>(from.of(RING_DY, r, i)), g);
            unpack(w[i], weight);
#pragma unroll
            for (int k = 0; k < N; k++) {
                n[k] *= rstd[r];
                dw[i][k] += g[k] * n[k];
                dot[r] += g[k] * weight[k] * n[k];
            }
        }
    }
}

/* dx of the stage's rows from their dot products. */
template <typename T, int N, int V, int ROWS>
static __device__ __forceinline__ void
store_stage(const backward_args &args, int64_t row, int64_t last, const ring_stage<V, ROWS> &from,
            const vec<T, N> (&w)[V], const float (&rstd)[ROWS], const float (&dot)[ROWS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < V; i++) {
            const int v = (int)(threadIdx.x + i * blockDim.x);
            if (v >= args.n_vectors || row + r >= last)
                continue;
            const float mean = dot[r] / args.dim;
            float n[N], g[N], weight[N], d[N];
            unpack(vec_of<T, N>(from.of(RING_S, r, i)), n);
            unpack(vec_of<T, N>(from.of(RING_DY, r, i)), g);
            unpack(w[i], weight);
            if (args.d_residual != NULL)
                unpack(vec_of<T, N>(from.of(RING_PAST, r, i)), d);
#pragma unroll
            for (int k = 0; k < N; k++) {
                const float through = rstd[r] * (g[k] * weight[k] - n[k] * rstd[r] * mean);
                d[k] = args.d_residual != NULL ? d[k] + through : through;
            }
            store_vec<T, N>((T *)args.dx + ((row + r) * args.n_vectors + v) * N, d);
        }
}

/*
 * `backward` with the rows on their way to shared memory STAGES - 1 turns ahead: asynchronous copies
 * take no registers, so that more blocks are on an SM and each has loads in flight while it adds and
 * stores. A thread reads only what it has copied, so a wait for its own copies is enough. The sums and
 * their order are those of `backward`; a block has as many threads as share a row evenly.
 */
template <typename T, int N, int V, int ROWS, int STAGES>
__global__ void __launch_bounds__(FEW_THREADS, V <= 2 ? 4 : 2) backward_ring(backward_args args) {
    extern __shared__ uint4 ring[];
    __shared__ float shared[2][ROWS][FEW_THREADS / 32];
    const int stage_vectors = RING_TENSORS * ROWS * V * (int)blockDim.x;
    vec<T, N> w[V];
    float dw[V][N] = {};
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int v = (int)(threadIdx.x + i * blockDim.x);
        w[i] = {};
        if (v < args.n_vectors)
            w[i] = load_vec<T, N>((const T *)args.w + v * N);
    }
    const int64_t first = blockIdx.x * args.block_rows;
    const int64_t last =
        first + args.block_rows < args.n_rows ? first + args.block_rows : args.n_rows;
#pragma unroll
    for (int k = 0; k < STAGES - 1; k++)
        load_stage<T, N, V, ROWS>(args, first + k * ROWS, last,
                                  {ring + k * stage_vectors + threadIdx.x});
    int turn = 0, stage = 0, fill = STAGES - 1;
    for (int64_t row = first; row < last; row += ROWS, turn ^= 1) {
        load_stage<T, N, V, ROWS>(args, row + (STAGES - 1) * ROWS, last,
                                  {ring + fill * stage_vectors + threadIdx.x});
        const ring_stage<V, ROWS> from = {ring + stage * stage_vectors + threadIdx.x};
        fill = stage;
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        float rstd[ROWS], dot[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            rstd[r] = row + r < last ? args.rstd[row + r] : 0.0f;
        wait_groups<STAGES - 1>();
        add_stage<T, N, V, ROWS>(args, row, last, from, w, rstd, dw, dot);
        rows_sum_of<ROWS>(dot, shared[turn]);
        store_stage<T, N, V, ROWS>(args, row, last, from, w, rstd, dot);
    }
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int v = (int)(threadIdx.x + i * blockDim.x);
        if (v < args.n_vectors)
            store_many<float, N>(args.partial + ((int64_t)blockIdx.x * args.n_vectors + v) * N,
                                 dw[i]);
    }
}

template <typename T, int N, int V, int ROWS, int STAGES>
xp_status launch_ring(const backward_args &args, unsigned n_blocks, cudaStream_t stream) {
    const unsigned threads = (unsigned)(xp_ceil_div(xp_ceil_div(args.n_vectors, V), 32) * 32);
    const size_t shared = sizeof(uint4) * RING_TENSORS * ROWS * V * STAGES * threads;
    XP_TRY(xp_cuda_give_shared((const void *)backward_ring<T, N, V, ROWS, STAGES>, shared,
                               "rmsnorm_backward"));
    backward_ring<T, N, V, ROWS, STAGES><<<n_blocks, threads, shared, stream>>>(args);
    return xp_cuda_check(cudaGetLastError(), "rmsnorm_backward");
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
    if constexpr (N > 1) {
        if (n_vectors <= FEW_THREADS / 2)
            return launch_ring<T, N, 1, 2, 4>(args, n_blocks, stream);
        if (n_vectors <= FEW_THREADS)
            return launch_ring<T, N, 1, 2, 2>(args, n_blocks, stream);
        if (n_vectors <= 2 * FEW_THREADS)
            return launch_ring<T, N, 2, 1, 2>(args, n_blocks, stream);
        if (n_vectors <= 4 * FEW_THREADS)
            return launch_ring<T, N, 4, 1, 2>(args, n_blocks, stream);
    }
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
                         xp_is_aligned(a->d_residual) && xp_is_aligned(a->dx) &&
                         xp_is_aligned(a->w) && xp_is_aligned(a->scratch);
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
                                       .rest = NULL,
                                       .n_first = 0,
                                       .out_dtype = args->dw_dtype,
                                       .acc = args->acc};
    return xp_cuda_add_partials(s, &sums);
}
