/* The second level of the sum at a source of several ranks: a warp a token. */
#include "ep/cuda/moves.cuh"

enum { C = 2, AHEAD = 4 };

static __device__ __forceinline__ token_lists lists_of(const xp_ep_cuda_plan &p, int64_t round) {
    const int32_t *fresh = p.send_round + round * p.n_ranks;
    return {p.token_first, p.token_row, p.send_row_base, fresh, fresh + p.n_ranks, round == 0};
}

/* The assignments of one row, a lane each. */
struct row_assignments {
    int index, n;
};

/* sum (+)= the row's assignments added up and rounded to the row type. */
template <typename T, int N>
static __device__ __forceinline__ void
add_row_of_assignments(float (&sum)[C][N], bool &any, const T *rows, int64_t dim, int64_t column,
                       const row_assignments &assignments) {
    float value[C][N];
    bool some = false;
    add_rows<T, N, C, AHEAD>(value, some, rows, dim, column, assignments.index, 0, assignments.n);
#pragma unroll
    for (int c = 0; c < C; c++) {
        if (column + c * 32 * N >= dim)
            continue;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float rounded_value = rounded<T>(value[c][i]);
            sum[c][i] = any ? sum[c][i] + rounded_value : rounded_value;
        }
    }
    any = true;
}

/* Rows lie in `home`; this rank's own are summed from y when there is one round. */
template <typename T, int N>
static __global__ void __launch_bounds__(MOVE_THREADS)
    sum_arrived_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t dim, const T *home,
                       const T *y, T *out) {
    if (is_dead(p) || (round > 0 && round >= p.totals[TOTAL_ROUNDS]))
        return;
    const bool from_y = p.totals[TOTAL_ROUNDS] == 1;
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
        for (int64_t base = 0; base < dim; base += 32 * N * C) {
            const int64_t column = base + lane_id() * N;
            float sum[C][N];
            bool any = false;
            clear(sum);
            add_rows<T, N, C, AHEAD>(sum, any, home, dim, column, list.row, 0, own);
            if (own < list.n) {
                add_row_of_assignments<T, N>(sum, any, y, dim, column, assignments);
                add_rows<T, N, C, AHEAD>(sum, any, home, dim, column, list.row, own + 1, list.n);
            }
            store_sum<T, N, C>(out + t * dim, dim, column, sum);
        }
    }
}

/* Rows are sums of the assignments that came back, one row each. */
template <typename T, int N>
static __global__ void __launch_bounds__(MOVE_THREADS)
    sum_assignments_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t dim, const T *back,
                           T *out) {
    for (int64_t t = warp_id(); t < p.n_tokens; t += warp_count()) {
        const token_rows list = list_rows(lists_of(p, round), t);
        if (!list.fresh)
            continue;
        for (int64_t base = 0; base < dim; base += 32 * N * C) {
            const int64_t column = base + lane_id() * N;
            float sum[C][N];
            bool any = false;
            clear(sum);
            for (int i = 0; i < list.n; i++) {
                const int row = __shfl_sync(ALL_LANES, list.row, i);
                const int first = p.send_assignment[row];
                const row_assignments assignments = {first + lane_id(),
                                                     p.send_assignment[row + 1] - first};
                add_row_of_assignments<T, N>(sum, any, back, dim, column, assignments);
            }
            store_sum<T, N, C>(out + t * dim, dim, column, sum);
        }
    }
}

typedef struct sum_args {
    cudaStream_t stream;
    const xp_ep_cuda_plan *p;
    const xp_ep_cuda_rows *rows;
    const void *home, *y; /* y NULL: home holds assignments */
    void *out;
} sum_args;

template <typename T, int N> static void launch(const sum_args &a) {
    const unsigned n_blocks = move_blocks(a.rows, a.p->n_tokens);
    if (a.y != NULL)
        sum_arrived_kernel<T, N><<<n_blocks, MOVE_THREADS, 0, a.stream>>>(
            *a.p, a.rows->round, a.rows->dim, (const T *)a.home, (const T *)a.y, (T *)a.out);
    else
        sum_assignments_kernel<T, N><<<n_blocks, MOVE_THREADS, 0, a.stream>>>(
            *a.p, a.rows->round, a.rows->dim, (const T *)a.home, (T *)a.out);
}

static xp_status sum(const sum_args &a) {
    if (a.p->n_tokens == 0)
        return XP_OK;
    const bool wide = moves_wide(a.rows, a.y, a.out) && (uintptr_t)a.home % 16 == 0;
    if (a.rows->bf16 && wide)
        launch<bf16, 8>(a);
    else if (a.rows->bf16)
        launch<bf16, 1>(a);
    else if (wide)
        launch<float, 4>(a);
    else
        launch<float, 1>(a);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine");
}

xp_status xp_ep_cuda_sum_arrived(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                 const xp_ep_cuda_rows *rows, const void *home, const void *y,
                                 void *out) {
    return sum({stream, p, rows, home, y, out});
}

xp_status xp_ep_cuda_sum_assignments(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                     const xp_ep_cuda_rows *rows, const void *assignments,
                                     void *out) {
    return sum({stream, p, rows, assignments, NULL, out});
}
