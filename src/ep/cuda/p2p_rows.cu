/*
 * Rows between ranks that write into each other's memory. A warp takes a token or a row; grids are
 * bounded and stride. Bytes moved, dispatch: each token once, each row that is sent once; combine:
 * each expert row once, each sum written once and read once, each token once.
 */
#include "ep/cuda/moves.cuh"

/* Where a send row of this round goes; NULL: it is not of this round. */
static __device__ char *place_of(const xp_ep_cuda_plan &p, const xp_ep_cuda_peers &peers,
                                 int64_t round, int row, int64_t row_bytes) {
    const int n = p.n_ranks, d = owner_of(p.send_row_base, row);
    const int first = p.send_round[round * n + d];
    if (row < first || row >= p.send_round[(round + 1) * n + d])
        return nullptr;
    char *recv = peers.recv_at != nullptr && d != p.rank ? (char *)peers.recv_at[d] : peers.recv[d];
    return recv + (p.dest_slot[round * n + d] + row - first) * row_bytes;
}

/* Rows of this round by where they go, for the statistics. */
static __device__ void note_rows(const xp_ep_cuda_plan &p, unsigned long long all,
                                 unsigned long long own) {
    if (own > 0)
        atomicAdd(&p.news->rows_kept, own);
    if (all > own)
        atomicAdd(&p.news->rows_sent, all - own);
}

template <typename V>
static __global__ void __launch_bounds__(MOVE_THREADS)
    push_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_peers peers, int64_t round,
                int64_t n_each, const V *x) {
    if (is_dead(p) || round >= p.totals[TOTAL_ROUNDS])
        return;
    for (int64_t t = warp_id(); t < p.n_tokens; t += warp_count()) {
        const int begin = p.token_first[t], n = p.token_first[t + 1] - begin;
        char *to = nullptr;
        if (lane_id() < n)
            to = place_of(p, peers, round, p.token_row[begin + lane_id()],
                          n_each * (int64_t)sizeof(V));
        if (__ballot_sync(ALL_LANES, to != nullptr) != 0)
            copy_row(to, n, x + t * n_each, n_each);
    }
    if (warp_id() == 0) {
        const int n = p.n_ranks;
        unsigned rows = 0;
        if (lane_id() < n)
            rows = (unsigned)(p.send_round[(round + 1) * n + lane_id()] -
                              p.send_round[round * n + lane_id()]);
        const unsigned all = __reduce_add_sync(ALL_LANES, rows);
        if (lane_id() == p.rank)
            note_rows(p, all, rows);
    }
}

template <typename V>
static __global__ void __launch_bounds__(MOVE_THREADS)
    take_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t n_each, const V *arrived, V *recv) {
    if (is_dead(p))
        return;
    for (int64_t i = warp_id(); i < p.n_recv[round]; i += warp_count())
        copy_row((char *)(recv + i * n_each), 1, arrived + i * n_each, n_each);
}

/* First-level sums of the rows of this round, into the windows of their sources. */
template <typename T, int N>
static __global__ void __launch_bounds__(MOVE_THREADS)
    push_sums_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_peers peers, int64_t round,
                     int64_t dim, const T *y) {
    constexpr int C = 4, AHEAD = 2;
    if (is_dead(p))
        return;
    const bool keeps_own = p.totals[TOTAL_ROUNDS] == 1; /* summed where they are wanted */
    const int begin = p.round_row[round], end = p.round_row[round + 1];
    for (int64_t row = begin + warp_id(); row < end; row += warp_count()) {
        const int s = owner_of(p.recv_row_base, (int)row);
        if (s == p.rank && keeps_own)
            continue;
        const int first = p.recv_assignment[row], n = p.recv_assignment[row + 1] - first;
        const int assignment = lane_id() < n ? p.assignment_pos[first + lane_id()] : 0;
        T *to = (T *)peers.home[s] + (p.source_row_base[s] + row - p.recv_row_base[s]) * dim;
        for (int64_t base = 0; base < dim; base += 32 * N * C) {
            const int64_t column = base + lane_id() * N;
            float sum[C][N];
            bool any = false;
            add_rows<T, N, C, AHEAD>(sum, any, y, dim, column, assignment, 0, n);
            store_sum<T, N, C>(to, dim, column, sum);
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        const int low = p.recv_row_base[p.rank], high = p.recv_row_base[p.rank + 1];
        const int own = min(max(end, low), high) - min(max(begin, low), high);
        note_rows(p, (unsigned long long)(end - begin), (unsigned long long)own);
    }
}

/* Gradients of the weights of the assignments of this round, likewise. */
static __global__ void push_weights_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_peers peers,
                                           int64_t round, const float *d_weight) {
    if (is_dead(p))
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

static __global__ void place_weights_kernel(const xp_ep_cuda_plan p, int64_t round,
                                            const float *values, float *d_topk_weight) {
    if (is_dead(p))
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

xp_status xp_ep_cuda_push_rows(cudaStream_t stream, const xp_ep_cuda_plan *p,
                               const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                               const void *x) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    if (p->n_tokens == 0)
        return XP_OK;
    const unsigned n_blocks = move_blocks(rows, p->n_tokens);
    if (moves_wide(rows, x, NULL))
        push_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(*p, *peers, rows->round, n_bytes / 16,
                                                           (const int4 *)x);
    else
        push_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(*p, *peers, rows->round, n_bytes / 2,
                                                           (const unsigned short *)x);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch");
}

xp_status xp_ep_cuda_take_rows(cudaStream_t stream, const xp_ep_cuda_plan *p,
                               const xp_ep_cuda_rows *rows, const void *arrived, void *recv) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    const unsigned n_blocks = move_blocks(rows, p->recv_capacity);
    if (moves_wide(rows, arrived, recv))
        take_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(*p, rows->round, n_bytes / 16,
                                                           (const int4 *)arrived, (int4 *)recv);
    else
        take_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(
            *p, rows->round, n_bytes / 2, (const unsigned short *)arrived, (unsigned short *)recv);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch");
}

template <typename T, int N>
static void launch_push(cudaStream_t stream, const xp_ep_cuda_plan *p, const xp_ep_cuda_rows *rows,
                        const xp_ep_cuda_peers *peers, const void *y) {
    push_sums_kernel<T, N><<<move_blocks(rows, p->recv_capacity), MOVE_THREADS, 0, stream>>>(
        *p, *peers, rows->round, rows->dim, (const T *)y);
}

xp_status xp_ep_cuda_push_sums(cudaStream_t stream, const xp_ep_cuda_plan *p,
                               const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                               const void *y) {
    const bool wide = moves_wide(rows, y, NULL); /* windows are aligned */
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

static unsigned weight_blocks(int64_t n_assignments) {
    const int64_t n = tiles_of(n_assignments, 256);
    return (unsigned)(n < 1 ? 1 : n < 16 ? n : 16);
}

xp_status xp_ep_cuda_push_weights(cudaStream_t stream, const xp_ep_cuda_plan *p, int64_t round,
                                  const xp_ep_cuda_peers *peers, const float *d_weight) {
    push_weights_kernel<<<weight_blocks(p->assignment_capacity), 256, 0, stream>>>(*p, *peers,
                                                                                   round, d_weight);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: weights");
}

xp_status xp_ep_cuda_place_weights(cudaStream_t stream, const xp_ep_cuda_plan *p, int64_t round,
                                   const float *values, float *d_topk_weight) {
    if (p->n_tokens == 0)
        return XP_OK;
    place_weights_kernel<<<weight_blocks(p->n_tokens * p->top_k), 256, 0, stream>>>(
        *p, round, values, d_topk_weight);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: weights");
}
