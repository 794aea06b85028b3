/*
 * Rows whose number the host knows: by index, and sums of listed rows. A warp takes a row or a
 * token; grids are bounded and stride. Bytes moved: each row read once and written once, sums read
 * each of their rows once.
 */
#include "ep/cuda/moves.cuh"

template <typename V>
static __global__ void __launch_bounds__(MOVE_THREADS)
    copy_kernel(int64_t n_rows, int64_t n_each, const int32_t *index, int64_t first, const V *src,
                V *dst) {
    for (int64_t i = warp_id(); i < n_rows; i += warp_count()) {
        const int64_t from = index != nullptr ? index[i] - first : i;
        copy_row((char *)(dst + i * n_each), 1, src + from * n_each, n_each);
    }
}

template <typename T, int N>
static __global__ void __launch_bounds__(MOVE_THREADS)
    reduce_kernel(int64_t n_rows, int64_t dim, const int32_t *first, const int32_t *pos, const T *y,
                  T *dst) {
    constexpr int C = 4, AHEAD = 2;
    for (int64_t i = warp_id(); i < n_rows; i += warp_count()) {
        const int begin = first[i], n = first[i + 1] - begin;
        const int row = lane_id() < n ? pos[begin + lane_id()] : 0;
        for (int64_t base = 0; base < dim; base += 32 * N * C) {
            const int64_t column = base + lane_id() * N;
            float sum[C][N];
            bool any = false;
            clear(sum);
            add_rows<T, N, C, AHEAD>(sum, any, y, dim, column, row, 0, n);
            store_sum<T, N, C>(dst + i * dim, dim, column, sum);
        }
    }
}

template <typename T, int N>
static __global__ void __launch_bounds__(MOVE_THREADS)
    sum_kernel(int64_t n_tokens, const token_lists lists, int64_t dim, const T *rows, T *out) {
    constexpr int C = 2, AHEAD = 4;
    for (int64_t t = warp_id(); t < n_tokens; t += warp_count()) {
        const token_rows list = list_rows(lists, t);
        if (!list.fresh)
            continue;
        for (int64_t base = 0; base < dim; base += 32 * N * C) {
            const int64_t column = base + lane_id() * N;
            float sum[C][N];
            bool any = false;
            clear(sum);
            add_rows<T, N, C, AHEAD>(sum, any, rows, dim, column, list.row, 0, list.n);
            store_sum<T, N, C>(out + t * dim, dim, column, sum);
        }
    }
}

xp_status xp_ep_cuda_copy_rows(cudaStream_t stream, const xp_ep_cuda_rows *rows,
                               const xp_ep_copy_args *a) {
    const int64_t n_bytes = (int64_t)a->row_bytes;
    if (a->n_rows == 0)
        return XP_OK;
    const unsigned n_blocks = move_blocks(rows, a->n_rows);
    if (moves_wide(rows, a->src, a->dst))
        copy_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(a->n_rows, n_bytes / 16, a->src_index,
                                                           a->src_first, (const int4 *)a->src,
                                                           (int4 *)a->dst);
    else
        copy_kernel<<<n_blocks, MOVE_THREADS, 0, stream>>>(
            a->n_rows, n_bytes / 2, a->src_index, a->src_first, (const unsigned short *)a->src,
            (unsigned short *)a->dst);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch: rows");
}

template <typename T, int N>
static void launch_reduce(cudaStream_t stream, const xp_ep_cuda_rows *rows,
                          const xp_ep_reduce_args *a) {
    reduce_kernel<T, N><<<move_blocks(rows, a->n_rows), MOVE_THREADS, 0, stream>>>(
        a->n_rows, a->dim, a->first, a->pos, (const T *)a->y, (T *)a->dst);
}

xp_status xp_ep_cuda_reduce_rows(cudaStream_t stream, const xp_ep_cuda_rows *rows,
                                 const xp_ep_reduce_args *a) {
    if (a->n_rows == 0)
        return XP_OK;
    const bool wide = moves_wide(rows, a->y, a->dst);
    if (rows->bf16 && wide)
        launch_reduce<bf16, 8>(stream, rows, a);
    else if (rows->bf16)
        launch_reduce<bf16, 1>(stream, rows, a);
    else if (wide)
        launch_reduce<float, 4>(stream, rows, a);
    else
        launch_reduce<float, 1>(stream, rows, a);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: sums of rows");
}

template <typename T, int N>
static void launch_sum(cudaStream_t stream, const xp_ep_cuda_rows *rows, const xp_ep_sum_args *a) {
    const token_lists lists = {a->token_first, a->token_row, a->row_base,
                               a->fresh,       a->seen,      a->write_all};
    sum_kernel<T, N><<<move_blocks(rows, a->n_tokens), MOVE_THREADS, 0, stream>>>(
        a->n_tokens, lists, a->dim, (const T *)a->rows, (T *)a->out);
}

xp_status xp_ep_cuda_sum_rows(cudaStream_t stream, const xp_ep_cuda_rows *rows,
                              const xp_ep_sum_args *a) {
    if (a->n_tokens == 0)
        return XP_OK;
    const bool wide = moves_wide(rows, a->rows, a->out);
    if (rows->bf16 && wide)
        launch_sum<bf16, 8>(stream, rows, a);
    else if (rows->bf16)
        launch_sum<bf16, 1>(stream, rows, a);
    else if (wide)
        launch_sum<float, 4>(stream, rows, a);
    else
        launch_sum<float, 1>(stream, rows, a);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: sums of tokens");
}
