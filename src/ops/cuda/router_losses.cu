/* Auxiliary load-balance loss and z-loss of the router. Off by default; cheap beside its GEMM. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/reduce.cuh"

namespace {

constexpr int THREADS = 1024, TILE = 32;

/* Weight of a sequence: its valid tokens times the scale of the loss. All threads get it. */
static __device__ double valid_tokens(const int32_t *targets, int64_t n, double *partial) {
    double valid = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        valid += targets[i] >= 0;
    return block_sum(valid, partial);
}

/* Block (s, tile of TILE experts): counts the assignments of its experts in sequence s. */
__global__ void __launch_bounds__(THREADS) density(xp_router_losses_args args) {
    __shared__ double partial[THREADS / 32];
    __shared__ int assignments[TILE];
    const int64_t s = blockIdx.x, n = args.seq_len;
    const int first = (int)blockIdx.y * TILE;
    if (threadIdx.x < TILE)
        assignments[threadIdx.x] = 0;
    const double valid =
        valid_tokens(args.targets + s * n, n, partial); /* its barriers: assignments */
    const int32_t *ids = args.topk_idx + s * n * args.top_k;
    for (int64_t i = threadIdx.x; i < n * args.top_k; i += THREADS) {
        const int e = ids[i] - first;
        if (e >= 0 && e < TILE)
            atomicAdd(&assignments[e], 1); /* integers: the same in any order */
    }
    __syncthreads();
    const int e = first + (int)threadIdx.x;
    if (threadIdx.x >= TILE || e >= args.n_experts)
        return;
    const double weight = (double)args.aux_coeff * (double)args.loss_scale * valid;
    args.aux_density[s * args.n_experts + e] =
        (float)(weight * args.n_experts * (double)assignments[threadIdx.x] /
                (double)(n * args.top_k) / (double)n);
}

/* lse = 0 where the token is not valid. */
__global__ void mask_lse(xp_router_losses_args args) {
    const int64_t t = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (t < args.n_tokens && args.targets[t] < 0)
        args.lse[t] = 0;
}

/* One block adds both losses: aux is the sum of density * score over all tokens and experts,
 * because the density is the loss's derivative by each score. */
__global__ void __launch_bounds__(THREADS) add_losses(xp_router_losses_args args) {
    __shared__ double partial[THREADS / 32];
    double aux = 0, z = 0;
    const int64_t n = args.aux_density != NULL ? args.n_tokens * args.n_experts : 0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < n; i += THREADS) {
        const int64_t t = i / args.n_experts, e = i - t * args.n_experts;
        const float d = args.aux_density[t / args.seq_len * args.n_experts + e];
        aux += (double)d * (double)args.scores[i];
    }
    for (int64_t t = threadIdx.x; args.lse != NULL && t < args.n_tokens; t += THREADS)
        z += (double)args.lse[t] * (double)args.lse[t];
    aux = block_sum(aux, partial);
    z = block_sum(z, partial);
    if (threadIdx.x != 0)
        return;
    args.losses[0] += aux;
    args.losses[1] += z * (double)args.z_coeff * (double)args.loss_scale;
}

} // namespace

extern "C" xp_status xp_cuda_router_losses(xp_stream *stream, const xp_router_losses_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (args->n_tokens == 0)
        return XP_OK;
    if (args->aux_density != NULL) {
        const dim3 grid((unsigned)(args->n_tokens / args->seq_len),
                        (unsigned)xp_ceil_div(args->n_experts, TILE));
        density<<<grid, THREADS, 0, s>>>(*args);
    }
    if (args->lse != NULL)
        mask_lse<<<(unsigned)xp_ceil_div(args->n_tokens, THREADS), THREADS, 0, s>>>(*args);
    if (args->losses != NULL)
        add_losses<<<1, THREADS, 0, s>>>(*args);
    return xp_cuda_check(cudaGetLastError(), "router_losses");
}
