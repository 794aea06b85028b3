#include "ops/cuda/partial_sums.h"

#include "ops/cuda/launch.h"
#include "ops/cuda/vector.cuh"

namespace {

constexpr int COLUMNS = 8, LANES = 64; /* many short sums: the partials lie far apart in memory */

/* Block (COLUMNS, LANES) owns COLUMNS columns; thread (c, l) adds partials l, l + LANES, ... of
 * column c, then thread (c, 0) adds the LANES sums. */
template <typename T>
__global__ void __launch_bounds__(COLUMNS *LANES) add_partials(xp_cuda_partial_sums args) {
    __shared__ double sums[LANES][COLUMNS];
    const int64_t column = (int64_t)blockIdx.x * COLUMNS + threadIdx.x;
    double sum = 0;
    if (column < args.width)
#pragma unroll 8
        for (int64_t p = threadIdx.y; p < args.n_partials; p += LANES)
            sum += (double)args.partial[p * args.ld + column];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || column >= args.width)
        return;
    T *out = (T *)args.out + column;
    sum = args.acc ? (double)to_float(*out) : 0;
    for (int l = 0; l < LANES; l++)
        sum += sums[l][threadIdx.x];
    *out = from_float<T>((float)sum);
}

} // namespace

extern "C" xp_status xp_cuda_add_partials(cudaStream_t stream, const xp_cuda_partial_sums *args) {
    if (args->width == 0)
        return XP_OK;
    const dim3 grid((unsigned)xp_ceil_div(args->width, COLUMNS)), block(COLUMNS, LANES);
    if (args->out_dtype == XP_F32)
        add_partials<float><<<grid, block, 0, stream>>>(*args);
    else
        add_partials<bf16><<<grid, block, 0, stream>>>(*args);
    return xp_cuda_check(cudaGetLastError(), "add_partials");
}
