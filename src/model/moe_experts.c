/* One job of a pass: dispatch, experts, combine, forward and backward, one stream or two. */
#include "ep/internal.h"
#include "model/moe_job.h"

/* All assignments are local and fit: the gather list points into the tokens, nothing is dispatched. */
static bool is_direct(const xp_moe_core *core) {
    return core->args.n_ranks == 1 && core->sizes.max_rounds == 1;
}

static char *part_rows(const xp_moe_job *j, const void *x) {
    return (char *)x + j->begin * j->core->args.dim * (int64_t)xp_dtype_bytes(j->core->args.dtype);
}

static xp_tensor tensor_of(const xp_moe_job *j, void *data, int64_t n_rows) {
    return xp_tensor_2d(data, j->core->args.dtype, n_rows, j->core->args.dim);
}

/* ---- order between the two streams; one stream needs none ------------------------------------ */

static xp_status mark(const xp_moe_job *j, xp_event *event, xp_stream *stream) {
    return j->compute == j->comm ? XP_OK : xp_event_record(event, stream);
}

static xp_status after(const xp_moe_job *j, xp_event *event, xp_stream *stream) {
    return j->compute == j->comm ? XP_OK : xp_event_wait(event, stream);
}

/* ---- forward --------------------------------------------------------------------------------- */

/* Only the first round's recv rows are saved: the others are rare, and dispatched again. */
static void *saved_recv(const xp_moe_job *j) {
    return j->round == 0 ? j->part->recv : NULL;
}

/* Rounds lie one after the other where the host knows how many rows each has. */
static void *saved_gate_up(const xp_moe_job *j) {
    const xp_moe_core *core = j->core;
    char *rows = j->part->gate_up;
    for (int64_t r = 0; rows && r < j->round; r++) {
        xp_ep_view before;
        if (!j->part->saves_all || xp_ep_plan_view(j->part->plan, r, &before) != XP_OK)
            return NULL;
        rows += before.offsets[core->n_local] * core->gate_up_arena.row_bytes;
    }
    return rows;
}

/* The rows this job's experts read: saved ones, the slot's, or the tokens themselves. */
static void *recv_of(const xp_moe_job *j) {
    if (is_direct(j->core))
        return part_rows(j, j->pass->x);
    return saved_recv(j) ? saved_recv(j) : j->slot->received[!j->turn];
}

static void *gate_up_of(const xp_moe_job *j) {
    return saved_gate_up(j) ? saved_gate_up(j) : j->core->gate_up;
}

static xp_status dispatch_x(const xp_moe_job *j) {
    xp_tensor x = tensor_of(j, part_rows(j, j->pass->x), j->n_tokens);
    xp_tensor recv = tensor_of(j, recv_of(j), j->core->sizes.recv_capacity);
    return xp_ep_dispatch(j->core->group, j->part->plan, j->round, &x, &recv, j->comm);
}

static xp_status forward_arrive(const xp_moe_job *j) {
    if (is_direct(j->core))
        return XP_OK;
    XP_TRY(after(j, j->slot->spent, j->comm));
    xp_ep_group_set_sms(j->core->group, j->spare_sms);
    XP_TRY(dispatch_x(j));
    return mark(j, j->slot->arrived, j->comm);
}

static xp_grouped_args grouped(const xp_moe_job *j, const xp_ep_view *view, int64_t n, int64_t k) {
    const xp_moe_core_args *args = &j->core->args;
    return (xp_grouped_args){.n_experts = j->core->n_local,
                             .max_rows = j->core->sizes.assignment_capacity,
                             .n = n,
                             .k = k,
                             .offsets = view->offsets,
                             .dtype = args->dtype,
                             .dw_dtype = args->grad_dtype};
}

static xp_silu_gate_prob_args activation(const xp_moe_job *j, const xp_ep_view *view) {
    const xp_moe_core *core = j->core;
    int64_t width = core->args.moe_dim;
    char *gate_up = gate_up_of(j);
    return (xp_silu_gate_prob_args){.n_rows = core->sizes.assignment_capacity,
                                    .dim = width,
                                    .n_rows_device = view->offsets + core->n_local,
                                    .a = gate_up,
                                    .b =
                                        gate_up + width * (int64_t)xp_dtype_bytes(core->args.dtype),
                                    .ld = 2 * width,
                                    .p = view->weight,
                                    .h = core->h,
                                    .dtype = core->args.dtype};
}

/* Which rows a GEMM computes. Those of this rank's own tokens run beside an exchange. */
static void choose_rows(const xp_ep_view *view, xp_grouped_rows rows, int spare_sms,
                        xp_grouped_args *gemm) {
    gemm->rows = rows;
    gemm->row_range = rows != XP_ROWS_ALL ? view->own_rows : NULL;
    gemm->spare_sms = rows == XP_ROWS_IN_RANGE ? spare_sms : 0;
}

/* The first GEMM with the activation in its epilogue: h as well. */
static xp_status first_with_silu(const xp_moe_job *j, const xp_ep_view *view,
                                 const xp_grouped_args *gemm) {
    const xp_grouped_silu_args silu = {
        .gemm = *gemm, .p = view->weight, .gate_up = gemm->y, .h = j->core->h};
    return j->core->ops->grouped_silu_forward(j->compute, &silu);
}

/* gate_up = recv[gather] w13^T. Own rows are read where their tokens are: they need no dispatch. */
static xp_status first_product(const xp_moe_job *j, const xp_ep_view *view, xp_grouped_rows rows) {
    const xp_moe_core_args *args = &j->core->args;
    const bool own = rows == XP_ROWS_IN_RANGE;
    xp_grouped_args gemm = grouped(j, view, 2 * args->moe_dim, args->dim);
    gemm.gather = own ? view->own_token : view->gather;
    gemm.x = own ? part_rows(j, j->pass->x) : recv_of(j);
    gemm.w = j->pass->weights->w13;
    gemm.y = gate_up_of(j);
    choose_rows(view, rows, j->spare_sms, &gemm);
    if (own && j->n_tokens == 0)
        return XP_OK;
    return j->core->fuses_silu ? first_with_silu(j, view, &gemm)
                               : j->core->ops->grouped_forward(j->compute, &gemm);
}

/* rows = h w2^T */
static xp_status second_product(const xp_moe_job *j, const xp_ep_view *view, xp_grouped_rows rows) {
    const xp_moe_core *core = j->core;
    xp_grouped_args gemm = grouped(j, view, core->args.dim, core->args.moe_dim);
    gemm.x = core->h;
    gemm.w = j->pass->weights->w2;
    gemm.y = j->slot->rows;
    choose_rows(view, rows, j->send_sms, &gemm);
    return rows == XP_ROWS_IN_RANGE && j->n_tokens == 0
               ? XP_OK
               : core->ops->grouped_forward(j->compute, &gemm);
}

/* Forward: own rows are computed beside the exchange of the others. */
static bool splits_rows(const xp_moe_job *j) {
    return j->compute != j->comm && j->core->n_parts == 1;
}

/* Other transports exchange the sums of all rows at once. */
static bool splits_combine(const xp_moe_job *j) {
    return splits_rows(j) && xp_ep_group_transport(j->core->group) == XP_EP_P2P;
}

static xp_status forward_experts(const xp_moe_job *j) {
    const xp_moe_core *core = j->core;
    xp_ep_view view;
    XP_TRY(xp_ep_plan_view(j->part->plan, j->round, &view));
    if (splits_rows(j))
        XP_TRY(first_product(j, &view, XP_ROWS_IN_RANGE));
    XP_TRY(is_direct(core) ? XP_OK : after(j, j->slot->arrived, j->compute));
    XP_TRY(first_product(j, &view, splits_rows(j) ? XP_ROWS_OUT_OF_RANGE : XP_ROWS_ALL));
    XP_TRY(mark(j, j->slot->spent, j->compute));
    const xp_silu_gate_prob_args silu = activation(j, &view);
    if (!core->fuses_silu)
        XP_TRY(core->ops->silu_gate_prob_forward(j->compute, &silu));
    XP_TRY(after(j, j->slot->sent, j->compute));
    XP_TRY(second_product(j, &view, splits_combine(j) ? XP_ROWS_OUT_OF_RANGE : XP_ROWS_ALL));
    return mark(j, j->slot->ready, j->compute);
}

static xp_status forward_leave(const xp_moe_job *j) {
    xp_tensor y = tensor_of(j, j->slot->rows, j->core->sizes.assignment_capacity);
    xp_tensor out = tensor_of(j, part_rows(j, j->pass->out), j->n_tokens);
    xp_ep_group *group = j->core->group;
    xp_ep_view view;
    if (!splits_combine(j)) {
        /* Nothing runs beside it, so that it needs no stream of its own. */
        xp_stream *stream = splits_rows(j) ? j->compute : j->comm;
        XP_TRY(after(j, j->slot->ready, stream));
        xp_ep_group_set_sms(group, 0);
        XP_TRY(xp_ep_combine(group, j->part->plan, j->round, &y, &out, stream));
        return mark(j, j->slot->sent, stream);
    }
    XP_TRY(xp_ep_plan_view(j->part->plan, j->round, &view));
    XP_TRY(after(j, j->slot->ready, j->comm));
    xp_ep_group_set_sms(group, j->send_sms);
    XP_TRY(xp_ep_combine_send(group, j->part->plan, j->round, &y, j->comm));
    XP_TRY(second_product(j, &view, XP_ROWS_IN_RANGE));
    xp_ep_group_set_sms(group, 0);
    XP_TRY(xp_ep_combine_recv(group, j->part->plan, j->round, &y, &out, j->compute));
    return mark(j, j->slot->sent, j->compute);
}

/* ---- backward -------------------------------------------------------------------------------- */

static void *d_recv_of(const xp_moe_job *j) {
    return is_direct(j->core) ? part_rows(j, j->pass->d_out) : j->slot->received[j->turn];
}

xp_status xp_moe_send_d_out(const xp_moe_job *j) {
    xp_tensor d_out = tensor_of(j, part_rows(j, j->pass->d_out), j->n_tokens);
    xp_tensor d_recv = tensor_of(j, d_recv_of(j), j->core->sizes.recv_capacity);
    XP_TRY(after(j, j->slot->spent, j->comm));
    return xp_ep_combine_backward(j->core->group, j->part->plan, j->round, &d_out, &d_recv,
                                  j->comm);
}

static xp_status backward_arrive(const xp_moe_job *j) {
    if (is_direct(j->core))
        return XP_OK;
    if (!(j->first && j->core->begun == j->pass->saved))
        XP_TRY(xp_moe_send_d_out(j));
    if (!saved_recv(j))
        XP_TRY(dispatch_x(j));
    return mark(j, j->slot->arrived, j->comm);
}

static bool accumulates(const xp_moe_job *j) {
    return j->pass->accumulate || !j->first;
}

/* dw2 = d_recv[gather]^T h */
xp_status xp_moe_w2_gradient(const xp_moe_job *j) {
    const xp_moe_core_args *args = &j->core->args;
    xp_ep_view view;
    XP_TRY(xp_ep_plan_view(j->part->plan, j->round, &view));
    xp_grouped_args w2 = grouped(j, &view, args->dim, args->moe_dim);
    w2.x = j->core->h;
    w2.dy = d_recv_of(j);
    w2.gather_dy = view.gather;
    w2.y = j->pass->weights->d_w2;
    w2.acc = accumulates(j);
    w2.spare_sms = j->spare_sms;
    return j->core->ops->grouped_wgrad(j->compute, &w2);
}

/* dw13 = d_gate_up^T recv[gather] */
static xp_status w13_gradient(const xp_moe_job *j) {
    const xp_moe_core_args *args = &j->core->args;
    xp_ep_view view;
    XP_TRY(xp_ep_plan_view(j->part->plan, j->round, &view));
    xp_grouped_args w13 = grouped(j, &view, 2 * args->moe_dim, args->dim);
    w13.x = recv_of(j);
    w13.gather = view.gather;
    w13.dy = gate_up_of(j);
    w13.y = j->pass->weights->d_w13;
    w13.acc = accumulates(j);
    w13.spare_sms = j->spare_sms;
    return j->core->ops->grouped_wgrad(j->compute, &w13);
}

/* Both beside what follows on the compute stream. w2's first: it reads d_out. */
static xp_status weights_on_side(const xp_moe_job *j) {
    xp_moe_job side = *j;
    XP_TRY(xp_side_fork(j->pass->side, j->compute, &side.compute));
    XP_TRY(xp_moe_w2_gradient(&side));
    XP_TRY(xp_side_mark(j->pass->side, XP_SIDE_RESIDUAL));
    return w13_gradient(&side);
}

static xp_status backward_weights(const xp_moe_job *j) {
    xp_moe_core *core = j->core;
    if (j->pass->side)
        return XP_OK; /* queued by backward_experts() */
    const bool defers = j->pass->defer && j->last && core->comm_stream && core->n_parts == 1;
    if (!defers)
        XP_TRY(xp_moe_w2_gradient(j));
    else
        core->deferred = (xp_moe_deferred){true, *j->pass, j->index, j->turn};
    XP_TRY(w13_gradient(j));
    return mark(j, j->slot->spent, j->compute);
}

/* dh = d_recv[gather] w2, then da and db in place of a and b, h again in place of dh, and dp. */
static xp_status activation_backward(const xp_moe_job *j, const xp_ep_view *view) {
    const xp_moe_core *core = j->core;
    const xp_moe_core_args *args = &core->args;
    xp_grouped_args dh = grouped(j, view, args->dim, args->moe_dim);
    dh.dy = d_recv_of(j);
    dh.gather_dy = view->gather;
    dh.w = j->pass->weights->w2;
    dh.y = core->h;
    char *gate_up = gate_up_of(j);
    if (core->fuses_silu) { /* the job's rows are written later: their room holds the parts of dp */
        const xp_grouped_silu_args fused = {.gemm = dh,
                                            .p = view->weight,
                                            .gate_up = gate_up,
                                            .h = core->h,
                                            .dp = j->slot->dp,
                                            .scratch = j->slot->rows};
        return core->ops->grouped_silu_backward(j->compute, &fused);
    }
    XP_TRY(core->ops->grouped_dgrad(j->compute, &dh));
    const xp_silu_gate_prob_backward_args silu = {
        .forward = activation(j, view),
        .dh = core->h,
        .da = gate_up,
        .db = gate_up + args->moe_dim * (int64_t)xp_dtype_bytes(args->dtype),
        .ldd = 2 * args->moe_dim,
        .dp = j->slot->dp};
    return core->ops->silu_gate_prob_backward(j->compute, &silu);
}

/* Where only the device knows the rounds, later ones are nearly always empty. */
static void count_recomputed(const xp_moe_job *j) {
    xp_moe_recomputed *recomputed = &j->core->recomputed;
    if (!j->core->args.save_gate_up || (j->round > 0 && !j->part->rounds_known))
        return;
    recomputed->n_rounds++;
    recomputed->n_overflow += j->part->rounds_known && j->part->n_rounds > 1;
}

static xp_status backward_experts(const xp_moe_job *j) {
    const xp_moe_core *core = j->core;
    const xp_moe_core_args *args = &core->args;
    xp_ep_view view;
    XP_TRY(xp_ep_plan_view(j->part->plan, j->round, &view));
    XP_TRY(is_direct(core) ? XP_OK : after(j, j->slot->arrived, j->compute));
    if (!saved_gate_up(j)) {
        count_recomputed(j);
        XP_TRY(first_product(j, &view, XP_ROWS_ALL));
    }
    /* This slot's rows and dp are in use until the combine of the job before the last has read them. */
    XP_TRY(after(j, j->slot->sent, j->compute));
    XP_TRY(activation_backward(j, &view));
    if (j->pass->side)
        XP_TRY(weights_on_side(j));
    xp_grouped_args dx = grouped(j, &view, 2 * args->moe_dim, args->dim);
    dx.dy = gate_up_of(j);
    dx.w = j->pass->weights->w13;
    dx.y = j->slot->rows;
    XP_TRY(core->ops->grouped_dgrad(j->compute, &dx));
    return mark(j, j->slot->ready, j->compute);
}

static xp_status backward_leave(const xp_moe_job *j) {
    const xp_moe_core *core = j->core;
    xp_tensor rows = tensor_of(j, j->slot->rows, core->sizes.assignment_capacity);
    xp_tensor dx = tensor_of(j, part_rows(j, j->pass->dx), j->n_tokens);
    float *d_weight = core->d_topk_weight + j->begin * core->args.top_k;
    XP_TRY(after(j, j->slot->ready, j->comm));
    XP_TRY(xp_ep_dispatch_backward(core->group, j->part->plan, j->round, &rows, j->slot->dp, &dx,
                                   d_weight, j->comm));
    return mark(j, j->slot->sent, j->comm);
}

const xp_moe_phases xp_moe_forward_phases = {
    .arrive = forward_arrive, .experts = forward_experts, .leave = forward_leave};
const xp_moe_phases xp_moe_backward_phases = {.arrive = backward_arrive,
                                              .experts = backward_experts,
                                              .leave = backward_leave,
                                              .weights = backward_weights,
                                              .all_rounds_beside = true};
