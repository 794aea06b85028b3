/*
 * p2p: whoever has rows writes them where they are wanted, or, on their way home between threads,
 * leaves them where they can be read. Counts are exchanged first, so every place is known before a
 * row moves and there are no rings and no credits.
 */
#include "ep/transport/p2p.h"

#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"
#include "device/plugin.h"

static size_t carve(const xp_ep_shape *s, bool direct, char *base, p2p_area *area) {
    xp_ep_carver c = {.base = base};
    size_t n_ranks = (size_t)s->n_ranks;
    p2p_area a = {
        .bell = xp_ep_carve(&c, sizeof(xp_bell)),
        .flags = xp_ep_carve(&c, P2P_N_POINTS * n_ranks * sizeof(p2p_flag)),
        .recv_at = xp_ep_carve(&c, n_ranks * sizeof(void *)),
        .near = xp_ep_carve(&c, n_ranks * sizeof(xp_ep_expert_rows)),
        .blocks = xp_ep_carve(&c, n_ranks * (size_t)s->block_ints * sizeof(int32_t)),
        .starts = xp_ep_carve(&c, n_ranks * (size_t)s->max_rounds * sizeof(int32_t)),
        .assignments = xp_ep_carve(&c, (size_t)s->max_recv_assignments * sizeof(xp_ep_assignment)),
        .weights = xp_ep_carve(&c, (size_t)s->max_send_assignments * sizeof(float)),
        .home = xp_ep_carve(&c, (size_t)s->max_send_rows * s->row_bytes),
        .recv = direct ? NULL : xp_ep_carve(&c, (size_t)s->recv_capacity * s->row_bytes),
    };
    if (area)
        *area = a;
    return c.used;
}

static size_t measure(const xp_ep_shape *shape, const xp_ep_config *config) {
    const size_t step =
        config->separate_processes && config->on_gpu ? XP_GPU_SHARED_BLOCK_BYTES : 1;
    const size_t n_bytes =
        carve(shape, !config->separate_processes, NULL, NULL) * (size_t)shape->n_slots;
    return (n_bytes + step - 1) / step * step;
}

static xp_status create(xp_ep_group *group) {
    const xp_ep_shape *s = &group->shape;
    p2p_state *state = calloc(1, sizeof *state);
    group->state = state;
    if (!state)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    state->direct = xp_comm_shares_addresses(group->comm);
    state->areas = calloc((size_t)s->n_slots * (size_t)s->n_ranks, sizeof *state->areas);
    state->epochs = calloc((size_t)s->n_slots, sizeof *state->epochs);
    if (!state->areas || !state->epochs)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    size_t each = carve(s, state->direct, NULL, NULL);
    XP_TRY(xp_comm_window_create(group->comm, group->device, each * (size_t)s->n_slots, "ep",
                                 &state->window));
    for (int slot = 0; slot < s->n_slots; slot++) {
        for (int r = 0; r < s->n_ranks; r++)
            carve(s, state->direct, (char *)xp_window_peer(state->window, r) + each * (size_t)slot,
                  &state->areas[slot * s->n_ranks + r]);
    }
    return XP_OK;
}

static void destroy(xp_ep_group *group) {
    p2p_state *state = group->state;
    if (!state)
        return;
    xp_comm_window_destroy(state->window);
    free(state->areas);
    free(state->epochs);
    free(state);
}

/* Peers in an order that starts after this rank, so that not everybody writes to rank 0 first. */
static int peer_at(const xp_ep_group *group, int i) {
    return (group->rank + 1 + i) % group->shape.n_ranks;
}

static void post_all(const xp_ep_step *step, p2p_point point) {
    for (int i = 0; i < step->group->shape.n_ranks; i++)
        xp_ep_p2p_post(step, peer_at(step->group, i), point);
}

static xp_status wait_all(const xp_ep_step *step, p2p_point point) {
    for (int i = 0; i < step->group->shape.n_ranks; i++)
        XP_TRY(xp_ep_p2p_wait(step, peer_at(step->group, i), point));
    return XP_OK;
}

static xp_status share_blocks(const xp_ep_step *step, const int32_t *block) {
    const xp_ep_shape *s = &step->group->shape;
    size_t n_bytes = (size_t)s->block_ints * sizeof *block;
    xp_ep_p2p_begin(step);
    for (int r = 0; r < s->n_ranks; r++)
        memcpy(xp_ep_p2p_area(step, r)->blocks + (int64_t)step->group->rank * s->block_ints, block,
               n_bytes);
    post_all(step, P2P_COUNTS);
    XP_TRY(wait_all(step, P2P_COUNTS));
    memcpy(step->plan->blocks, xp_ep_p2p_area(step, step->group->rank)->blocks,
           n_bytes * (size_t)s->n_ranks);
    return XP_OK;
}

/* Meet once more: a rank that went on to its next plan would overwrite counts that others still
 * read. */
static xp_status refuse(const xp_ep_step *step) {
    post_all(step, P2P_ASSIGNMENTS);
    return wait_all(step, P2P_ASSIGNMENTS);
}

static void aim_assignments(const xp_ep_step *step, xp_ep_assignment **targets) {
    for (int d = 0; d < step->group->shape.n_ranks; d++)
        targets[d] = xp_ep_p2p_area(step, d)->assignments + step->plan->dest_assignment_base[d];
}

static xp_status share_assignments(const xp_ep_step *step, const xp_ep_assignment **assignments) {
    post_all(step, P2P_ASSIGNMENTS);
    XP_TRY(wait_all(step, P2P_ASSIGNMENTS));
    *assignments = xp_ep_p2p_area(step, step->group->rank)->assignments;
    return XP_OK;
}

/* With one round a rank's rows start after those of the ranks before it, which the counts tell.
 * With several only the receiver knows which rows of others share the round. */
static xp_status finish_plan(const xp_ep_step *step) {
    xp_ep_plan *plan = step->plan;
    const xp_ep_shape *s = &step->group->shape;
    int me = step->group->rank;
    if (plan->n_rounds == 1) {
        memcpy(plan->dest_slot, plan->dest_row_base, (size_t)s->n_ranks * sizeof *plan->dest_slot);
        return XP_OK;
    }
    for (int source = 0; source < s->n_ranks; source++) {
        int32_t *starts = xp_ep_p2p_area(step, source)->starts + me * s->max_rounds;
        for (int64_t r = 0; r < plan->n_rounds; r++)
            starts[r] = xp_ep_plan_recv_rows(plan, source, r).first - plan->round_row[r];
    }
    post_all(step, P2P_STARTS);
    XP_TRY(wait_all(step, P2P_STARTS));
    const int32_t *starts = xp_ep_p2p_area(step, me)->starts;
    for (int64_t r = 0; r < plan->n_rounds; r++) {
        for (int d = 0; d < s->n_ranks; d++)
            plan->dest_slot[r * s->n_ranks + d] = starts[d * s->max_rounds + r];
    }
    return XP_OK;
}

static void count_bytes(const xp_ep_step *step, int peer, int64_t n_bytes) {
    xp_ep_totals *totals = &step->group->totals;
    xp_ep_add(peer == step->group->rank ? &totals->bytes_kept : &totals->bytes_sent_remote,
              n_bytes);
}

/* Write this round's rows for `dest` where it wants them. */
static void push(const xp_ep_step *step, int dest, const void *x, void *recv) {
    const xp_ep_group *group = step->group;
    const xp_ep_plan *plan = step->plan;
    xp_ep_span rows = xp_ep_plan_send_rows(plan, dest, step->round);
    size_t row_bytes = group->shape.row_bytes;
    int64_t start = plan->dest_slot[step->round * group->shape.n_ranks + dest];
    group->kernels->copy_rows(step->stream,
                              &(xp_ep_copy_args){.n_rows = rows.n,
                                                 .row_bytes = row_bytes,
                                                 .dst = (char *)recv + (size_t)start * row_bytes,
                                                 .src = x,
                                                 .src_index = plan->send_token + rows.first});
    count_bytes(step, dest, rows.n * (int64_t)row_bytes);
}

static xp_status exchange_rows(const xp_ep_step *step, const void *x, void *recv) {
    const p2p_state *state = step->group->state;
    int n_ranks = step->group->shape.n_ranks, me = step->group->rank;
    for (int i = 0; i < n_ranks - 1; i++) {
        int peer = peer_at(step->group, i);
        xp_ep_p2p_area(step, peer)->recv_at[me] = recv;
        xp_ep_p2p_post(step, peer, P2P_READY);
    }
    push(step, me, x, recv);
    for (int i = 0; i < n_ranks - 1; i++) {
        int peer = peer_at(step->group, i);
        XP_TRY(xp_ep_p2p_wait(step, peer, P2P_READY));
        if (state->direct) {
            XP_TRY(xp_ep_p2p_lock(step, peer));
            push(step, peer, x, xp_ep_p2p_area(step, me)->recv_at[peer]);
            xp_ep_p2p_unlock(step, peer);
        } else {
            push(step, peer, x, xp_ep_p2p_area(step, peer)->recv);
        }
        xp_ep_p2p_post(step, peer, P2P_DATA);
    }
    for (int i = 0; i < n_ranks - 1; i++)
        XP_TRY(xp_ep_p2p_wait(step, peer_at(step->group, i), P2P_DATA));
    return XP_OK;
}

static xp_status dispatch(const xp_ep_step *step, const void *x, void *recv) {
    xp_ep_group *group = step->group;
    const p2p_state *state = group->state;
    void *slots = state->direct ? recv : xp_ep_p2p_area(step, group->rank)->recv;
    xp_ep_p2p_begin(step);
    xp_status status = exchange_rows(step, x, slots);
    if (status != XP_OK) {
        /* Another rank's failure must not let one write into memory that the caller is about to
         * free. */
        xp_ep_p2p_quiesce(step);
        return xp_comm_async_error(group->comm);
    }
    if (slots != recv)
        group->kernels->copy_rows(step->stream,
                                  &(xp_ep_copy_args){.n_rows = step->plan->n_recv[step->round],
                                                     .row_bytes = group->shape.row_bytes,
                                                     .dst = recv,
                                                     .src = slots});
    return XP_OK;
}

/* First-level sums of the rows that came from `source`, into its window. */
static void push_sums(const xp_ep_step *step, int source, const xp_ep_home *home) {
    const xp_ep_plan *plan = step->plan;
    size_t row_bytes = step->group->shape.row_bytes;
    xp_ep_span rows = xp_ep_plan_recv_rows(plan, source, step->round);
    int64_t first = plan->source_row_base[source] + (rows.first - plan->recv_row_base[source]);
    xp_ep_reduce_args partial = xp_ep_partial_rows(
        step, source, home->y, xp_ep_p2p_area(step, source)->home + (size_t)first * row_bytes);
    step->group->kernels->reduce_rows(step->stream, &partial);
}

/* Gradients of the weights of those rows. */
static void push_weights(const xp_ep_step *step, int source, const xp_ep_home *home) {
    const xp_ep_plan *plan = step->plan;
    xp_ep_span assignments = xp_ep_plan_recv_assignments(plan, source, step->round);
    int64_t first = plan->source_assignment_base[source] +
                    (assignments.first - plan->recv_assignment_base[source]);
    if (home->d_weight)
        step->group->kernels->move(
            step->stream,
            &(xp_ep_move_args){.n = assignments.n,
                               .dst = xp_ep_p2p_area(step, source)->weights + first,
                               .src = home->d_weight,
                               .src_index = plan->assignment_pos + assignments.first});
}

/* All that this rank's experts have for the other ranks, and what its own window needs. */
static xp_status push_home(const xp_ep_step *step, const xp_ep_home *home, bool own_in_window) {
    const xp_ep_group *group = step->group;
    post_all(step, P2P_READY);
    for (int i = 0; i < group->shape.n_ranks; i++) {
        int peer = peer_at(group, i); /* this rank comes last */
        XP_TRY(xp_ep_p2p_wait(step, peer, P2P_READY));
        if (peer != group->rank || own_in_window)
            push_sums(step, peer, home);
        push_weights(step, peer, home);
        xp_ep_span rows = xp_ep_plan_recv_rows(step->plan, peer, step->round);
        count_bytes(step, peer, rows.n * (int64_t)group->shape.row_bytes);
        xp_ep_p2p_post(step, peer, P2P_DATA);
    }
    return wait_all(step, P2P_DATA);
}

static xp_status add_pushed(const xp_ep_step *step, const xp_ep_home *home) {
    const xp_ep_group *group = step->group;
    p2p_area *mine = xp_ep_p2p_area(step, group->rank);
    /* One round: this rank's own rows are added straight from y. More: they must outlast y. */
    bool own_in_window = step->plan->n_rounds > 1;
    XP_TRY(push_home(step, home, own_in_window));
    mine->near[group->rank] = xp_ep_expert_rows_for(step, group->rank, home->y);
    xp_ep_sum_home(step, mine->home, NULL, own_in_window ? NULL : mine->near, home->out);
    return XP_OK;
}

static void unlock_peers(const xp_ep_step *step, int n) {
    for (int i = 0; i < n; i++)
        xp_ep_p2p_unlock(step, peer_at(step->group, i));
}

static xp_status lock_peers(const xp_ep_step *step) {
    for (int i = 0; i < step->group->shape.n_ranks - 1; i++) {
        xp_status status = xp_ep_p2p_lock(step, peer_at(step->group, i));
        if (status != XP_OK) {
            unlock_peers(step, i);
            return status;
        }
    }
    return XP_OK;
}

static xp_status read_in_place(const xp_ep_step *step, const xp_ep_home *home) {
    const xp_ep_group *group = step->group;
    int n_ranks = group->shape.n_ranks, me = group->rank;
    for (int i = 0; i < n_ranks; i++) {
        int peer = peer_at(group, i);
        xp_ep_p2p_area(step, peer)->near[me] = xp_ep_expert_rows_for(step, peer, home->y);
        xp_ep_p2p_post(step, peer, P2P_READY);
    }
    for (int i = 0; i < n_ranks; i++) {
        int peer = peer_at(group, i);
        XP_TRY(xp_ep_p2p_wait(step, peer, P2P_READY));
        push_weights(step, peer, home);
        xp_ep_span assignments = xp_ep_plan_recv_assignments(step->plan, peer, step->round);
        count_bytes(step, peer,
                    assignments.n * (int64_t)group->shape.row_bytes); /* that it reads */
    }
    XP_TRY(lock_peers(step));
    xp_ep_sum_home(step, NULL, NULL, xp_ep_p2p_area(step, me)->near, home->out);
    unlock_peers(step, n_ranks - 1);
    post_all(step, P2P_DATA);
    return wait_all(step, P2P_DATA);
}

/*
 * Every rank adds up its own tokens' rows where the experts left them, so the work goes by tokens
 * and not by assignments: with sums made by the experts' ranks, the rank whose experts everybody assignments
 * would do nearly all of the adding while the others wait.
 */
static xp_status add_in_place(const xp_ep_step *step, const xp_ep_home *home) {
    if (read_in_place(step, home) == XP_OK)
        return XP_OK;
    /* A peer may still be reading the expert rows that the caller is about to free. */
    xp_ep_p2p_quiesce(step);
    return xp_comm_async_error(step->group->comm);
}

static xp_status bring_home(const xp_ep_step *step, const xp_ep_home *home) {
    const xp_ep_group *group = step->group;
    const p2p_state *state = group->state;
    const xp_ep_plan *plan = step->plan;
    /* Of several rounds, what has come home must outlast the expert rows of its round. */
    bool in_place = state->direct && plan->n_rounds == 1;
    xp_ep_p2p_begin(step);
    XP_TRY(in_place ? add_in_place(step, home) : add_pushed(step, home));
    const p2p_area *mine = xp_ep_p2p_area(step, group->rank);
    for (int d = 0; d < group->shape.n_ranks && home->d_topk_weight; d++) {
        xp_ep_span assignments = xp_ep_plan_send_assignments(plan, d, step->round);
        xp_ep_place_weights(step, assignments, mine->weights + assignments.first,
                            home->d_topk_weight);
    }
    return XP_OK;
}

const xp_ep_transport_ops xp_ep_p2p_ops = {
    .name = "p2p",
    .measure = measure,
    .create = create,
    .destroy = destroy,
    .share_blocks = share_blocks,
    .refuse = refuse,
    .aim_assignments = aim_assignments,
    .share_assignments = share_assignments,
    .finish_plan = finish_plan,
    .dispatch = dispatch,
    .bring_home = bring_home,
};
