#include "ep/transport/mailbox.h"

#include "comm/provider.h"
#include "core/file.h"

void xp_ep_mailbox_carve(const xp_ep_shape *s, xp_ep_carver *c, xp_ep_mailbox *box) {
    box->assignments_out =
        xp_ep_carve(c, (size_t)s->max_send_assignments * sizeof(xp_ep_assignment));
    box->assignments_in =
        xp_ep_carve(c, (size_t)s->max_recv_assignments * sizeof(xp_ep_assignment));
    box->weights_out = xp_ep_carve(c, (size_t)s->assignment_capacity * sizeof(float));
    box->weights_in = xp_ep_carve(c, (size_t)s->max_send_assignments * sizeof(float));
    xp_ep_exchange_carve(c, s->n_ranks, &box->exchange);
}

xp_status xp_ep_mailbox_open(xp_ep_group *group, xp_ep_mailbox *box) {
    XP_TRY(xp_comm_split(group->comm, 0, &box->comm));
    return xp_comm_prepare(box->comm, group->device, XP_EP_A2A_PIECE_BYTES);
}

void xp_ep_mailbox_close(xp_ep_mailbox *box) {
    xp_comm_destroy(box->comm);
    box->comm = NULL;
}

static void count_wait(const xp_ep_step *step, double started) {
    xp_ep_add(&step->group->totals.wait_ns, (int64_t)((xp_time_s() - started) * 1e9));
}

xp_status xp_ep_mailbox_share_blocks(const xp_ep_step *step, const xp_ep_mailbox *box,
                                     const int32_t *block) {
    double started = xp_time_s();
    xp_comm_set_phase(box->comm, step->phase);
    xp_status status = xp_comm_all_gather(box->comm, block, step->plan->blocks,
                                          step->group->shape.block_ints, XP_I32, NULL);
    count_wait(step, started);
    return status;
}

void xp_ep_mailbox_aim_assignments(const xp_ep_step *step, const xp_ep_mailbox *box,
                                   xp_ep_assignment **targets) {
    for (int d = 0; d < step->group->shape.n_ranks; d++)
        targets[d] = box->assignments_out + step->plan->send_assignment_base[d];
}

xp_status xp_ep_mailbox_share_assignments(const xp_ep_step *step, const xp_ep_mailbox *box,
                                          const xp_ep_assignment **assignments) {
    const xp_ep_plan *plan = step->plan;
    const int64_t size = sizeof(xp_ep_assignment);
    for (int r = 0; r < step->group->shape.n_ranks; r++) {
        const int32_t *out = plan->send_assignment_base + r, *in = plan->recv_assignment_base + r;
        xp_ep_exchange_set(&box->exchange, r, (out[1] - out[0]) * size, out[0] * size,
                           (in[1] - in[0]) * size, in[0] * size);
    }
    *assignments = box->assignments_in;
    return xp_ep_exchange_run(step, &box->exchange, box->comm, box->assignments_out,
                              box->assignments_in, NULL);
}

xp_status xp_ep_mailbox_weights(const xp_ep_step *step, const xp_ep_mailbox *box,
                                const xp_ep_home *home) {
    const xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    const int64_t size = sizeof(float);
    if (!home->d_weight)
        return XP_OK;
    int32_t first = plan->recv_assignment[plan->round_row[step->round]];
    int32_t end = plan->recv_assignment[plan->round_row[step->round + 1]];
    group->kernels->move(step->stream,
                         &(xp_ep_move_args){.n = end - first,
                                            .dst = box->weights_out,
                                            .src = home->d_weight,
                                            .src_index = plan->assignment_pos + first});
    for (int r = 0; r < group->shape.n_ranks; r++) {
        xp_ep_span out = xp_ep_plan_recv_assignments(plan, r, step->round),
                   in = xp_ep_plan_send_assignments(plan, r, step->round);
        xp_ep_exchange_set(&box->exchange, r, out.n * size, (out.first - first) * size, in.n * size,
                           in.first * size);
    }
    XP_TRY(xp_ep_exchange_run(step, &box->exchange, box->comm, box->weights_out, box->weights_in,
                              NULL));
    for (int d = 0; d < group->shape.n_ranks && home->d_topk_weight; d++) {
        xp_ep_span assignments = xp_ep_plan_send_assignments(plan, d, step->round);
        xp_ep_place_weights(step, assignments, box->weights_in + assignments.first,
                            home->d_topk_weight);
    }
    return XP_OK;
}
