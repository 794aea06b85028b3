/* Final norm, head and loss. Logits exist for one chunk of rows at a time: GEMM, softmax, both
 * gradients at once. */
#include "model/model_internal.h"

static const xp_weight *head_weight(const xp_model *model) {
    return model->arch.tie_embeddings ? &model->embed : &model->lm_head;
}

static bool sums_in_f32(const xp_model *model) {
    return model->work.head_grad && model->n_tokens > model->chunk_rows;
}

xp_status xp_head_norm(xp_model *model, xp_stream *stream) {
    int last = (int)model->arch.n_layers - 1;
    return xp_norm_forward(model, xp_acts_get(&model->acts, last, XP_ACT_MID), model->work.branch,
                           model->work.final_input, &model->final_norm, model->work.normed,
                           model->work.final_rstd, stream);
}

xp_status xp_head_logits(xp_model *model, int64_t first, int64_t n, float *logits,
                         xp_stream *stream) {
    const int64_t dim = model->arch.dim, vocab = model->arch.vocab_size;
    const xp_gemm_args gemm = {.m = n,
                               .n = vocab,
                               .k = dim,
                               .trans_b = true,
                               .a = xp_offset(model->work.normed, first * dim, model->args.dtype),
                               .b = head_weight(model)->data,
                               .c = logits,
                               .lda = dim,
                               .ldb = dim,
                               .ldc = vocab,
                               .ab_dtype = model->args.dtype,
                               .c_dtype = XP_F32,
                               .alpha = 1.0F};
    return model->ops->gemm(stream, &gemm);
}

/* The chunk's part of the head's gradient, while work.logits still holds the loss's. A bf16 gradient of several chunks is summed in fp32 where
 * there is memory for it. */
static xp_status head_wgrad(xp_model *model, int64_t first, int64_t n, xp_stream *stream) {
    const xp_model_work *work = &model->work;
    const int64_t dim = model->arch.dim, vocab = model->arch.vocab_size;
    const void *x = xp_offset(work->normed, first * dim, model->args.dtype);
    if (!sums_in_f32(model))
        return xp_linear_wgrad(model, vocab, dim, n, work->logits, x, head_weight(model)->grad,
                               model->accumulate || first > 0, stream);
    const xp_gemm_args gemm = {.m = vocab,
                               .n = dim,
                               .k = n,
                               .trans_a = true,
                               .a = work->logits,
                               .b = x,
                               .c = work->head_grad,
                               .lda = vocab,
                               .ldb = dim,
                               .ldc = dim,
                               .ab_dtype = model->args.dtype,
                               .c_dtype = XP_F32,
                               .alpha = 1.0F,
                               .acc = first > 0};
    return model->ops->gemm(stream, &gemm);
}

/* The fp32 sum of all chunks -> the head's gradient. */
static xp_status round_head_grad(xp_model *model, xp_stream *stream) {
    const xp_axpy_args axpy = {.n = model->arch.vocab_size * model->arch.dim,
                               .alpha = 1.0F,
                               .x = model->work.head_grad,
                               .y = head_weight(model)->grad,
                               .x_dtype = XP_F32,
                               .y_dtype = model->args.grad_dtype,
                               .acc = model->accumulate};
    return model->ops->axpy(stream, &axpy);
}

/* Loss of rows [first, first + n), and when training their gradients: normed's and the head's. */
static xp_status chunk(xp_model *model, int64_t first, int64_t n, xp_stream *stream) {
    xp_model_work *work = &model->work;
    const xp_weight *head = head_weight(model);
    const int64_t dim = model->arch.dim, vocab = model->arch.vocab_size;
    const void *x = xp_offset(work->normed, first * dim, model->args.dtype);
    XP_TRY(xp_linear_forward(model, n, vocab, dim, x, head->data, work->logits, stream));
    const xp_cross_entropy_args loss = {.n_rows = n,
                                        .vocab = vocab,
                                        .logits = work->logits,
                                        .targets = work->targets + first,
                                        .loss = work->token_loss + first,
                                        .grad_scale = work->loss_scale,
                                        .write_grad = model->training,
                                        .dtype = model->args.dtype};
    XP_TRY(model->ops->cross_entropy(stream, &loss));
    if (!model->training)
        return XP_OK;
    return xp_linear_dgrad(model, n, dim, vocab, work->logits, head->data,
                           xp_offset(work->d_normed, first * dim, model->args.dtype), stream);
}

xp_status xp_head_pass(xp_model *model, xp_stream *stream) {
    xp_model_work *work = &model->work;
    int64_t first = 0, n = model->chunk_rows;
    XP_TRY(xp_head_norm(model, stream));
    for (; first + n < model->n_tokens; first += n) {
        XP_TRY(chunk(model, first, n, stream));
        if (model->training)
            XP_TRY(head_wgrad(model, first, n, stream));
    }
    XP_TRY(chunk(model, first, model->n_tokens - first, stream));
    const xp_sum_args sum = {.n = model->n_tokens, .x = work->token_loss, .out = work->losses};
    xp_stream *side;
    XP_TRY(xp_side_fork(model->side, stream, &side));
    XP_TRY(model->ops->sum(side, &sum));
    if (!model->training)
        return XP_OK;
    XP_TRY(xp_norm_backward(model, work->final_input, work->final_rstd, &model->final_norm,
                            work->d_normed, NULL, work->d_residual, stream));
    /* The top layer starts its exchange before the last weight gradient, which hides it. */
    XP_TRY(xp_ffn_backward_begin(model, (int)model->arch.n_layers - 1, stream));
    XP_TRY(head_wgrad(model, first, model->n_tokens - first, side));
    return sums_in_f32(model) ? round_head_grad(model, side) : XP_OK;
}
