/*
 * Rows between ranks that write into each other's memory. One warp per token or row; grids are
 * bounded and stride. Dispatch reads each token once and writes each row that is sent once; combine
 * reads each expert row once, writes and reads each sum once, writes each token once. No kernel here
 * waits: barriers stand before and after.
 */
#include "ep/p2p/cuda/dispatch_tokens.cuh"
#include "ep/p2p/cuda/rows_bulk.h"

template <typename V>
static __global__ void __launch_bounds__(ROW_THREADS)
    dispatch_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_peers peers, int64_t round,
                    int64_t n_each, const V *x) {
    if (is_aborted(p) || round >= p.totals[TOTAL_ROUNDS])
        return;
    dispatch_tokens(p, peers, round, n_each, x);
    if (warp_id() == 0)
        count_dispatched(p, round);
}

/* Recv rows of the round from one place to another, one warp per row; with `others` not this rank's own. */
template <typename V>
static __global__ void __launch_bounds__(ROW_THREADS)
    copy_recv_kernel(const xp_ep_cuda_plan p, int64_t round, bool others, int64_t n_each,
                     const V *arrived, V *recv) {
    if (is_aborted(p))
        return;
    const int first = p.round_row[round];
    const int low = others ? p.recv_row_base[p.rank] - first : 0,
              high = others ? p.recv_row_base[p.rank + 1] - first : 0;
    for (int64_t i = warp_id(); i < p.n_recv[round]; i += warp_count())
        if (i < low || i >= high)
            copy_row((char *)(recv + i * n_each), 1, arrived + i * n_each, n_each);
}

/* First-level sums of the rows of this round, one warp per row, into the windows of their sources. */
template <typename T, int N>
static __global__ void __launch_bounds__(ROW_THREADS)
    push_sums_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_peers peers, int64_t round,
                     int64_t dim, const T *y) {
    constexpr int C = 4, UNROLL = 2;
    if (is_aborted(p))
        return;
    const bool keeps_own = p.totals[TOTAL_ROUNDS] == 1; /* summed where they are wanted */
    const int begin = p.round_row[round], end = p.round_row[round + 1];
    for (int64_t row = begin + warp_id(); row < end; row += warp_count()) {
        const int s = owner_of(p.recv_row_base, (int)row);
        if (s == p.rank && keeps_own)
            continue;
        const int first = p.recv_assignment[row], n = p.recv_assignment[row + 1] - first;
        const int assignment = lane_id() < n ? p.assignment_pos[first + lane_id()] : 0;
        T *to =
            (T *)peers.combine_rows[s] + (p.source_row_base[s] + row - p.recv_row_base[s]) * dim;
        for (int64_t base = 0; base < dim; base += 32 * N * C) {
            const int64_t column = base + lane_id() * N;
            float sum[C][N];
            bool any = false;
            add_rows<T, N, C, UNROLL>(sum, any, y, dim, column, assignment, 0, n);
            store_sum<T, N, C>(to, dim, column, sum);
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0)
        count_combined(p, begin, end);
}

/* Gradients of the weights of the assignments of this round, one thread each, likewise. */
static __global__ void push_weights_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_peers peers,
                                           int64_t round, const float *d_weight) {
    if (is_aborted(p))
        return;
    const int begin = p.recv_assignment[p.round_row[round]],
              end = p.recv_assignment[p.round_row[round + 1]];
    for (int i = begin + (int)(blockIdx.x * blockDim.x + threadIdx.x); i < end;
         i += (int)(gridDim.x * blockDim.x)) {
        const int s = owner_of(p.recv_assignment_base, i);
        peers.weights[s][p.source_assignment_base[s] + i - p.recv_assignment_base[s]] =
            d_weight[p.assignment_pos[i]];
    }
}

/* out[t] = the second level of the sum, one warp per token. Rows lie in combine_rows; this rank's own
 * are summed from y when there is one round. */
template <typename T, int N>
static __global__ void __launch_bounds__(ROW_THREADS)
    combine_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t dim, const T *combine_rows,
                   const T *y, bool one_round_done, T *out) {
    if (is_aborted(p) || (round > 0 && round >= p.totals[TOTAL_ROUNDS]))
        return;
    const bool from_y = p.totals[TOTAL_ROUNDS] == 1;
    if (from_y && one_round_done)
        return;
    const int low = p.send_row_base[p.rank], high = p.send_row_base[p.rank + 1];
    for (int64_t t = warp_id(); t < p.n_tokens; t += warp_count()) {
        const token_rows list = list_rows(lists_of(p, round), t);
        if (!list.fresh)
            continue;
        const bool is_own = from_y && lane_id() < list.n && list.row >= low && list.row < high;
        const unsigned owns = __ballot_sync(ALL_LANES, is_own);
        const int own = owns != 0 ? __ffs((int)owns) - 1 : list.n;
        row_assignments assignments = {0, 0};
        if (own < list.n) {
            const int row = __shfl_sync(ALL_LANES, list.row, own) - low + p.recv_row_base[p.rank];
            const int first = p.recv_assignment[row];
            assignments.n = p.recv_assignment[row + 1] - first;
            assignments.index = lane_id() < assignments.n ? p.assignment_pos[first + lane_id()] : 0;
        }
        for (int64_t base = 0; base < dim; base += 32 * N * SUM_C) {
            const int64_t column = base + lane_id() * N;
            float sum[SUM_C][N];
            bool any = false;
            clear(sum);
            add_rows<T, N, SUM_C, SUM_UNROLL>(sum, any, combine_rows, dim, column, list.row, 0,
                                              own);
            if (own < list.n) {
                add_row_of_assignments<T, N>(sum, any, y, dim, column, assignments);
                add_rows<T, N, SUM_C, SUM_UNROLL>(sum, any, combine_rows, dim, column, list.row,
                                                  own + 1, list.n);
            }
            store_sum<T, N, SUM_C>(out + t * dim, dim, column, sum);
        }
    }
}

/* (A longer row could leave the last of its equal pieces empty.) */
bool xp_ep_cuda_suits_bulk(size_t row_bytes) {
    return row_bytes % 16 == 0 && row_bytes <= (size_t)128 * 1024;
}

static bool use_bulk(const xp_ep_cuda_rows *rows, const void *a) {
    return rows->bulk && xp_ep_cuda_suits_bulk(rows->row_bytes) && (uintptr_t)a % 16 == 0;
}

/* Kernels that use this rank's memory alone may take every SM: they do not run while others send. */
static xp_ep_cuda_rows local_rows(const xp_ep_cuda_rows *rows) {
    xp_ep_cuda_rows local = *rows;
    local.n_blocks = rows->n_local_blocks;
    return local;
}

bool xp_ep_cuda_can_tell_sums(const xp_ep_cuda_rows *rows, const void *y) {
    return use_bulk(rows, y);
}

bool xp_ep_cuda_can_combine(const xp_ep_cuda_rows *rows, const void *y, const void *out) {
    return use_bulk(rows, y) && (uintptr_t)out % 16 == 0 && rows->n_waiting_blocks > 0;
}

bool xp_ep_cuda_can_receive(const xp_ep_cuda_rows *rows, const void *x, const void *recv) {
    return use_bulk(rows, x) && (uintptr_t)recv % 16 == 0;
}

xp_status xp_ep_cuda_dispatch_rows(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                   const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                                   const xp_ep_cuda_arrivals *arrivals, const void *x) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    if (arrivals != NULL || (use_bulk(rows, x) && p->n_tokens > 0))
        return xp_ep_cuda_dispatch_rows_bulk(stream, p, rows, peers, arrivals, x);
    if (p->n_tokens == 0)
        return XP_OK;
    const unsigned n_blocks = row_blocks(rows, p->n_tokens);
    if (rows_vectorize(rows, x, NULL))
        dispatch_kernel<<<n_blocks, ROW_THREADS, 0, stream>>>(*p, *peers, rows->round, n_bytes / 16,
                                                              (const int4 *)x);
    else
        dispatch_kernel<<<n_blocks, ROW_THREADS, 0, stream>>>(*p, *peers, rows->round, n_bytes / 2,
                                                              (const unsigned short *)x);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch");
}

static xp_status copy_recv(cudaStream_t stream, const xp_ep_cuda_plan *p,
                           const xp_ep_cuda_rows *rows, bool others, const void *from, void *to) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    const unsigned n_blocks = row_blocks(rows, p->recv_capacity);
    if (rows_vectorize(rows, from, to))
        copy_recv_kernel<<<n_blocks, ROW_THREADS, 0, stream>>>(
            *p, rows->round, others, n_bytes / 16, (const int4 *)from, (int4 *)to);
    else
        copy_recv_kernel<<<n_blocks, ROW_THREADS, 0, stream>>>(*p, rows->round, others, n_bytes / 2,
                                                               (const unsigned short *)from,
                                                               (unsigned short *)to);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch");
}

xp_status xp_ep_cuda_copy_recv(cudaStream_t stream, const xp_ep_cuda_plan *p,
                               const xp_ep_cuda_rows *rows, const void *arrived, void *recv) {
    const xp_ep_cuda_rows local = local_rows(rows);
    return copy_recv(stream, p, &local, true, arrived, recv);
}

xp_status xp_ep_cuda_send_copy(cudaStream_t stream, const xp_ep_cuda_plan *p,
                               const xp_ep_cuda_rows *rows, const void *from, void *to) {
    return copy_recv(stream, p, rows, false, from, to);
}

template <typename T, int N>
static void launch_push(cudaStream_t stream, const xp_ep_cuda_plan *p, const xp_ep_cuda_rows *rows,
                        const xp_ep_cuda_peers *peers, const void *y) {
    push_sums_kernel<T, N><<<row_blocks(rows, p->recv_capacity), ROW_THREADS, 0, stream>>>(
        *p, *peers, rows->round, rows->dim, (const T *)y);
}

xp_status xp_ep_cuda_push_sums(cudaStream_t stream, const xp_ep_cuda_plan *p,
                               const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                               const xp_ep_cuda_arrivals *arrivals, const void *y, void *out) {
    const bool wide = rows_vectorize(rows, y, NULL); /* windows are aligned */
    if (use_bulk(rows, y))
        return xp_ep_cuda_push_sums_bulk(stream, p, rows, peers, arrivals, y, out);
    if (rows->bf16 && wide)
        launch_push<bf16, 8>(stream, p, rows, peers, y);
    else if (rows->bf16)
        launch_push<bf16, 1>(stream, p, rows, peers, y);
    else if (wide)
        launch_push<float, 4>(stream, p, rows, peers, y);
    else
        launch_push<float, 1>(stream, p, rows, peers, y);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine");
}

xp_status xp_ep_cuda_push_weights(cudaStream_t stream, const xp_ep_cuda_plan *p, int64_t round,
                                  const xp_ep_cuda_peers *peers, const float *d_weight) {
    push_weights_kernel<<<weight_blocks(p->assignment_capacity), 256, 0, stream>>>(*p, *peers,
                                                                                   round, d_weight);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: weights");
}

template <typename T, int N>
static void launch_combine(cudaStream_t stream, const xp_ep_cuda_plan *p,
                           const xp_ep_cuda_rows *rows, const void *combine_rows, const void *y,
                           void *out, bool one_round_done) {
    const xp_ep_cuda_rows local = local_rows(rows);
    combine_kernel<T, N><<<row_blocks(&local, p->n_tokens), ROW_THREADS, 0, stream>>>(
        *p, rows->round, rows->dim, (const T *)combine_rows, (const T *)y, one_round_done,
        (T *)out);
}

xp_status xp_ep_cuda_combine_rows(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                  const xp_ep_cuda_rows *rows, const void *combine_rows,
                                  const void *y, void *out, bool one_round_done) {
    if (p->n_tokens == 0 || (one_round_done && p->max_rounds == 1))
        return XP_OK;
    const bool wide = rows_vectorize(rows, y, out) && (uintptr_t)combine_rows % 16 == 0;
    if (rows->bf16 && wide)
        launch_combine<bf16, 8>(stream, p, rows, combine_rows, y, out, one_round_done);
    else if (rows->bf16)
        launch_combine<bf16, 1>(stream, p, rows, combine_rows, y, out, one_round_done);
    else if (wide)
        launch_combine<float, 4>(stream, p, rows, combine_rows, y, out, one_round_done);
    else
        launch_combine<float, 1>(stream, p, rows, combine_rows, y, out, one_round_done);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine");
}

xp_status xp_ep_cuda_load_p2p_rows(void) {
    return load_kernels(dispatch_kernel<int4>, dispatch_kernel<unsigned short>,
                        copy_recv_kernel<int4>, copy_recv_kernel<unsigned short>,
                        push_sums_kernel<bf16, 8>, push_sums_kernel<bf16, 1>,
                        push_sums_kernel<float, 4>, push_sums_kernel<float, 1>, push_weights_kernel,
                        combine_kernel<bf16, 8>, combine_kernel<bf16, 1>, combine_kernel<float, 4>,
                        combine_kernel<float, 1>);
}
