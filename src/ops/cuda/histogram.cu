/* How often each expert was selected. Sums of integers: atomics give the same result in any order. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"

namespace {

constexpr int THREADS = 256, EACH = 16, MOST_IN_SHARED = 12 * 1024;

/* A block counts THREADS * EACH ids in shared memory, then adds its counts to the result. */
__global__ void __launch_bounds__(THREADS)
    in_shared(int64_t n, int n_experts, const int32_t *ids, unsigned long long *counts) {
    extern __shared__ int found[];
    for (int e = (int)threadIdx.x; e < n_experts; e += THREADS)
        found[e] = 0;
    __syncthreads();
    const int64_t first = (int64_t)blockIdx.x * THREADS * EACH + threadIdx.x;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int64_t at = first + i * THREADS;
        const int32_t id = at < n ? ids[at] : -1;
        if (id >= 0 && id < n_experts)
            atomicAdd(&found[id], 1);
    }
    __syncthreads();
    for (int e = (int)threadIdx.x; e < n_experts; e += THREADS)
        if (found[e] != 0)
            atomicAdd(&counts[e], (unsigned long long)found[e]);
}

__global__ void __launch_bounds__(THREADS)
    in_memory(int64_t n, int n_experts, const int32_t *ids, unsigned long long *counts) {
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at < n && ids[at] >= 0 && ids[at] < n_experts)
        atomicAdd(&counts[ids[at]], 1ULL);
}

} // namespace

extern "C" xp_status xp_cuda_histogram(xp_stream *stream, const xp_histogram_args *a) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (!a->acc)
        XP_TRY(xp_cuda_check(
            cudaMemsetAsync(a->counts, 0, sizeof *a->counts * (size_t)a->n_experts, s),
            "histogram"));
    if (a->n == 0)
        return XP_OK;
    unsigned long long *counts = (unsigned long long *)a->counts;
    if (a->n_experts <= MOST_IN_SHARED)
        in_shared<<<(unsigned)xp_ceil_div(a->n, THREADS * EACH), THREADS,
                    sizeof(int) * (size_t)a->n_experts, s>>>(a->n, a->n_experts, a->ids, counts);
    else
        in_memory<<<(unsigned)xp_ceil_div(a->n, THREADS), THREADS, 0, s>>>(a->n, a->n_experts,
                                                                           a->ids, counts);
    return xp_cuda_check(cudaGetLastError(), "histogram");
}
