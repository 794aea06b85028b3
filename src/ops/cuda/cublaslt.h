/** A device's cuBLASLt: handle, workspaces, and the GEMM shapes whose algorithm has been chosen. */
#ifndef XP_OPS_CUDA_CUBLASLT_H
#define XP_OPS_CUDA_CUBLASLT_H

#include <cublasLt.h>
#include "ops/cuda/libraries.h"
#include "ops/gemm_choice.h"
#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/** The library's functions, found by name in a library that was opened at run time. */
typedef struct xp_cublaslt_api {
    __typeof__(cublasLtCreate) *create;
    __typeof__(cublasLtDestroy) *destroy;
    __typeof__(cublasLtGetStatusString) *status_string;
    __typeof__(cublasLtMatmul) *matmul;
    __typeof__(cublasLtMatmulAlgoGetHeuristic) *get_heuristic;
    __typeof__(cublasLtMatmulDescCreate) *desc_create;
    __typeof__(cublasLtMatmulDescDestroy) *desc_destroy;
    __typeof__(cublasLtMatmulDescSetAttribute) *desc_set;
    __typeof__(cublasLtMatrixLayoutCreate) *layout_create;
    __typeof__(cublasLtMatrixLayoutDestroy) *layout_destroy;
    __typeof__(cublasLtMatmulPreferenceCreate) *preference_create;
    __typeof__(cublasLtMatmulPreferenceDestroy) *preference_destroy;
    __typeof__(cublasLtMatmulPreferenceSetAttribute) *preference_set;
} xp_cublaslt_api;

/** What decides the algorithm; compared byte by byte, so every padding byte is zero. */
typedef struct xp_cublaslt_key {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t trans_a, trans_b, ab_dtype, c_dtype, acc;
    int32_t align_a, align_b, align_c; /* bytes, at most 256 */
    int64_t workspace_bytes;
} xp_cublaslt_key;

typedef struct xp_cublaslt_plan {
    xp_cublaslt_key key;
    bool usable; /* false: the library has no algorithm for this shape */
    bool timed;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c; /* of the library's column-major GEMM: a is our b */
    cublasLtMatmulAlgo_t algo;
    size_t workspace_bytes; /* that the algorithm uses */
} xp_cublaslt_plan;

/** Streams that may have GEMMs in flight at the same time; later ones go without workspace. */
#define XP_CUBLASLT_STREAMS XP_OPS_BLAS_STREAMS

typedef struct xp_cublaslt {
    xp_cublaslt_api api;
    cublasLtHandle_t handle;
    void *workspace; /* one part for each of the first streams */
    cudaStream_t streams[XP_CUBLASLT_STREAMS];
    int n_streams;
    xp_cublaslt_plan *plans;
    int n_plans, capacity;
    xp_gemm_choice *choices; /* [XP_GEMM_CHOICES_MAX]; NULL: the library's own */
    int n_choices;
    bool tuning; /* choices are made by timing */
} xp_cublaslt;

/** The device's own, made at first use. @return XP_ENOTSUP with the reason where the library is
 * missing; XP_ENOMEM */
XP_NODISCARD xp_status xp_cublaslt_get(xp_cuda_device *device, xp_cublaslt **lt);
/** The plan of this shape, chosen once: by lt->choices, else by the library's heuristic. Valid until the
 * next call. */
XP_NODISCARD xp_status xp_cublaslt_plan_get(xp_cublaslt *lt, const xp_gemm_args *args,
                                            size_t workspace_bytes, xp_cublaslt_plan **plan);
/** The algorithms of the shapes that have been used, by lt->choices as they are now. */
XP_NODISCARD xp_status xp_cublaslt_choose_again(xp_cublaslt *lt);
/** The library's deterministic algorithms for the plan's shape, best guess first. @param[out] n  0: none */
XP_NODISCARD xp_status
xp_cublaslt_candidates(const xp_cublaslt *lt, const xp_cublaslt_plan *plan, int most,
                       cublasLtMatmulHeuristicResult_t found[XP_GEMM_CANDIDATES], int *n);
/** c = alpha a b (+ c) by this algorithm. @return the library's own answer */
cublasStatus_t xp_cublaslt_run(const xp_cublaslt *lt, const xp_cublaslt_plan *plan,
                               const xp_gemm_args *args, float alpha,
                               const cublasLtMatmulAlgo_t *algo, void *workspace,
                               size_t workspace_bytes, cudaStream_t stream);
/** cublaslt_tune.c: time the plan's candidates on these operands, keep the fastest in plan and lt->choices.
 * Waits for the stream. */
XP_NODISCARD xp_status xp_cublaslt_time(xp_cublaslt *lt, xp_cublaslt_plan *plan,
                                        const xp_gemm_args *args, void *workspace,
                                        cudaStream_t stream);
/** For xp_cuda_backend.gemm_choices. */
extern const xp_gemm_choice_calls xp_cublaslt_choices;
/** The workspace of a stream; NULL and 0 bytes for streams that came too late. */
void *xp_cublaslt_workspace(xp_cublaslt *lt, cudaStream_t stream, size_t *n_bytes);
XP_NODISCARD xp_status xp_cublaslt_check(const xp_cublaslt *lt, cublasStatus_t result,
                                         const char *doing);

#ifdef __cplusplus
}
#endif
#endif
