/*
 * RMSNorm backward: a block owns neighbouring rows and takes them one after the other, a thread the same
 * V vectors of each, so that w and its gradient's sums stay in registers. Rows are on their way for
 * STAGES - 1 turns before they are used, in a ring in shared memory of which a thread reads only what it
 * has copied itself: no barrier but the one of the sum over the row. All blocks are resident at once.
 */
#include "ops/cuda/launch.h"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/rmsnorm_backward_ring.h"
#include "ops/cuda/vector.cuh"
#include "ops/ops_blocks.h"

namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32, STAGES = 4;

struct ring_args {
    const void *s, *w, *dy, *d_residual;
    const float *rstd;
    void *dx;
    float *partial; /* [blocks, D] */
    int64_t n_rows, block_rows;
    int n_vectors; /* of a row */
    float dim;
};

/* Shared memory: [STAGES][V][s, dy, d_residual][THREADS] vectors. */
template <int V> static __device__ __forceinline__ int slot_of(int stage, int i, int which) {
    return ((stage * V + i) * 3 + which) * THREADS;
}

/* Queue this thread's part of a row; an empty group past the last. */
template <typename T, int V>
static __device__ __forceinline__ void load_row(const ring_args &args, int64_t row, int64_t last,
                                                uint4 *ring, int stage) {
    constexpr int N = xp_wide<T>();
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int v = (int)threadIdx.x + i * THREADS;
        if (v >= args.n_vectors || row >= last)
            continue;
        const int64_t at = (row * args.n_vectors + v) * N;
        uint4 *to = ring + slot_of<V>(stage, i, 0) + threadIdx.x;
        copy_async(to, (const T *)args.s + at, true);
        copy_async(to + THREADS, (const T *)args.dy + at, true);
        if (args.d_residual != NULL)
            copy_async(to + 2 * THREADS, (const T *)args.d_residual + at, true);
    }
    commit();
}

/* Over the block, in the order of its warps; callers change between two arrays `partial`. */
static __device__ __forceinline__ float row_sum(float x, float *partial) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        sum += partial[i];
    return sum;
}

template <typename T, int V>
__global__ void __launch_bounds__(THREADS, V == 1 ? 4 : 2) backward_ring(ring_args args) {
    constexpr int N = xp_wide<T>();
    extern __shared__ uint4 ring[];
    __shared__ __align__(16) float shared[2][WARPS];
    float dw[V][N] = {};
    vec<T, N> w[V] = {};
#pragma unroll
    for (int i = 0; i < V; i++)
        if ((int)threadIdx.x + i * THREADS < args.n_vectors)
            w[i] = load_vec<T, N>((const T *)args.w + (threadIdx.x + i * THREADS) * N);
    const int64_t first = blockIdx.x * args.block_rows;
    const int64_t last =
        first + args.block_rows < args.n_rows ? first + args.block_rows : args.n_rows;
    for (int i = 0; i < STAGES - 1; i++)
        load_row<T, V>(args, first + i, last, ring, i);
    int stage = 0;
    float next_rstd = first < last ? args.rstd[first] : 0.0f;
    for (int64_t row = first; row < last; row++, stage = (stage + 1) % STAGES) {
        const float rstd = next_rstd;
        wait_groups<STAGES - 2>();
        load_row<T, V>(args, row + STAGES - 1, last, ring, (stage + STAGES - 1) % STAGES);
        next_rstd = row + 1 < last ? args.rstd[row + 1] : 0.0f;
        vec<T, N> s[V], dy[V];
        float dot = 0;
#pragma unroll
        for (int i = 0; i < V; i++) {
            if ((int)threadIdx.x + i * THREADS >= args.n_vectors)
                continue;
            const uint4 *at = ring + slot_of<V>(stage, i, 0) + threadIdx.x;
            s[i].bits = at[0];
            dy[i].bits = at[THREADS];
            float n[N], g[N], x[N];
            unpack(s[i], n);
            unpack(dy[i], g);
            unpack(w[i], x);
#pragma unroll
            for (int k = 0; k < N; k++) {
                n[k] *= rstd;
                dw[i][k] += g[k] * n[k];
                dot += g[k] * x[k] * n[k];
            }
        }
        dot = row_sum(dot, shared[(row - first) % 2]) / args.dim;
#pragma unroll
        for (int i = 0; i < V; i++) {
            const int v = (int)threadIdx.x + i * THREADS;
            if (v >= args.n_vectors)
                continue;
            float n[N], g[N], x[N], d[N] = {};
            unpack(s[i], n);
            unpack(dy[i], g);
            unpack(w[i], x);
            if (args.d_residual != NULL)
                unpack(vec<T, N>{ring[slot_of<V>(stage, i, 2) + threadIdx.x]}, d);
#pragma unroll
            for (int k = 0; k < N; k++) {
                const float through = rstd * (g[k] * x[k] - n[k] * rstd * dot);
                d[k] = args.d_residual != NULL ? d[k] + through : through;
            }
            store_vec<T, N>((T *)args.dx + (row * args.n_vectors + v) * N, d);
        }
    }
#pragma unroll
    for (int i = 0; i < V; i++) {
        const int v = (int)threadIdx.x + i * THREADS;
        if (v < args.n_vectors)
            store_many<float, N>(args.partial + ((int64_t)blockIdx.x * args.n_vectors + v) * N,
                                 dw[i]);
    }
}

template <typename T, int V>
xp_status launch(const xp_rmsnorm_backward_args *a, cudaStream_t stream) {
    constexpr int SHARED = STAGES * V * 3 * THREADS * 16;
    const ring_args args = {.s = a->s,
                            .w = a->w,
                            .dy = a->dy,
                            .d_residual = a->d_residual,
                            .rstd = a->rstd,
                            .dx = a->dx,
                            .partial = a->scratch,
                            .n_rows = a->n_rows,
                            .block_rows = xp_ops_gpu_block_rows(a->n_rows),
                            .n_vectors = (int)(a->dim / xp_wide<T>()),
                            .dim = (float)a->dim};
    XP_TRY(xp_cuda_give_shared((const void *)backward_ring<T, V>, SHARED, "rmsnorm_backward"));
    backward_ring<T, V>
        <<<(unsigned)xp_ops_n_gpu_blocks(a->n_rows), THREADS, SHARED, stream>>>(args);
    return xp_cuda_check(cudaGetLastError(), "rmsnorm_backward");
}

} // namespace

extern "C" bool xp_cuda_rmsnorm_ring_serves(const xp_rmsnorm_backward_args *a) {
    const int64_t wide = a->dtype == XP_F32 ? 4 : 8;
    return a->dim % wide == 0 && a->dim / wide <= 2 * THREADS && xp_is_aligned(a->s) &&
           xp_is_aligned(a->w) && xp_is_aligned(a->dy) && xp_is_aligned(a->d_residual) &&
           xp_is_aligned(a->dx) && xp_is_aligned(a->scratch);
}

extern "C" xp_status xp_cuda_rmsnorm_ring_backward(cudaStream_t stream,
                                                   const xp_rmsnorm_backward_args *a) {
    const bool one = a->dim / (a->dtype == XP_F32 ? 4 : 8) <= THREADS;
    if (a->dtype == XP_F32)
        return one ? launch<float, 1>(a, stream) : launch<float, 2>(a, stream);
    return one ? launch<bf16, 1>(a, stream) : launch<bf16, 2>(a, stream);
}
