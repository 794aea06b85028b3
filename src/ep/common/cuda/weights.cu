/* Gradients of routing weights: one thread per assignment; grids are bounded and stride. */
#include "ep/common/cuda/plan_common.cuh"

/* out[i] = d_weight of recv assignment i of the round. */
static __global__ void pack_weights_kernel(const xp_ep_cuda_plan p, int64_t round,
                                           const float *d_weight, float *out) {
    const int begin = p.recv_assignment[p.round_row[round]],
              n = p.recv_assignment[p.round_row[round + 1]] - begin;
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < n;
         i += (int)(gridDim.x * blockDim.x))
        out[i] = d_weight[p.assignment_pos[begin + i]];
}

/* d_topk_weight at (token, k) of each send assignment of the round. */
static __global__ void scatter_weights_kernel(const xp_ep_cuda_plan p, int64_t round,
                                              const float *values, float *d_topk_weight) {
    if (is_aborted(p))
        return;
    const int n = p.n_ranks, end = p.send_assignment_base[n];
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < end;
         i += (int)(gridDim.x * blockDim.x)) {
        const int d = owner_of(p.send_assignment_base, i);
        if (i >= p.send_assignment[p.send_round[round * n + d]] &&
            i < p.send_assignment[p.send_round[(round + 1) * n + d]])
            d_topk_weight[p.assignment_entry[i]] = values[i];
    }
}

xp_status xp_ep_cuda_pack_weights(cudaStream_t stream, const xp_ep_cuda_plan *p, int64_t round,
                                  const float *d_weight, float *out) {
    pack_weights_kernel<<<16, 256, 0, stream>>>(*p, round, d_weight, out);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: weights");
}

xp_status xp_ep_cuda_scatter_weights(cudaStream_t stream, const xp_ep_cuda_plan *p, int64_t round,
                                     const float *values, float *d_topk_weight) {
    if (p->n_tokens == 0)
        return XP_OK;
    scatter_weights_kernel<<<weight_blocks(p->n_tokens * p->top_k), 256, 0, stream>>>(
        *p, round, values, d_topk_weight);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: weights");
}

xp_status xp_ep_cuda_load_weights(void) {
    return load_kernels(pack_weights_kernel, scatter_weights_kernel);
}
