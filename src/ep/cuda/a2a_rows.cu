/* Rows between tensors and the buffers of an all-to-all: a warp a row, read once and written once.
 */
#include "ep/cuda/moves.cuh"

template <typename V>
static __global__ void __launch_bounds__(MOVE_THREADS)
    pack_rows_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t n_each, const V *x, V *out) {
    const int n = p.n_ranks, end = p.send_assignment_base[n];
    for (int64_t i = warp_id(); i < end; i += warp_count()) {
        const int d = owner_of(p.send_assignment_base, (int)i);
        if (i < p.send_assignment[p.send_round[round * n + d]] ||
            i >= p.send_assignment[p.send_round[(round + 1) * n + d]])
            continue;
        copy_row((char *)(out + i * n_each), 1, x + p.assignment_entry[i] / p.top_k * n_each,
                 n_each);
    }
}

template <typename V>
static __global__ void __launch_bounds__(MOVE_THREADS)
    unpack_rows_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t n_each, const V *in,
                       V *recv) {
    const int begin = p.round_row[round], n = p.round_row[round + 1] - begin;
    const int first = p.recv_assignment[begin];
    for (int64_t i = warp_id(); i < n; i += warp_count())
        copy_row((char *)(recv + i * n_each), 1,
                 in + (int64_t)(p.recv_assignment[begin + i] - first) * n_each, n_each);
}

template <typename V>
static __global__ void __launch_bounds__(MOVE_THREADS)
    pack_assignments_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t n_each, const V *y,
                            V *in) {
    const int begin = p.recv_assignment[p.round_row[round]],
              n = p.recv_assignment[p.round_row[round + 1]] - begin;
    for (int64_t i = warp_id(); i < n; i += warp_count())
        copy_row((char *)(in + i * n_each), 1, y + p.assignment_pos[begin + i] * n_each, n_each);
}

static __global__ void pack_weights_kernel(const xp_ep_cuda_plan p, int64_t round,
                                           const float *d_weight, float *out) {
    const int begin = p.recv_assignment[p.round_row[round]],
              n = p.recv_assignment[p.round_row[round + 1]] - begin;
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < n;
         i += (int)(gridDim.x * blockDim.x))
        out[i] = d_weight[p.assignment_pos[begin + i]];
}

xp_status xp_ep_cuda_pack_rows(cudaStream_t stream, const xp_ep_cuda_plan *p,
                               const xp_ep_cuda_rows *rows, const void *x, void *out) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    if (p->n_tokens == 0)
        return XP_OK;
    const unsigned n_blocks = move_blocks(rows, p->n_tokens * p->top_k);
    if (moves_wide(rows, x, out))
        pack_rows_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(*p, rows->round, n_bytes / 16,
                                                                (const int4 *)x, (int4 *)out);
    else
        pack_rows_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(
            *p, rows->round, n_bytes / 2, (const unsigned short *)x, (unsigned short *)out);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch: packing");
}

xp_status xp_ep_cuda_unpack_rows(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                 const xp_ep_cuda_rows *rows, const void *in, void *recv) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    const unsigned n_blocks = move_blocks(rows, p->recv_capacity);
    if (moves_wide(rows, in, recv))
        unpack_rows_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(*p, rows->round, n_bytes / 16,
                                                                  (const int4 *)in, (int4 *)recv);
    else
        unpack_rows_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(
            *p, rows->round, n_bytes / 2, (const unsigned short *)in, (unsigned short *)recv);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch: unpacking");
}

xp_status xp_ep_cuda_pack_assignments(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                      const xp_ep_cuda_rows *rows, const void *y, void *in) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    const unsigned n_blocks = move_blocks(rows, p->assignment_capacity);
    if (moves_wide(rows, y, in))
        pack_assignments_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(
            *p, rows->round, n_bytes / 16, (const int4 *)y, (int4 *)in);
    else
        pack_assignments_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(
            *p, rows->round, n_bytes / 2, (const unsigned short *)y, (unsigned short *)in);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: packing");
}

xp_status xp_ep_cuda_pack_weights(cudaStream_t stream, const xp_ep_cuda_plan *p, int64_t round,
                                  const float *d_weight, float *out) {
    pack_weights_kernel<<<16, 256, 0, stream>>>(*p, round, d_weight, out);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: weights");
}
