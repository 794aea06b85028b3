/* Sums of squares of many parts of a buffer in two launches: partial sums of blocks, then a sum a part. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/sum_squares.cuh"
#include "ops/ops_blocks.h"

namespace {

constexpr int MOST_PARTS =
    128; /* of a launch: they travel as kernel arguments, of which there are 4 KB */

struct part_table {
    int n;
    int64_t first[MOST_PARTS], n_elements[MOST_PARTS];
    int32_t first_block[MOST_PARTS + 1];
};

/* Block b owns XP_OPS_SUM_BLOCK neighbouring elements of the part whose blocks it is among. */
template <typename T, int N>
__global__ void __launch_bounds__(SQUARE_THREADS)
    square_parts(const __grid_constant__ part_table parts, const T *x, double *out) {
    __shared__ double partial[SQUARE_THREADS / 32];
    const int block = (int)blockIdx.x;
    int low = 0, high = parts.n; /* first_block[low] <= block < first_block[high] */
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (parts.first_block[middle] <= block)
            low = middle;
        else
            high = middle;
    }
    const int64_t at = (int64_t)(block - parts.first_block[low]) * XP_OPS_SUM_BLOCK;
    const int64_t rest = parts.n_elements[low] - at;
    const double sum = block_squares<T, N>(
        x + parts.first[low] + at, rest < XP_OPS_SUM_BLOCK ? rest : XP_OPS_SUM_BLOCK, partial);
    if (threadIdx.x == 0)
        out[block] = sum;
}

/* A block a part. */
__global__ void __launch_bounds__(LAST_THREADS)
    add_parts(const __grid_constant__ part_table parts, const double *x, double *out) {
    __shared__ double partial[LAST_THREADS / 32];
    const int32_t first = parts.first_block[blockIdx.x];
    const double sum =
        block_total<double>(x + first, parts.first_block[blockIdx.x + 1] - first, partial);
    if (threadIdx.x == 0)
        out[blockIdx.x] = sum;
}

bool all_aligned(const xp_sum_squares_parts_args *a) {
    const int64_t each = 16 / (int64_t)xp_dtype_bytes(a->dtype);
    bool aligned = xp_is_aligned(a->x);
    for (int i = 0; i < a->n_parts; i++)
        aligned = aligned && a->parts[i].first % each == 0;
    return aligned;
}

template <typename T, int N>
xp_status launch(const part_table *table, const xp_sum_squares_parts_args *a, double *out,
                 cudaStream_t s) {
    const int32_t n_blocks = table->first_block[table->n];
    if (n_blocks > 0)
        square_parts<T, N>
            <<<(unsigned)n_blocks, SQUARE_THREADS, 0, s>>>(*table, (const T *)a->x, a->scratch);
    add_parts<<<(unsigned)table->n, LAST_THREADS, 0, s>>>(*table, a->scratch, out);
    return xp_cuda_check(cudaGetLastError(), "sum_squares_parts");
}

xp_status launch_wide(const part_table *table, const xp_sum_squares_parts_args *a, double *out,
                      bool wide, cudaStream_t s) {
    if (a->dtype == XP_F32)
        return wide ? launch<float, 4>(table, a, out, s) : launch<float, 1>(table, a, out, s);
    return wide ? launch<bf16, 8>(table, a, out, s) : launch<bf16, 1>(table, a, out, s);
}

/* Parts [begin, ...) of the call that a launch takes: as many as fit. */
xp_status fill(const xp_sum_squares_parts_args *a, int begin, part_table *table) {
    int64_t n_blocks = 0;
    table->n = (int)xp_min_i64(a->n_parts - begin, MOST_PARTS);
    for (int i = 0; i < table->n; i++) {
        const xp_ops_part *part = &a->parts[begin + i];
        table->first[i] = part->first;
        table->n_elements[i] = part->n;
        table->first_block[i] = (int32_t)n_blocks;
        n_blocks += xp_ceil_div(part->n, XP_OPS_SUM_BLOCK);
        if (n_blocks > INT32_MAX)
            return xp_error(XP_ENOTSUP, "sum_squares_parts: too many elements");
    }
    table->first_block[table->n] = (int32_t)n_blocks;
    return XP_OK;
}

} // namespace

extern "C" xp_status xp_cuda_sum_squares_parts(xp_stream *stream,
                                               const xp_sum_squares_parts_args *a) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    const bool wide = all_aligned(a);
    for (int begin = 0; begin < a->n_parts; begin += MOST_PARTS) {
        part_table table;
        XP_TRY(fill(a, begin, &table));
        double *out = a->out + begin;
        XP_TRY(launch_wide(&table, a, out, wide, s));
    }
    return XP_OK;
}
