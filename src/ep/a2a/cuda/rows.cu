/*
 * Assignment rows between tensors and the buffers of an all-to-all. One warp per row, which is read
 * and written once; grids are bounded and stride. No block waits for another.
 */
#include "ep/a2a/cuda/kernels.h"

#include "ep/common/cuda/rows.cuh"

template <typename V>
static __global__ void __launch_bounds__(ROW_THREADS)
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
static __global__ void __launch_bounds__(ROW_THREADS)
    unpack_rows_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t n_each, const V *in,
                       V *recv) {
    const int begin = p.round_row[round], n = p.round_row[round + 1] - begin;
    const int first = p.recv_assignment[begin];
    for (int64_t i = warp_id(); i < n; i += warp_count())
        copy_row((char *)(recv + i * n_each), 1,
                 in + (int64_t)(p.recv_assignment[begin + i] - first) * n_each, n_each);
}

template <typename V>
static __global__ void __launch_bounds__(ROW_THREADS)
    pack_assignments_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t n_each, const V *y,
                            V *in) {
    const int begin = p.recv_assignment[p.round_row[round]],
              n = p.recv_assignment[p.round_row[round + 1]] - begin;
    for (int64_t i = warp_id(); i < n; i += warp_count())
        copy_row((char *)(in + i * n_each), 1, y + p.assignment_pos[begin + i] * n_each, n_each);
}

/* out[t] = both levels of the sum, one warp per token, over the assignment rows that came back. */
template <typename T, int N>
static __global__ void __launch_bounds__(ROW_THREADS)
    combine_assignments_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t dim, const T *back,
                               T *out) {
    for (int64_t t = warp_id(); t < p.n_tokens; t += warp_count()) {
        const token_rows list = list_rows(lists_of(p, round), t);
        if (!list.fresh)
            continue;
        for (int64_t base = 0; base < dim; base += 32 * N * SUM_C) {
            const int64_t column = base + lane_id() * N;
            float sum[SUM_C][N];
            bool any = false;
            clear(sum);
            for (int i = 0; i < list.n; i++) {
                const int row = __shfl_sync(ALL_LANES, list.row, i);
                const int first = p.send_assignment[row];
                const row_assignments assignments = {first + lane_id(),
                                                     p.send_assignment[row + 1] - first};
                add_row_of_assignments<T, N>(sum, any, back, dim, column, assignments);
            }
            store_sum<T, N, SUM_C>(out + t * dim, dim, column, sum);
        }
    }
}

xp_status xp_ep_cuda_pack_rows(cudaStream_t stream, const xp_ep_cuda_plan *p,
                               const xp_ep_cuda_rows *rows, const void *x, void *out) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    if (p->n_tokens == 0)
        return XP_OK;
    const unsigned n_blocks = row_blocks(rows, p->n_tokens * p->top_k);
    if (rows_vectorize(rows, x, out))
        pack_rows_kernel<<<n_blocks, ROW_THREADS, 0, stream>>>(*p, rows->round, n_bytes / 16,
                                                               (const int4 *)x, (int4 *)out);
    else
        pack_rows_kernel<<<n_blocks, ROW_THREADS, 0, stream>>>(
            *p, rows->round, n_bytes / 2, (const unsigned short *)x, (unsigned short *)out);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch: packing");
}

xp_status xp_ep_cuda_unpack_rows(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                 const xp_ep_cuda_rows *rows, const void *in, void *recv) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    const unsigned n_blocks = row_blocks(rows, p->recv_capacity);
    if (rows_vectorize(rows, in, recv))
        unpack_rows_kernel<<<n_blocks, ROW_THREADS, 0, stream>>>(*p, rows->round, n_bytes / 16,
                                                                 (const int4 *)in, (int4 *)recv);
    else
        unpack_rows_kernel<<<n_blocks, ROW_THREADS, 0, stream>>>(
            *p, rows->round, n_bytes / 2, (const unsigned short *)in, (unsigned short *)recv);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch: unpacking");
}

xp_status xp_ep_cuda_pack_assignments(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                      const xp_ep_cuda_rows *rows, const void *y, void *in) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    const unsigned n_blocks = row_blocks(rows, p->assignment_capacity);
    if (rows_vectorize(rows, y, in))
        pack_assignments_kernel<<<n_blocks, ROW_THREADS, 0, stream>>>(*p, rows->round, n_bytes / 16,
                                                                      (const int4 *)y, (int4 *)in);
    else
        pack_assignments_kernel<<<n_blocks, ROW_THREADS, 0, stream>>>(
            *p, rows->round, n_bytes / 2, (const unsigned short *)y, (unsigned short *)in);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: packing");
}

template <typename T, int N>
static void launch_combine(cudaStream_t stream, const xp_ep_cuda_plan *p,
                           const xp_ep_cuda_rows *rows, const void *assignments, void *out) {
    combine_assignments_kernel<T, N><<<row_blocks(rows, p->n_tokens), ROW_THREADS, 0, stream>>>(
        *p, rows->round, rows->dim, (const T *)assignments, (T *)out);
}

xp_status xp_ep_cuda_combine_assignments(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                         const xp_ep_cuda_rows *rows, const void *assignments,
                                         void *out) {
    if (p->n_tokens == 0)
        return XP_OK;
    const bool wide = rows_vectorize(rows, NULL, out) && (uintptr_t)assignments % 16 == 0;
    if (rows->bf16 && wide)
        launch_combine<bf16, 8>(stream, p, rows, assignments, out);
    else if (rows->bf16)
        launch_combine<bf16, 1>(stream, p, rows, assignments, out);
    else if (wide)
        launch_combine<float, 4>(stream, p, rows, assignments, out);
    else
        launch_combine<float, 1>(stream, p, rows, assignments, out);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine");
}

xp_status xp_ep_cuda_load_a2a_rows(void) {
    return load_kernels(pack_rows_kernel<int4>, pack_rows_kernel<unsigned short>,
                        unpack_rows_kernel<int4>, unpack_rows_kernel<unsigned short>,
                        pack_assignments_kernel<int4>, pack_assignments_kernel<unsigned short>,
                        combine_assignments_kernel<bf16, 8>, combine_assignments_kernel<bf16, 1>,
                        combine_assignments_kernel<float, 4>, combine_assignments_kernel<float, 1>);
}
