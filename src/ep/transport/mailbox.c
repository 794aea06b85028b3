#include "ep/transport/mailbox.h"

#include "comm/provider.h"
#include "core/file.h"

void xp_ep_mailbox_carve(const xp_ep_shape *s, xp_ep_carver *c, xp_ep_mailbox *box) {
    box->picks_out = xp_ep_carve(c, (size_t)s->max_send_picks * sizeof(xp_ep_pick));
    box->picks_in = xp_ep_carve(c, (size_t)s->max_recv_picks * sizeof(xp_ep_pick));
    box->weights_out = xp_ep_carve(c, (size_t)s->pick_capacity * sizeof(float));
    box->weights_in = xp_ep_carve(c, (size_t)s->max_send_picks * sizeof(float));
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

void xp_ep_mailbox_aim_picks(const xp_ep_step *step, const xp_ep_mailbox *box,
                             xp_ep_pick **targets) {
    for (int d = 0; d < step->group->shape.n_ranks; d++)
        targets[d] = box->picks_out + step->plan->send_pick_base[d];
}

xp_status xp_ep_mailbox_share_picks(const xp_ep_step *step, const xp_ep_mailbox *box,
                                    const xp_ep_pick **picks) {
    const xp_ep_plan *plan = step->plan;
    const int64_t size = sizeof(xp_ep_pick);
    for (int r = 0; r < step->group->shape.n_ranks; r++) {
        const int32_t *out = plan->send_pick_base + r, *in = plan->recv_pick_base + r;
        xp_ep_exchange_set(&box->exchange, r, (out[1] - out[0]) * size, out[0] * size,
                           (in[1] - in[0]) * size, in[0] * size);
    }
    *picks = box->picks_in;
    return xp_ep_exchange_run(step, &box->exchange, box->comm, box->picks_out, box->picks_in, NULL);
}

xp_status xp_ep_mailbox_weights(const xp_ep_step *step, const xp_ep_mailbox *box,
                                const xp_ep_home *home) {
    const xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    const int64_t size = sizeof(float);
    if (!home->d_weight)
        return XP_OK;
    int32_t first = plan->recv_pick[plan->round_row[step->round]];
    int32_t end = plan->recv_pick[plan->round_row[step->round + 1]];
    group->kernels->move(step->stream, &(xp_ep_move_args){.n = end - first,
                                                          .dst = box->weights_out,
                                                          .src = home->d_weight,
                                                          .src_index = plan->pick_pos + first});
    for (int r = 0; r < group->shape.n_ranks; r++) {
        xp_ep_span out = xp_ep_plan_recv_picks(plan, r, step->round),
                   in = xp_ep_plan_send_picks(plan, r, step->round);
        xp_ep_exchange_set(&box->exchange, r, out.n * size, (out.first - first) * size, in.n * size,
                           in.first * size);
    }
    XP_TRY(xp_ep_exchange_run(step, &box->exchange, box->comm, box->weights_out, box->weights_in,
                              NULL));
    for (int d = 0; d < group->shape.n_ranks && home->d_topk_weight; d++) {
        xp_ep_span picks = xp_ep_plan_send_picks(plan, d, step->round);
        xp_ep_place_weights(step, picks, box->weights_in + picks.first, home->d_topk_weight);
    }
    return XP_OK;
}
