#include "ops/ops_check.h"

static xp_status need(bool holds, const char *op, const char *what) {
    return holds ? XP_OK : xp_error(XP_EINVAL, "%s: %s", op, what);
}

static xp_status need_size(int64_t size, int64_t least, const char *op, const char *name) {
    return size >= least ? XP_OK
                         : xp_error(XP_EINVAL, "%s: %s = %lld, must be at least %lld", op, name,
                                    (long long)size, (long long)least);
}

/* A leading dimension that is too small would make rows overlap. */
static xp_status need_ld(int64_t ld, int64_t width, const char *op, const char *name) {
    return ld >= width ? XP_OK
                       : xp_error(XP_EINVAL, "%s: %s = %lld is less than the row's %lld elements",
                                  op, name, (long long)ld, (long long)width);
}

static xp_status need_pointer(const void *pointer, bool needed, const char *op, const char *name) {
    return !needed || pointer != NULL ? XP_OK : xp_error(XP_EINVAL, "%s: %s is NULL", op, name);
}

static xp_status need_rows(xp_dtype dtype, const char *op, const char *name) {
    return dtype == XP_F32 || dtype == XP_BF16
               ? XP_OK
               : xp_error(XP_EINVAL, "%s: %s is %s, must be f32 or bf16", op, name,
                          xp_dtype_name(dtype));
}

/* ---- GEMM ------------------------------------------------------------------------- */

xp_status xp_check_gemm(const xp_gemm_args *args) {
    const char *op = "gemm";
    XP_TRY(need_size(args->m, 0, op, "m"));
    XP_TRY(need_size(args->n, 0, op, "n"));
    XP_TRY(need_size(args->k, 0, op, "k"));
    XP_TRY(need_rows(args->ab_dtype, op, "ab_dtype"));
    XP_TRY(need_rows(args->c_dtype, op, "c_dtype"));
    XP_TRY(need(args->ab_dtype == XP_BF16 || args->c_dtype == XP_F32, op,
                "f32 operands need an f32 result"));
    XP_TRY(need_ld(args->lda, args->trans_a ? args->m : args->k, op, "lda"));
    XP_TRY(need_ld(args->ldb, args->trans_b ? args->k : args->n, op, "ldb"));
    XP_TRY(need_ld(args->ldc, args->n, op, "ldc"));
    const bool any_c = args->m > 0 && args->n > 0, any_ab = any_c && args->k > 0;
    XP_TRY(need_pointer(args->a, any_ab, op, "a"));
    XP_TRY(need_pointer(args->b, any_ab, op, "b"));
    return need_pointer(args->c, any_c, op, "c");
}

static xp_status check_grouped(const xp_grouped_args *args, const char *op, xp_grouped_kind kind) {
    XP_TRY(need_size(args->n_experts, 0, op, "n_experts"));
    XP_TRY(need_size(args->max_rows, 0, op, "max_rows"));
    XP_TRY(need_size(args->n, 0, op, "n"));
    XP_TRY(need_size(args->k, 0, op, "k"));
    XP_TRY(need_size(args->spare_sms, 0, op, "spare_sms"));
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    const bool any = args->n_experts > 0 && args->n > 0 && args->k > 0,
               any_rows = any && args->max_rows > 0;
    const bool ranged = args->rows == XP_ROWS_IN_RANGE || args->rows == XP_ROWS_OUT_OF_RANGE;
    XP_TRY(need(ranged || args->rows == XP_ROWS_ALL, op, "rows is no value of xp_grouped_rows"));
    XP_TRY(need(!ranged || kind != XP_GROUPED_WGRAD, op,
                "a weight gradient is computed of all rows (XP_ROWS_ALL)"));
    XP_TRY(need_pointer(args->offsets, any, op, "offsets"));
    XP_TRY(need_pointer(args->row_range, any && ranged, op, "row_range"));
    XP_TRY(need_pointer(args->x, any_rows && kind != XP_GROUPED_DGRAD, op, "x"));
    XP_TRY(need_pointer(args->w, any_rows && kind != XP_GROUPED_WGRAD, op, "w"));
    XP_TRY(need_pointer(args->dy, any_rows && kind != XP_GROUPED_FORWARD, op, "dy"));
    if (kind != XP_GROUPED_WGRAD)
        return need_pointer(args->y, any_rows, op, "y");
    XP_TRY(need_rows(args->dw_dtype, op, "dw_dtype"));
    return need_pointer(args->y, any, op, "y");
}

xp_status xp_check_grouped_forward(const xp_grouped_args *args) {
    return check_grouped(args, "grouped_forward", XP_GROUPED_FORWARD);
}

xp_status xp_check_grouped_dgrad(const xp_grouped_args *args) {
    return check_grouped(args, "grouped_dgrad", XP_GROUPED_DGRAD);
}

xp_status xp_check_grouped_wgrad(const xp_grouped_args *args) {
    return check_grouped(args, "grouped_wgrad", XP_GROUPED_WGRAD);
}

static xp_status check_grouped_silu(const xp_grouped_silu_args *args, const char *op,
                                    xp_grouped_kind kind) {
    xp_grouped_args gemm = args->gemm;
    const bool forward = kind == XP_GROUPED_FORWARD;
    gemm.y = forward ? args->gate_up : args->h;
    XP_TRY(check_grouped(&gemm, op, kind));
    XP_TRY(need(!forward || gemm.n % 2 == 0, op, "n is odd, must be gate and up"));
    XP_TRY(need(forward || gemm.rows == XP_ROWS_ALL, op, "gradients are computed of all rows"));
    const bool any = gemm.n_experts > 0 && gemm.n > 0 && gemm.k > 0 && gemm.max_rows > 0;
    XP_TRY(need_pointer(args->gate_up, any, op, "gate_up"));
    XP_TRY(need_pointer(args->scratch, any && !forward && args->dp != NULL, op, "scratch"));
    return need_pointer(args->h, any, op, "h");
}

xp_status xp_check_grouped_silu_forward(const xp_grouped_silu_args *args) {
    return check_grouped_silu(args, "grouped_silu_forward", XP_GROUPED_FORWARD);
}

xp_status xp_check_grouped_silu_backward(const xp_grouped_silu_args *args) {
    return check_grouped_silu(args, "grouped_silu_backward", XP_GROUPED_DGRAD);
}

/* ---- embedding, norms, rope ------------------------------------------------------------------ */

static xp_status check_embed(const xp_embed_args *args, const char *op) {
    XP_TRY(need_size(args->n_tokens, 0, op, "n_tokens"));
    XP_TRY(need(args->n_tokens <= INT32_MAX, op, "n_tokens does not fit in 32 bits"));
    XP_TRY(need_size(args->dim, 0, op, "dim"));
    XP_TRY(need_size(args->vocab, args->n_tokens > 0 ? 1 : 0, op, "vocab"));
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    return need_pointer(args->ids, args->n_tokens > 0 && args->dim > 0, op, "ids");
}

xp_status xp_check_embed_forward(const xp_embed_args *args) {
    const char *op = "embed_forward";
    XP_TRY(check_embed(args, op));
    const bool any = args->n_tokens > 0 && args->dim > 0;
    XP_TRY(need_pointer(args->table, any, op, "table"));
    return need_pointer(args->x, any, op, "x");
}

xp_status xp_check_embed_backward(const xp_embed_args *args) {
    const char *op = "embed_backward";
    XP_TRY(check_embed(args, op));
    const bool sums = args->dim > 0 && !args->sort_only;
    XP_TRY(need_rows(args->dtable_dtype, op, "dtable_dtype"));
    XP_TRY(need_pointer(args->dx, args->n_tokens > 0 && sums, op, "dx"));
    XP_TRY(need_pointer(args->scratch, args->dim > 0, op, "scratch"));
    return need_pointer(args->dtable, args->vocab > 0 && sums, op, "dtable");
}

xp_status xp_check_rmsnorm_forward(const xp_rmsnorm_args *args) {
    const char *op = "rmsnorm_forward";
    XP_TRY(need_size(args->n_rows, 0, op, "n_rows"));
    XP_TRY(need_size(args->dim, 1, op, "dim"));
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    XP_TRY(need(args->eps >= 0, op, "eps is negative"));
    const bool any = args->n_rows > 0;
    XP_TRY(need_pointer(args->x, any, op, "x"));
    XP_TRY(need_pointer(args->w, any && args->y != NULL, op, "w"));
    XP_TRY(
        need_pointer(args->sum, any && args->residual != NULL, op, "sum (needed with a residual)"));
    return need_pointer(args->rstd, any, op, "rstd");
}

xp_status xp_check_rmsnorm_apply(const xp_rmsnorm_apply_args *args) {
    const char *op = "rmsnorm_apply";
    XP_TRY(need_size(args->n_rows, 0, op, "n_rows"));
    XP_TRY(need_size(args->dim, 1, op, "dim"));
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    const bool any = args->n_rows > 0;
    XP_TRY(need_pointer(args->s, any, op, "s"));
    XP_TRY(need_pointer(args->w, any, op, "w"));
    XP_TRY(need_pointer(args->rstd, any, op, "rstd"));
    return need_pointer(args->y, any, op, "y");
}

xp_status xp_check_rmsnorm_backward(const xp_rmsnorm_backward_args *args) {
    const char *op = "rmsnorm_backward";
    XP_TRY(need_size(args->n_rows, 0, op, "n_rows"));
    XP_TRY(need_size(args->dim, 1, op, "dim"));
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    XP_TRY(need_rows(args->dw_dtype, op, "dw_dtype"));
    const bool any = args->n_rows > 0;
    XP_TRY(need_pointer(args->s, any, op, "s"));
    XP_TRY(need_pointer(args->w, any, op, "w"));
    XP_TRY(need_pointer(args->dy, any, op, "dy"));
    XP_TRY(need_pointer(args->rstd, any, op, "rstd"));
    XP_TRY(need_pointer(args->dx, any, op, "dx"));
    XP_TRY(need_pointer(args->scratch, any, op, "scratch"));
    return need_pointer(args->dw, true, op, "dw");
}

static xp_status check_heads(int n_heads, int n_kv_heads, int head_dim, const char *op) {
    XP_TRY(need_size(n_heads, 1, op, "n_heads"));
    XP_TRY(need_size(n_kv_heads, 1, op, "n_kv_heads"));
    return need_size(head_dim, 1, op, "head_dim");
}

/* What forward and backward share. */
static xp_status check_qknorm(const xp_qknorm_rope_args *args, const char *op) {
    XP_TRY(need_size(args->n_tokens, 0, op, "n_tokens"));
    XP_TRY(check_heads(args->n_heads, args->n_kv_heads, args->head_dim, op));
    XP_TRY(need(args->head_dim % 2 == 0, op, "head_dim is odd; RoPE turns halves of a head"));
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    XP_TRY(need((args->q_norm == NULL) == (args->k_norm == NULL), op,
                "q_norm and k_norm: both or neither"));
    const bool any = args->n_tokens > 0;
    XP_TRY(need_pointer(args->qkv, any, op, "qkv"));
    XP_TRY(need_pointer(args->positions, any, op, "positions"));
    return need_pointer(args->rope, any, op, "rope");
}

xp_status xp_check_qknorm_rope_forward(const xp_qknorm_rope_args *args) {
    const char *op = "qknorm_rope_forward";
    XP_TRY(check_qknorm(args, op));
    XP_TRY(need_pointer(args->q, args->n_tokens > 0, op, "q"));
    return need_pointer(args->k, args->n_tokens > 0, op, "k");
}

xp_status xp_check_qknorm_rope_backward(const xp_qknorm_rope_backward_args *args) {
    const char *op = "qknorm_rope_backward";
    XP_TRY(check_qknorm(&args->forward, op));
    const bool any = args->forward.n_tokens > 0, norm = args->forward.q_norm != NULL;
    XP_TRY(need_pointer(args->dq, any, op, "dq"));
    XP_TRY(need_pointer(args->dk, any, op, "dk"));
    XP_TRY(need_pointer(args->dqkv, any, op, "dqkv"));
    if (!norm)
        return XP_OK;
    XP_TRY(need_rows(args->dw_dtype, op, "dw_dtype"));
    XP_TRY(need_pointer(args->dq_norm, true, op, "dq_norm"));
    XP_TRY(need_pointer(args->dk_norm, true, op, "dk_norm"));
    return need_pointer(args->scratch, true, op, "scratch");
}

/* ---- attention ------------------------------------------------------------------------------- */

static xp_status check_attention(const xp_attention_args *args, const char *op) {
    XP_TRY(need_size(args->n_rows, 0, op, "n_rows"));
    XP_TRY(need_size(args->seq_len, 0, op, "seq_len"));
    XP_TRY(check_heads(args->n_heads, args->n_kv_heads, args->head_dim, op));
    if (args->n_heads % args->n_kv_heads != 0)
        return xp_error(XP_EINVAL, "%s: %d query heads cannot share %d key/value heads evenly", op,
                        args->n_heads, args->n_kv_heads);
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    const int64_t q_width = (int64_t)args->n_heads * args->head_dim;
    const int64_t kv_width = (int64_t)args->n_kv_heads * args->head_dim;
    XP_TRY(need_ld(args->ldq, q_width, op, "ldq"));
    XP_TRY(need_ld(args->ldk, kv_width, op, "ldk"));
    XP_TRY(need_ld(args->ldv, kv_width, op, "ldv"));
    XP_TRY(need_ld(args->ldo, q_width, op, "ldo"));
    const bool any = args->n_rows > 0 && args->seq_len > 0;
    XP_TRY(need_pointer(args->q, any, op, "q"));
    XP_TRY(need_pointer(args->k, any, op, "k"));
    XP_TRY(need_pointer(args->v, any, op, "v"));
    XP_TRY(need_pointer(args->out, any, op, "out"));
    return need_pointer(args->lse, any, op, "lse");
}

xp_status xp_check_attention_forward(const xp_attention_args *args) {
    return check_attention(args, "attention_forward");
}

xp_status xp_check_attention_decode(const xp_attention_decode_args *args) {
    const char *op = "attention_decode";
    XP_TRY(need_size(args->n_tokens, 0, op, "n_tokens"));
    XP_TRY(need_size(args->n_cached, 0, op, "n_cached"));
    XP_TRY(check_heads(args->n_heads, args->n_kv_heads, args->head_dim, op));
    if (args->n_heads % args->n_kv_heads != 0 || args->head_dim > 256)
        return xp_error(XP_EINVAL,
                        "%s: %d query heads, %d key/value heads, head_dim %d (at most 256)", op,
                        args->n_heads, args->n_kv_heads, args->head_dim);
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    XP_TRY(need_ld(args->ldv, (int64_t)args->n_kv_heads * args->head_dim, op, "ldv"));
    const bool any = args->n_tokens > 0;
    XP_TRY(need_pointer(args->q, any, op, "q"));
    XP_TRY(need_pointer(args->k, any, op, "k"));
    XP_TRY(need_pointer(args->v, any, op, "v"));
    XP_TRY(need_pointer(args->k_cache, any, op, "k_cache"));
    XP_TRY(need_pointer(args->v_cache, any, op, "v_cache"));
    XP_TRY(need_pointer(args->out, any, op, "out"));
    return need_pointer(args->scores, any, op, "scores");
}

xp_status xp_check_attention_backward(const xp_attention_backward_args *args) {
    const char *op = "attention_backward";
    const xp_attention_args *f = &args->forward;
    XP_TRY(check_attention(f, op));
    XP_TRY(need_ld(args->lddq, (int64_t)f->n_heads * f->head_dim, op, "lddq"));
    XP_TRY(need_ld(args->lddk, (int64_t)f->n_kv_heads * f->head_dim, op, "lddk"));
    XP_TRY(need_ld(args->lddv, (int64_t)f->n_kv_heads * f->head_dim, op, "lddv"));
    const bool any = f->n_rows > 0 && f->seq_len > 0;
    XP_TRY(need_pointer(args->dout, any, op, "dout"));
    XP_TRY(need_pointer(args->dq, any, op, "dq"));
    XP_TRY(need_pointer(args->dk, any, op, "dk"));
    return need_pointer(args->dv, any, op, "dv");
}

/* ---- mixture of experts ---------------------------------------------------------------------- */

static xp_status check_routing(int64_t n_tokens, int n_experts, int top_k, const char *op) {
    XP_TRY(need_size(n_tokens, 0, op, "n_tokens"));
    XP_TRY(need_size(n_experts, 1, op, "n_experts"));
    XP_TRY(need_size(top_k, 1, op, "top_k"));
    if (top_k > n_experts)
        return xp_error(XP_EINVAL, "%s: top_k = %d is more than the %d experts", op, top_k,
                        n_experts);
    return XP_OK;
}

xp_status xp_check_router_forward(const xp_router_args *args) {
    const char *op = "router_forward";
    XP_TRY(check_routing(args->n_tokens, args->n_experts, args->top_k, op));
    const bool any = args->n_tokens > 0;
    XP_TRY(need_pointer(args->logits, any, op, "logits"));
    XP_TRY(need_pointer(args->scores, any, op, "scores"));
    XP_TRY(need_pointer(args->topk_idx, any, op, "topk_idx"));
    return need_pointer(args->topk_weight, any, op, "topk_weight");
}

xp_status xp_check_router_backward(const xp_router_backward_args *args) {
    const char *op = "router_backward";
    XP_TRY(check_routing(args->n_tokens, args->n_experts, args->top_k, op));
    if (args->aux_density != NULL) {
        XP_TRY(need_size(args->seq_len, 1, op, "seq_len"));
        XP_TRY(
            need(args->n_tokens % args->seq_len == 0, op, "n_tokens is not a multiple of seq_len"));
    }
    const bool any = args->n_tokens > 0;
    XP_TRY(need_pointer(args->scores, any, op, "scores"));
    XP_TRY(need_pointer(args->topk_idx, any, op, "topk_idx"));
    XP_TRY(need_pointer(args->d_topk_weight, any, op, "d_topk_weight"));
    return need_pointer(args->dlogits, any, op, "dlogits");
}

xp_status xp_check_router_linear_backward(const xp_router_linear_args *args) {
    const char *op = "router_linear_backward";
    XP_TRY(need_size(args->n_tokens, 0, op, "n_tokens"));
    XP_TRY(need_size(args->n_experts, 1, op, "n_experts"));
    XP_TRY(need_size(args->dim, 0, op, "dim"));
    XP_TRY(need_rows(args->grad_dtype, op, "grad_dtype"));
    const bool any = args->dim > 0, rows = any && args->n_tokens > 0;
    XP_TRY(need_pointer(args->dlogits, rows, op, "dlogits"));
    XP_TRY(need_pointer(args->x, rows, op, "x"));
    XP_TRY(need_pointer(args->gate, any, op, "gate"));
    XP_TRY(need_pointer(args->dx, rows && args->part != XP_ROUTER_GATE, op, "dx"));
    XP_TRY(need_pointer(args->d_gate, any && args->part != XP_ROUTER_ROWS, op, "d_gate"));
    return need_pointer(args->scratch, any, op, "scratch");
}

xp_status xp_check_router_losses(const xp_router_losses_args *args) {
    const char *op = "router_losses";
    XP_TRY(check_routing(args->n_tokens, args->n_experts, args->top_k, op));
    XP_TRY(need_size(args->seq_len, 1, op, "seq_len"));
    XP_TRY(need(args->n_tokens % args->seq_len == 0, op, "n_tokens is not a multiple of seq_len"));
    const bool any = args->n_tokens > 0;
    XP_TRY(need_pointer(args->scores, any && args->aux_density != NULL, op, "scores"));
    XP_TRY(need_pointer(args->topk_idx, any && args->aux_density != NULL, op, "topk_idx"));
    return need_pointer(args->targets, any, op, "targets");
}

xp_status xp_check_histogram(const xp_histogram_args *args) {
    const char *op = "histogram";
    XP_TRY(need_size(args->n, 0, op, "n"));
    XP_TRY(need_size(args->n_experts, 1, op, "n_experts"));
    XP_TRY(need_pointer(args->ids, args->n > 0, op, "ids"));
    return need_pointer(args->counts, true, op, "counts");
}

static xp_status check_silu(const xp_silu_gate_prob_args *args, const char *op, bool need_h) {
    XP_TRY(need_size(args->n_rows, 0, op, "n_rows"));
    XP_TRY(need_size(args->dim, 0, op, "dim"));
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    XP_TRY(need_ld(args->ld, args->dim, op, "ld"));
    const bool any = args->n_rows > 0 && args->dim > 0;
    XP_TRY(need_pointer(args->a, any, op, "a"));
    XP_TRY(need_pointer(args->b, any, op, "b"));
    return need_pointer(args->h, any && need_h, op, "h");
}

xp_status xp_check_silu_gate_prob_forward(const xp_silu_gate_prob_args *args) {
    return check_silu(args, "silu_gate_prob_forward", true);
}

xp_status xp_check_silu_gate_prob_backward(const xp_silu_gate_prob_backward_args *args) {
    const char *op = "silu_gate_prob_backward";
    XP_TRY(check_silu(&args->forward, op, false));
    XP_TRY(need_ld(args->ldd, args->forward.dim, op, "ldd"));
    const bool any = args->forward.n_rows > 0 && args->forward.dim > 0;
    XP_TRY(need_pointer(args->dh, any, op, "dh"));
    XP_TRY(need_pointer(args->da, any, op, "da"));
    return need_pointer(args->db, any, op, "db");
}

/* ---- loss, optimizer ------------------------------------------------------------------------- */

xp_status xp_check_cross_entropy(const xp_cross_entropy_args *args) {
    const char *op = "cross_entropy";
    XP_TRY(need_size(args->n_rows, 0, op, "n_rows"));
    XP_TRY(need_size(args->vocab, 1, op, "vocab"));
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    const bool any = args->n_rows > 0;
    XP_TRY(need_pointer(args->logits, any, op, "logits"));
    XP_TRY(need_pointer(args->targets, any, op, "targets"));
    XP_TRY(need_pointer(args->loss, any, op, "loss"));
    return need_pointer(args->grad_scale, any && args->write_grad, op, "grad_scale");
}

xp_status xp_check_adamw(const xp_adamw_args *args) {
    const char *op = "adamw";
    XP_TRY(need_size(args->n, 0, op, "n"));
    XP_TRY(need_size(args->step, 1, op, "step"));
    XP_TRY(need_rows(args->param_dtype, op, "param_dtype"));
    XP_TRY(need_rows(args->grad_dtype, op, "grad_dtype"));
    XP_TRY(need(args->beta1 >= 0 && args->beta1 < 1 && args->beta2 >= 0 && args->beta2 < 1, op,
                "betas must lie in [0, 1)"));
    const bool any = args->n > 0;
    XP_TRY(need_pointer(args->param, any, op, "param"));
    XP_TRY(need_pointer(args->remainder, any && args->param_dtype == XP_BF16, op, "remainder"));
    XP_TRY(need_pointer(args->grad, any, op, "grad"));
    XP_TRY(need_pointer(args->m, any, op, "m"));
    XP_TRY(need_pointer(args->v, any, op, "v"));
    return need_pointer(args->grad_scale, any, op, "grad_scale");
}

xp_status xp_check_remainder(const xp_remainder_args *args) {
    const char *op = "remainder";
    XP_TRY(need_size(args->n, 0, op, "n"));
    XP_TRY(need_pointer(args->master, args->n > 0, op, "master"));
    XP_TRY(need_pointer(args->param, args->n > 0, op, "param"));
    XP_TRY(need_pointer(args->remainder, args->n > 0, op, "remainder"));
    return need_pointer(args->v, args->n > 0, op, "v");
}

xp_status xp_check_clip_scale(const xp_clip_scale_args *args) {
    const char *op = "clip_scale";
    XP_TRY(need_size(args->n, 1, op, "n"));
    XP_TRY(need(args->max_norm >= 0, op, "max_norm must not be negative"));
    XP_TRY(need_pointer(args->squares, true, op, "squares"));
    return need_pointer(args->scale, true, op, "scale");
}

xp_status xp_check_sum_squares(const xp_sum_squares_args *args) {
    const char *op = "sum_squares";
    XP_TRY(need_size(args->n, 0, op, "n"));
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    XP_TRY(need_pointer(args->x, args->n > 0, op, "x"));
    XP_TRY(need_pointer(args->scratch, args->n > 0, op, "scratch"));
    return need_pointer(args->out, true, op, "out");
}

xp_status xp_check_sum_squares_parts(const xp_sum_squares_parts_args *args) {
    const char *op = "sum_squares_parts";
    XP_TRY(need_size(args->n_parts, 0, op, "n_parts"));
    XP_TRY(need_rows(args->dtype, op, "dtype"));
    XP_TRY(need_pointer(args->parts, args->n_parts > 0, op, "parts"));
    for (int i = 0; i < args->n_parts; i++) {
        XP_TRY(need_size(args->parts[i].first, 0, op, "parts[i].first"));
        XP_TRY(need_size(args->parts[i].n, 0, op, "parts[i].n"));
        XP_TRY(need_pointer(args->x, args->parts[i].n > 0, op, "x"));
    }
    XP_TRY(need_pointer(args->scratch, args->n_parts > 0, op, "scratch"));
    return need_pointer(args->out, args->n_parts > 0, op, "out");
}

xp_status xp_check_axpy(const xp_axpy_args *args) {
    const char *op = "axpy";
    XP_TRY(need_size(args->n, 0, op, "n"));
    XP_TRY(need_rows(args->x_dtype, op, "x_dtype"));
    XP_TRY(need_rows(args->y_dtype, op, "y_dtype"));
    XP_TRY(need(args->x != args->y || args->x_dtype == args->y_dtype, op,
                "x may be y only when their types agree"));
    XP_TRY(need_pointer(args->x, args->n > 0, op, "x"));
    return need_pointer(args->y, args->n > 0, op, "y");
}

xp_status xp_check_draw(const xp_draw_args *args) {
    XP_TRY(need_size(args->n, 0, "draw", "n"));
    XP_TRY(need(args->std >= 0, "draw", "std must not be negative"));
    return need_pointer(args->out, args->n > 0, "draw", "out");
}

xp_status xp_check_sum(const xp_sum_args *args) {
    XP_TRY(need_size(args->n, 0, "sum", "n"));
    XP_TRY(need_pointer(args->x, args->n > 0, "sum", "x"));
    return need_pointer(args->out, true, "sum", "out");
}
