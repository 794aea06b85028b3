/* Dense GEMM: cuBLASLt, or the plain tile kernel where it has no algorithm. */
#include "ops/cuda/cublaslt.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/tile_gemm.h"

/* k = 0: the sum is empty. Zero bits are zero in both types. */
static xp_status clear(cudaStream_t stream, const xp_gemm_args *a) {
    if (a->acc)
        return XP_OK;
    const size_t size = xp_dtype_bytes(a->c_dtype);
    return xp_cuda_check(cudaMemset2DAsync(a->c, (size_t)a->ldc * size, 0, (size_t)a->n * size,
                                           (size_t)a->m, stream),
                         "gemm");
}

static xp_status tile_gemm(cudaStream_t stream, const xp_gemm_args *args) {
    const xp_tile_args p = {.a = args->a,
                            .b = args->b,
                            .c = args->c,
                            .m = args->m,
                            .n = args->n,
                            .k = args->k,
                            .lda = args->lda,
                            .ldb = args->ldb,
                            .ldc = args->ldc,
                            .trans_a = args->trans_a,
                            .trans_b = args->trans_b,
                            .ab_f32 = args->ab_dtype == XP_F32,
                            .c_f32 = args->c_dtype == XP_F32,
                            .alpha = args->alpha,
                            .acc = args->acc};
    return xp_cuda_tile_run(stream, &p);
}

xp_status xp_cuda_gemm(xp_stream *stream, const xp_gemm_args *args) {
    cudaStream_t s;
    xp_cublaslt *lt;
    xp_cublaslt_plan *plan;
    size_t n_bytes;
    if (args->m == 0 || args->n == 0)
        return XP_OK;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (args->k == 0)
        return clear(s, args);
    XP_TRY(xp_cublaslt_get((xp_cuda_device *)stream->device, &lt));
    void *workspace = xp_cublaslt_workspace(lt, s, &n_bytes);
    XP_TRY(xp_cublaslt_plan_get(lt, args, n_bytes, &plan));
    if (!plan->usable)
        return tile_gemm(s, args);
    if (lt->tuning && !plan->timed)
        XP_TRY(xp_cublaslt_time(lt, plan, args, workspace, s));
    return xp_cublaslt_check(lt,
                             xp_cublaslt_run(lt, plan, args, args->alpha, &plan->algo, workspace,
                                             plan->workspace_bytes, s),
                             "gemm");
}
