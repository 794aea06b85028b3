/*
 * Row kernels of the hierarchical transport: the host knows how many rows there are. One warp per
 * row or token; grids are bounded and stride. Each row is read and written once, sums read each of
 * their rows once. No block waits for another.
 */
#include "ep/hierarchical/cuda/kernels.h"

#include "ep/common/cuda/rows.cuh"

/* dst[i] = src[index[i] - first]. */
template <typename V>
static __global__ void __launch_bounds__(ROW_THREADS)
    copy_kernel(int64_t n_rows, int64_t n_each, const int32_t *index, int64_t first, const V *src,
                V *dst) {
    for (int64_t i = warp_id(); i < n_rows; i += warp_count()) {
        const int64_t from = index != nullptr ? index[i] - first : i;
        copy_row((char *)(dst + i * n_each), 1, src + from * n_each, n_each);
    }
}

/* dst[i] = the sum of y[pos[first[i] .. first[i + 1])], ascending. */
template <typename T, int N>
static __global__ void __launch_bounds__(ROW_THREADS)
    reduce_kernel(int64_t n_rows, int64_t dim, const int32_t *first, const int32_t *pos, const T *y,
                  T *dst) {
    constexpr int C = 4, UNROLL = 2;
    for (int64_t i = warp_id(); i < n_rows; i += warp_count()) {
        const int begin = first[i], n = first[i + 1] - begin;
        const int row = lane_id() < n ? pos[begin + lane_id()] : 0;
        for (int64_t base = 0; base < dim; base += 32 * N * C) {
            const int64_t column = base + lane_id() * N;
            float sum[C][N];
            bool any = false;
            clear(sum);
            add_rows<T, N, C, UNROLL>(sum, any, y, dim, column, row, 0, n);
            store_sum<T, N, C>(dst + i * dim, dim, column, sum);
        }
    }
}

/* out[t] = the sum of the token's rows that have arrived. */
template <typename T, int N>
static __global__ void __launch_bounds__(ROW_THREADS)
    sum_kernel(int64_t n_tokens, const token_lists lists, int64_t dim, const T *rows, T *out) {
    constexpr int C = 2, UNROLL = 4;
    for (int64_t t = warp_id(); t < n_tokens; t += warp_count()) {
        const token_rows list = list_rows(lists, t);
        if (!list.fresh)
            continue;
        for (int64_t base = 0; base < dim; base += 32 * N * C) {
            const int64_t column = base + lane_id() * N;
            float sum[C][N];
            bool any = false;
            clear(sum);
            add_rows<T, N, C, UNROLL>(sum, any, rows, dim, column, list.row, 0, list.n);
            store_sum<T, N, C>(out + t * dim, dim, column, sum);
        }
    }
}

xp_status xp_ep_cuda_copy_rows(void *launch, const xp_ep_copy_args *a) {
    const xp_ep_cuda_launch *l = (const xp_ep_cuda_launch *)launch;
    const int64_t n_bytes = (int64_t)a->row_bytes;
    if (a->n_rows == 0)
        return XP_OK;
    const unsigned n_blocks = row_blocks(&l->rows, a->n_rows);
    if (rows_vectorize(&l->rows, a->src, a->dst))
        copy_kernel<<<n_blocks, ROW_THREADS, 0, l->stream>>>(a->n_rows, n_bytes / 16, a->src_index,
                                                             a->src_first, (const int4 *)a->src,
                                                             (int4 *)a->dst);
    else
        copy_kernel<<<n_blocks, ROW_THREADS, 0, l->stream>>>(
            a->n_rows, n_bytes / 2, a->src_index, a->src_first, (const unsigned short *)a->src,
            (unsigned short *)a->dst);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch: rows");
}

xp_status xp_ep_cuda_reduce_rows(void *launch, const xp_ep_reduce_args *a) {
    const xp_ep_cuda_launch *l = (const xp_ep_cuda_launch *)launch;
    if (a->n_rows == 0)
        return XP_OK;
    const unsigned n_blocks = row_blocks(&l->rows, a->n_rows);
    const bool wide = rows_vectorize(&l->rows, a->y, a->dst);
    if (l->rows.bf16 && wide)
        reduce_kernel<bf16, 8><<<n_blocks, ROW_THREADS, 0, l->stream>>>(
            a->n_rows, a->dim, a->first, a->pos, (const bf16 *)a->y, (bf16 *)a->dst);
    else if (l->rows.bf16)
        reduce_kernel<bf16, 1><<<n_blocks, ROW_THREADS, 0, l->stream>>>(
            a->n_rows, a->dim, a->first, a->pos, (const bf16 *)a->y, (bf16 *)a->dst);
    else if (wide)
        reduce_kernel<float, 4><<<n_blocks, ROW_THREADS, 0, l->stream>>>(
            a->n_rows, a->dim, a->first, a->pos, (const float *)a->y, (float *)a->dst);
    else
        reduce_kernel<float, 1><<<n_blocks, ROW_THREADS, 0, l->stream>>>(
            a->n_rows, a->dim, a->first, a->pos, (const float *)a->y, (float *)a->dst);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: sums of rows");
}

xp_status xp_ep_cuda_sum_rows(void *launch, const xp_ep_sum_args *a) {
    const xp_ep_cuda_launch *l = (const xp_ep_cuda_launch *)launch;
    if (a->n_tokens == 0)
        return XP_OK;
    const token_lists lists = {a->token_first, a->token_row, a->row_base,
                               a->fresh,       a->seen,      a->write_all};
    const unsigned n_blocks = row_blocks(&l->rows, a->n_tokens);
    const bool wide = rows_vectorize(&l->rows, a->rows, a->out);
    if (l->rows.bf16 && wide)
        sum_kernel<bf16, 8><<<n_blocks, ROW_THREADS, 0, l->stream>>>(
            a->n_tokens, lists, a->dim, (const bf16 *)a->rows, (bf16 *)a->out);
    else if (l->rows.bf16)
        sum_kernel<bf16, 1><<<n_blocks, ROW_THREADS, 0, l->stream>>>(
            a->n_tokens, lists, a->dim, (const bf16 *)a->rows, (bf16 *)a->out);
    else if (wide)
        sum_kernel<float, 4><<<n_blocks, ROW_THREADS, 0, l->stream>>>(
            a->n_tokens, lists, a->dim, (const float *)a->rows, (float *)a->out);
    else
        sum_kernel<float, 1><<<n_blocks, ROW_THREADS, 0, l->stream>>>(
            a->n_tokens, lists, a->dim, (const float *)a->rows, (float *)a->out);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: sums of tokens");
}

xp_status xp_ep_cuda_load_hierarchical_rows(void) {
    return load_kernels(copy_kernel<int4>, copy_kernel<unsigned short>, reduce_kernel<bf16, 8>,
                        reduce_kernel<bf16, 1>, reduce_kernel<float, 4>, reduce_kernel<float, 1>,
                        sum_kernel<bf16, 8>, sum_kernel<bf16, 1>, sum_kernel<float, 4>,
                        sum_kernel<float, 1>);
}
