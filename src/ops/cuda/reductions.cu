/* Sums in fp64 in a fixed order. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/tile_gemm.h"
#include "ops/cuda/vector.cuh"
#include "ops/ops_blocks.h"

namespace {

constexpr int THREADS = 256, LAST_THREADS = 1024;

/* What is left to do with the sums of the blocks: out = their sum (+ out). */
struct total {
    uint32_t *counter; /* of the stream: 0 before and after; NULL: another kernel adds the sums */
    double *out;
    bool acc;
};

/* Sum of squares of this thread's vectors: AHEAD are loaded before the first is used. */
template <typename T, int N>
static __device__ __forceinline__ double square_vectors(int64_t rest, const T *x) {
    constexpr int AHEAD = 8;
    double sum = 0;
    for (int64_t first = threadIdx.x * N; first + N <= rest; first += AHEAD * THREADS * N) {
        vec<T, N> bits[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            if (first + a * THREADS * N + N <= rest)
                bits[a] = load_vec<T, N>(x + first + a * THREADS * N);
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            if (first + a * THREADS * N + N <= rest) {
                float v[N];
                unpack(bits[a], v);
#pragma unroll
                for (int k = 0; k < N; k++)
                    sum += (double)v[k] * (double)v[k];
            }
    }
    return sum;
}

/* The order of add_all(), whose threads and warps are LAST_THREADS / THREADS times as many. */
static __device__ void add_blocks(const double *sums, const total &t) {
    constexpr int TIMES = LAST_THREADS / THREADS;
    __shared__ double partial[LAST_THREADS / 32];
    double sum[TIMES] = {};
#pragma unroll 2
    for (int64_t first = threadIdx.x; first < gridDim.x; first += LAST_THREADS)
#pragma unroll
        for (int k = 0; k < TIMES; k++)
            if (first + k * THREADS < gridDim.x)
                sum[k] += __ldcg(sums + first + k * THREADS);
#pragma unroll
    for (int k = 0; k < TIMES; k++) {
        sum[k] = warp_sum(sum[k]);
        if (threadIdx.x % 32 == 0)
            partial[(threadIdx.x + k * THREADS) / 32] = sum[k];
    }
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    double all = 0;
    for (int i = 0; i < LAST_THREADS / 32; i++)
        all += partial[i];
    *t.out = t.acc ? *t.out + all : all;
    *t.counter = 0;
}

/* A block owns XP_OPS_SUM_BLOCK neighbouring elements, a thread vectors threadIdx.x, threadIdx.x +
 * THREADS, ... of them. The block that is done last adds the sums of all, in their order. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    square_blocks(int64_t n, const T *x, double *sums, total t) {
    __shared__ double partial[THREADS / 32];
    __shared__ bool is_last;
    const int64_t first = (int64_t)blockIdx.x * XP_OPS_SUM_BLOCK;
    const int64_t rest = n - first < XP_OPS_SUM_BLOCK ? n - first : XP_OPS_SUM_BLOCK;
    double sum = square_vectors<T, N>(rest, x + first);
    const int64_t tail = rest / N * N + threadIdx.x; /* fewer than N elements */
    if (tail < rest) {
        const double v = (double)to_float(x[first + tail]);
        sum += v * v;
    }
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
        __threadfence();
        is_last = t.counter != NULL && atomicAdd(t.counter, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last)
        return;
    __threadfence();
    add_blocks(sums, t);
}

/* One block: out = sum of n values (+ out). */
template <typename T>
__global__ void __launch_bounds__(LAST_THREADS)
    add_all(int64_t n, const T *x, double *out, bool acc) {
    __shared__ double partial[LAST_THREADS / 32];
    double sum = 0;
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < n; i += LAST_THREADS)
        sum += (double)x[i];
    sum = block_sum(sum, partial);
    if (threadIdx.x == 0)
        *out = acc ? *out + sum : sum;
}

/* One thread: some hundred numbers in the order that the host would take. */
__global__ void clip(const xp_clip_scale_args a) {
    double total = 0;
    bool stop = false;
#pragma unroll 16
    for (int64_t i = 0; i < a.n; i++)
        total += a.squares[i];
    for (int i = 0; i < 2; i++)
        stop |= a.stop[i] != nullptr && *(const volatile int32_t *)a.stop[i] != 0;
    const double factor = a.max_norm > 0 ? a.max_norm / (sqrt(total) + 1e-6) : 1;
    *a.scale = stop || !isfinite(total) ? NAN : factor < 1 ? (float)factor : 1.0f;
}

template <typename T, int N>
xp_status launch_squares(const xp_sum_squares_args *args, const total &t, cudaStream_t s) {
    square_blocks<T, N><<<(unsigned)xp_ceil_div(args->n, XP_OPS_SUM_BLOCK), THREADS, 0, s>>>(
        args->n, (const T *)args->x, args->scratch, t);
    return xp_cuda_check(cudaGetLastError(), "sum_squares");
}

xp_status square_all(const xp_sum_squares_args *args, const total &t, cudaStream_t s) {
    const bool wide = xp_is_aligned(args->x);
    if (args->dtype == XP_F32)
        return wide ? launch_squares<float, 4>(args, t, s) : launch_squares<float, 1>(args, t, s);
    return wide ? launch_squares<bf16, 8>(args, t, s) : launch_squares<bf16, 1>(args, t, s);
}

} // namespace

extern "C" xp_status xp_cuda_sum_squares(xp_stream *stream, const xp_sum_squares_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    const int64_t n_blocks = xp_ceil_div(args->n, XP_OPS_SUM_BLOCK);
    total t = {.counter = NULL, .out = args->out, .acc = args->acc};
    if (n_blocks > 0) {
        XP_TRY(xp_cuda_tile_counter((xp_cuda_device *)stream->device, s, &t.counter));
        XP_TRY(square_all(args, t, s));
    }
    if (t.counter != NULL)
        return XP_OK;
    add_all<double><<<1, LAST_THREADS, 0, s>>>(n_blocks, args->scratch, args->out, args->acc);
    return xp_cuda_check(cudaGetLastError(), "sum_squares");
}

extern "C" xp_status xp_cuda_clip_scale(xp_stream *stream, const xp_clip_scale_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    clip<<<1, 1, 0, s>>>(*args);
    return xp_cuda_check(cudaGetLastError(), "clip_scale");
}

extern "C" xp_status xp_cuda_sum(xp_stream *stream, const xp_sum_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    add_all<float><<<1, LAST_THREADS, 0, s>>>(args->n, args->x, args->out, false);
    return xp_cuda_check(cudaGetLastError(), "sum");
}
