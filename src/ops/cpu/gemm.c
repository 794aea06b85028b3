/** Dense GEMM over the pool. */
#include <limits.h>
#include "device/cpu/cpu_device.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/gemm_tile.h"
#include "ops/cpu/grouped_gemm.h"
#include "ops/cpu/pool_scratch.h"

/** Tiles that a GEMM is cut into when its size allows: enough to keep the threads of one rank
 * evenly busy. */
enum { N_TILES = 32 };

typedef struct job {
    const xp_gemm_args *args;
    xp_gemm_view a, b;
    xp_gemm_split rows, columns;
    xp_stream *stream;
    size_t scratch_bytes;
} job;

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void multiply_tile(void *context, int64_t tile, int worker) {
    const job *j = context;
    const xp_gemm_args *args = j->args;
    int64_t i0 = tile / j->columns.n_parts * j->rows.part;
    int64_t j0 = tile % j->columns.n_parts * j->columns.part;
    xp_gemm_tile t = {
        .m = smaller(j->rows.part, args->m - i0),
        .n = smaller(j->columns.part, args->n - j0),
        .k = args->k,
        .a = xp_gemm_view_from(&j->a, args->trans_a ? 0 : i0, args->trans_a ? i0 : 0),
        .b = xp_gemm_view_from(&j->b, args->trans_b ? j0 : 0, args->trans_b ? 0 : j0),
        .c = (char *)args->c + (i0 * args->ldc + j0) * (int64_t)xp_dtype_bytes(args->c_dtype),
        .c_dtype = args->c_dtype,
        .ldc = args->ldc,
        .alpha = args->alpha,
        .acc = args->acc,
    };
    float *scratch = NULL;
    if (j->scratch_bytes > 0)
        scratch = xp_cpu_stream_scratch(j->stream, worker, j->scratch_bytes);
    xp_gemm_tile_multiply(&t, scratch);
}

static xp_status gemm(xp_stream *stream, const xp_gemm_args *args) {
    if (args->lda > INT_MAX || args->ldb > INT_MAX || args->ldc > INT_MAX || args->k > INT_MAX)
        return xp_error(XP_EINVAL, "gemm: leading dimensions and k must be below 2^31");
    job j = {
        .args = args,
        .a = {.data = args->a,
              .dtype = args->ab_dtype,
              .ld = args->lda,
              .transposed = args->trans_a},
        .b = {.data = args->b,
              .dtype = args->ab_dtype,
              .ld = args->ldb,
              .transposed = args->trans_b},
        .stream = stream,
    };
    if (args->ab_dtype == XP_BF16) {
        j.scratch_bytes = xp_gemm_scratch_bytes(args->c_dtype);
        XP_TRY(xp_cpu_reserve_scratch(stream, j.scratch_bytes));
    }
    xp_gemm_split_2d(args->m, args->n, N_TILES, &j.rows, &j.columns);
    xp_gemm_tiles_run(xp_cpu_stream_pool(stream), multiply_tile, &j,
                      j.rows.n_parts * j.columns.n_parts);
    return XP_OK;
}

void xp_cpu_gemm_fast(xp_ops *ops, unsigned caps) {
    /* OpenBLAS chooses its own kernels; without vector units the plain code keeps its readable
     * numbers. */
    if ((caps & XP_CPU_AVX2) == 0)
        return;
    ops->gemm = gemm;
    ops->grouped_forward = xp_cpu_grouped_forward;
    ops->grouped_dgrad = xp_cpu_grouped_dgrad;
    ops->grouped_wgrad = xp_cpu_grouped_wgrad;
}
