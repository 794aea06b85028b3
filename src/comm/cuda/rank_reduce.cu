/*
 * The arithmetic of reductions between ranks whose memory is on one GPU: a thread takes 16 bytes
 * (or one element) of every source, adds in ascending rank order in fp32 (fp64 for fp64) and writes
 * all results. Bytes moved: sources once, results once.
 */
#include "comm/cuda/rank_reduce.h"

#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

enum { MOST_RANKS = XP_COMM_MAX_ORDERED, N_THREADS = 256 };

/* What one access moves. */
template <typename T, int N> struct alignas(sizeof(T) * N) pack { T at[N]; };

struct pointers {
    const void *src[MOST_RANKS];
    void *dst[MOST_RANKS];
    int n_src, n_dst;
};

template <typename A> static __device__ __forceinline__ A fold(A acc, A x, xp_reduce_op op) {
    if (op == XP_SUM)
        return acc + x;
    const bool better = op == XP_MAX ? x > acc : x < acc;
    return better || x != x ? x : acc; /* NaN wins */
}

/* T: what is stored, A: what is added. */
template <typename T, typename A> static __device__ __forceinline__ A widened(T x) {
    return (A)x;
}
template <> __device__ __forceinline__ float widened<bf16, float>(bf16 x) {
    return __bfloat162float(x);
}
template <typename T, typename A> static __device__ __forceinline__ T narrowed(A x) {
    return (T)x;
}
template <> __device__ __forceinline__ bf16 narrowed<bf16, float>(float x) {
    return __float2bfloat16_rn(x);
}

template <typename T, typename A, int N>
static __global__ void __launch_bounds__(N_THREADS)
    reduce_kernel(const pointers p, int64_t n, xp_reduce_op op) {
    const int64_t step = (int64_t)gridDim.x * N_THREADS * N;
    for (int64_t i = ((int64_t)blockIdx.x * N_THREADS + threadIdx.x) * N; i < n; i += step) {
        A acc[N];
        for (int k = 0; k < p.n_src; k++) {
            const pack<T, N> x = *(const pack<T, N> *)((const T *)p.src[k] + i);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const A value = widened<T, A>(x.at[j]);
                acc[j] = k == 0 ? value : fold(acc[j], value, op);
            }
        }
        pack<T, N> result;
#pragma unroll
        for (int j = 0; j < N; j++)
            result.at[j] = narrowed<T, A>(acc[j]);
        for (int k = 0; k < p.n_dst; k++)
            *(pack<T, N> *)((T *)p.dst[k] + i) = result;
    }
}

template <typename T, typename A>
static void launch(cudaStream_t stream, const pointers &p, int64_t n, xp_reduce_op op, bool wide,
                   int n_sms) {
    constexpr int N = 16 / (int)sizeof(T);
    const int64_t wanted = (n + N_THREADS - 1) / N_THREADS / (wide ? N : 1) + 1;
    const unsigned n_blocks = (unsigned)(wanted < 8 * n_sms ? wanted : 8 * n_sms);
    if (wide)
        reduce_kernel<T, A, N><<<n_blocks, N_THREADS, 0, stream>>>(p, n, op);
    else
        reduce_kernel<T, A, 1><<<n_blocks, N_THREADS, 0, stream>>>(p, n, op);
}

xp_status xp_cuda_rank_reduce(xp_stream *stream, const void *data) {
    const xp_reduce_args *args = (const xp_reduce_args *)data;
    cudaStream_t s;
    pointers p = {};
    if (args->n == 0 || args->n_src == 0)
        return XP_OK;
    if (args->n_src > MOST_RANKS || args->n_dst > MOST_RANKS)
        return xp_error(XP_ENOTSUP, "reduction over %d ranks on one GPU: at most %d work",
                        args->n_src, MOST_RANKS);
    XP_TRY(xp_cuda_enter(stream, &s));
    const int n_each = 16 / (int)xp_dtype_bytes(args->dtype);
    bool wide = args->n % n_each == 0;
    p.n_src = args->n_src;
    p.n_dst = args->n_dst;
    for (int i = 0; i < p.n_src; i++) {
        p.src[i] = args->src[i];
        wide = wide && (uintptr_t)args->src[i] % 16 == 0;
    }
    for (int i = 0; i < p.n_dst; i++) {
        p.dst[i] = args->dst[i];
        wide = wide && (uintptr_t)args->dst[i] % 16 == 0;
    }
    const int n_sms = ((const xp_cuda_device *)xp_stream_device(stream))->n_sms;
    switch (args->dtype) {
    case XP_F32:
        launch<float, float>(s, p, args->n, args->op, wide, n_sms);
        break;
    case XP_BF16:
        launch<bf16, float>(s, p, args->n, args->op, wide, n_sms);
        break;
    case XP_F64:
        launch<double, double>(s, p, args->n, args->op, wide, n_sms);
        break;
    case XP_I32:
        launch<int32_t, int32_t>(s, p, args->n, args->op, wide, n_sms);
        break;
    default:
        launch<int64_t, int64_t>(s, p, args->n, args->op, wide, n_sms);
        break;
    }
    return xp_cuda_check(cudaGetLastError(), "reduction between ranks");
}
