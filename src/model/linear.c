/* The model's GEMMs and norms in terms of the op tables: shapes in, arguments filled. */
#include "model/model_internal.h"

static xp_gemm_args gemm_args(const xp_model *model, int64_t m, int64_t n, int64_t k, const void *a,
                              const void *b, void *c) {
    return (xp_gemm_args){.m = m,
                          .n = n,
                          .k = k,
                          .a = a,
                          .b = b,
                          .c = c,
                          .lda = k,
                          .ldb = n,
                          .ldc = n,
                          .ab_dtype = model->args.dtype,
                          .c_dtype = model->args.dtype,
                          .alpha = 1.0F};
}

xp_status xp_linear_forward(xp_model *model, int64_t m, int64_t n, int64_t k, const void *a,
                            const void *b, void *c, xp_stream *stream) {
    xp_gemm_args args = gemm_args(model, m, n, k, a, b, c);
    args.trans_b = true;
    args.ldb = k;
    return model->ops->gemm(stream, &args);
}

xp_status xp_linear_dgrad(xp_model *model, int64_t m, int64_t n, int64_t k, const void *a,
                          const void *b, void *c, xp_stream *stream) {
    const xp_gemm_args args = gemm_args(model, m, n, k, a, b, c);
    return model->ops->gemm(stream, &args);
}

xp_status xp_linear_wgrad(xp_model *model, int64_t m, int64_t n, int64_t k, const void *a,
                          const void *b, void *c, bool acc, xp_stream *stream) {
    xp_gemm_args args = gemm_args(model, m, n, k, a, b, c);
    args.trans_a = true;
    args.lda = m;
    args.c_dtype = model->args.grad_dtype;
    args.acc = acc;
    return model->ops->gemm(stream, &args);
}

xp_status xp_norm_forward(xp_model *model, const void *x, const void *residual, void *sum,
                          const xp_weight *weight, void *y, float *rstd, xp_stream *stream) {
    const xp_rmsnorm_args args = {.n_rows = model->n_tokens,
                                  .dim = model->arch.dim,
                                  .eps = (float)model->arch.norm_eps,
                                  .x = x,
                                  .residual = residual,
                                  .w = weight->data,
                                  .sum = residual ? sum : NULL,
                                  .y = y,
                                  .rstd = rstd,
                                  .dtype = model->args.dtype};
    return model->ops->rmsnorm_forward(stream, &args);
}

xp_status xp_norm_apply(xp_model *model, const void *s, const float *rstd, const xp_weight *weight,
                        void *y, xp_stream *stream) {
    const xp_rmsnorm_apply_args args = {.n_rows = model->n_tokens,
                                        .dim = model->arch.dim,
                                        .s = s,
                                        .w = weight->data,
                                        .rstd = rstd,
                                        .y = y,
                                        .dtype = model->args.dtype};
    return model->ops->rmsnorm_apply(stream, &args);
}

xp_status xp_norm_backward(xp_model *model, const void *s, const float *rstd,
                           const xp_weight *weight, const void *dy, const void *d_residual,
                           void *dx, xp_stream *stream) {
    xp_rmsnorm_backward_args args = {.n_rows = model->n_tokens,
                                     .dim = model->arch.dim,
                                     .s = s,
                                     .w = weight->data,
                                     .dy = dy,
                                     .rstd = rstd,
                                     .d_residual = d_residual,
                                     .dx = dx,
                                     .dw = weight->grad,
                                     .dtype = model->args.dtype,
                                     .dw_dtype = model->args.grad_dtype,
                                     .acc = model->accumulate,
                                     .scratch = model->work.norm_scratch};
    if (!model->side)
        return model->ops->rmsnorm_backward(stream, &args);
    xp_stream *side;
    args.part = XP_NORM_ROWS;
    XP_TRY(xp_side_wait(model->side, XP_SIDE_NORM, stream));
    XP_TRY(model->ops->rmsnorm_backward(stream, &args));
    XP_TRY(xp_side_fork(model->side, stream, &side));
    args.part = XP_NORM_WEIGHTS;
    XP_TRY(model->ops->rmsnorm_backward(side, &args));
    return xp_side_mark(model->side, XP_SIDE_NORM);
}
