/*
 * p2p on a CPU: who has rows writes them where they are wanted, or, in combine between threads,
 * leaves them where they can be read. Counts are exchanged first, so every destination is known
 * before a row is copied: no rings, no credits.
 */
#include "ep/p2p/p2p.h"

#include <string.h>
#include "comm/provider.h"
#include "ep/backends.h"
#include "ep/common/cpu/combine.h"
#include "ep/common/cpu/kernels.h"
#include "ep/common/cpu/plan.h"
#include "ep/common/cpu/queue.h"
#include "ep/common/defaults.h"
#include "ep/p2p/cpu/barrier.h"

/* ---- plan ---------------------------------------------------------------------------------- */

/* Counts and assignments go into the peers' windows with one barrier: what nobody knows before it is how
 * many assignments the others send, so each source has room for all that it can send. */
static xp_ep_assignment *slot_of(const xp_ep_call *call, int dest, int source) {
    const xp_ep_shape *s = &call->group->shape;
    return (xp_ep_assignment *)xp_ep_p2p_area(call, dest)->assignments +
           (ptrdiff_t)source * s->max_tokens * s->row_assignments;
}

static xp_ep_assignment *target(const xp_ep_call *call, int dest) {
    return slot_of(call, dest, call->group->rank);
}

/* The sources' assignments one after the other. */
static void close_gaps(const xp_ep_call *call) {
    const int n_ranks = call->group->shape.n_ranks, me = call->group->rank;
    xp_ep_assignment *to = xp_ep_p2p_area(call, me)->assignments;
    for (int r = 0; r < n_ranks; r++) {
        const int32_t n =
            xp_ep_counts_assignments(&call->group->shape, call->plan->rank_counts, r, me);
        memmove(to, slot_of(call, me, r), (size_t)n * sizeof *to);
        to += n;
    }
}

static xp_status exchange_metadata(const xp_ep_call *call, const int32_t *own_counts,
                                   const xp_ep_assignment **assignments) {
    const xp_ep_shape *s = &call->group->shape;
    const size_t n_bytes = (size_t)s->counts_ints * sizeof *own_counts;
    const p2p_area *mine = xp_ep_p2p_area(call, call->group->rank);
    for (int r = 0; r < s->n_ranks; r++)
        memcpy(xp_ep_p2p_area(call, r)->rank_counts + (int64_t)call->group->rank * s->counts_ints,
               own_counts, n_bytes);
    XP_TRY(xp_ep_p2p_barrier(call, P2P_COUNTS));
    memcpy(call->plan->rank_counts, mine->rank_counts, n_bytes * (size_t)s->n_ranks);
    XP_TRY(xp_ep_counts_check(call->group, call->plan->rank_counts));
    close_gaps(call);
    *assignments = mine->assignments;
    return XP_OK;
}

/* With one round this rank's rows start behind those of the ranks before it, which the counts tell.
 * With several, only the receiver knows which rows of others share the round. */
static xp_status exchange_starts(const xp_ep_call *call) {
    xp_ep_plan *plan = call->plan;
    const xp_ep_shape *s = &call->group->shape;
    const int me = call->group->rank;
    if (plan->n_rounds == 1) {
        memcpy(plan->dest_slot, plan->dest_row_base, (size_t)s->n_ranks * sizeof *plan->dest_slot);
        return XP_OK;
    }
    for (int source = 0; source < s->n_ranks; source++) {
        int32_t *starts = xp_ep_p2p_area(call, source)->starts + me * s->max_rounds;
        for (int64_t r = 0; r < plan->n_rounds; r++)
            starts[r] = xp_ep_plan_recv_rows(plan, source, r).first - plan->round_row[r];
    }
    XP_TRY(xp_ep_p2p_barrier(call, P2P_STARTS));
    const int32_t *starts = xp_ep_p2p_area(call, me)->starts;
    for (int64_t r = 0; r < plan->n_rounds; r++) {
        for (int d = 0; d < s->n_ranks; d++)
            plan->dest_slot[r * s->n_ranks + d] = starts[d * s->max_rounds + r];
    }
    return XP_OK;
}

/* A peer that is still reading what this rank wrote for the last plan must not be overtaken. Any call
 * since then has waited for all peers to begin it, and so to end that plan; else they are waited for
 * here. All ranks make the same calls and decide alike. */
static xp_status begin_plan(const xp_ep_call *call) {
    uint32_t *last = &((p2p_state *)call->group->transport_state)->last_epochs[call->plan->slot];
    xp_ep_p2p_begin(call);
    const uint32_t epoch = xp_ep_p2p_epoch(call);
    const bool follows = xp_ep_p2p_next_epoch(*last) == epoch;
    *last = epoch;
    return follows ? xp_ep_p2p_barrier(call, P2P_READY) : XP_OK;
}

/* ---- dispatch ------------------------------------------------------------------------------ */

/* Write this round's rows for `dest` into its recv rows. */
static void push_rows(const xp_ep_call *call, int dest, const void *x, void *recv) {
    const xp_ep_plan *plan = call->plan;
    const size_t row_bytes = call->group->shape.row_bytes;
    const xp_ep_span rows = xp_ep_plan_send_rows(plan, dest, call->round);
    const int64_t start = plan->dest_slot[call->round * call->group->shape.n_ranks + dest];
    xp_ep_cpu_copy_rows(call->stream,
                        &(xp_ep_copy_args){.n_rows = rows.n,
                                           .row_bytes = row_bytes,
                                           .dst = (char *)recv + (size_t)start * row_bytes,
                                           .src = x,
                                           .src_index = plan->send_token + rows.first});
    xp_ep_count_bytes(call->group, dest, rows.n * (int64_t)row_bytes);
}

/* For measurements: as many rows again, from `rows` on, for each further copy. */
static void send_copies(const xp_ep_call *call, int peer, int64_t n_rows, const void *rows) {
    const xp_ep_shape *s = &call->group->shape;
    for (int i = 1; i < s->send_copies && peer != call->group->rank; i++)
        xp_ep_cpu_copy_rows(call->stream, &(xp_ep_copy_args){.n_rows = n_rows,
                                                             .row_bytes = s->row_bytes,
                                                             .dst = xp_ep_p2p_copies(call, peer),
                                                             .src = rows});
}

static xp_status exchange_rows(const xp_ep_call *call, const void *x, void *recv) {
    const p2p_state *state = call->group->transport_state;
    const int n_peers = call->group->shape.n_ranks - 1, me = call->group->rank;
    for (int i = 0; i < n_peers; i++) {
        const int peer = xp_ep_p2p_peer(call, i);
        xp_ep_p2p_area(call, peer)->recv_at[me] = recv;
        xp_ep_p2p_signal(call, peer, P2P_READY);
    }
    push_rows(call, me, x, recv);
    for (int i = 0; i < n_peers; i++) {
        const int peer = xp_ep_p2p_peer(call, i);
        XP_TRY(xp_ep_p2p_wait(call, peer, P2P_READY));
        if (state->direct) {
            XP_TRY(xp_ep_p2p_lock(call, peer));
            push_rows(call, peer, x, xp_ep_p2p_area(call, me)->recv_at[peer]);
            xp_ep_p2p_unlock(call, peer);
        } else {
            push_rows(call, peer, x, xp_ep_p2p_area(call, peer)->recv);
        }
        send_copies(call, peer, xp_ep_plan_send_rows(call->plan, peer, call->round).n, x);
        xp_ep_p2p_signal(call, peer, P2P_DATA);
    }
    for (int i = 0; i < n_peers; i++)
        XP_TRY(xp_ep_p2p_wait(call, xp_ep_p2p_peer(call, i), P2P_DATA));
    return XP_OK;
}

static xp_status run_dispatch(const xp_ep_call *call, const void *x, void *recv) {
    xp_ep_group *group = call->group;
    const p2p_state *state = group->transport_state;
    void *target = state->direct ? recv : xp_ep_p2p_area(call, group->rank)->recv;
    xp_ep_p2p_begin(call);
    if (exchange_rows(call, x, target) != XP_OK) {
        /* Another rank must not write into memory that the caller is about to free. */
        xp_ep_p2p_quiesce(call);
        return xp_comm_async_error(group->comm);
    }
    if (target != recv)
        xp_ep_cpu_copy_rows(call->stream,
                            &(xp_ep_copy_args){.n_rows = call->plan->n_recv[call->round],
                                               .row_bytes = group->shape.row_bytes,
                                               .dst = recv,
                                               .src = target});
    return XP_OK;
}

/* ---- combine ------------------------------------------------------------------------------- */

/* First-level sums of the rows that came from `source`, into its combine rows. */
static void push_sums(const xp_ep_call *call, int source, const void *y) {
    const xp_ep_plan *plan = call->plan;
    const xp_ep_span rows = xp_ep_plan_recv_rows(plan, source, call->round);
    const int64_t first =
        plan->source_row_base[source] + (rows.first - plan->recv_row_base[source]);
    char *to =
        xp_ep_p2p_area(call, source)->combine_rows + (size_t)first * call->group->shape.row_bytes;
    const xp_ep_reduce_args reduce = xp_ep_cpu_reduce_for(call, source, y, to);
    xp_ep_cpu_reduce_rows(call->stream, &reduce);
}

/* Gradients of the weights of those rows. */
static void push_weights(const xp_ep_call *call, int source, const float *d_weight) {
    const xp_ep_plan *plan = call->plan;
    const xp_ep_span span = xp_ep_plan_recv_assignments(plan, source, call->round);
    const int64_t first =
        plan->source_assignment_base[source] + (span.first - plan->recv_assignment_base[source]);
    if (!d_weight)
        return;
    xp_ep_cpu_copy_floats(call->stream, &(xp_ep_copy_floats_args){
                                            .n = span.n,
                                            .dst = xp_ep_p2p_area(call, source)->weights + first,
                                            .src = d_weight,
                                            .src_index = plan->assignment_pos + span.first});
}

/* First-level sums are made by the experts' rank and pushed to their sources. With one round this
 * rank's own rows are added straight from y; with several they must outlast y. */
static xp_status combine_pushed(const xp_ep_call *call, const xp_ep_combine_args *args) {
    xp_ep_group *group = call->group;
    p2p_area *mine = xp_ep_p2p_area(call, group->rank);
    const bool stores_own = call->plan->n_rounds > 1;
    xp_ep_p2p_signal_all(call, P2P_READY);
    for (int i = 0; i < group->shape.n_ranks; i++) {
        const int peer = xp_ep_p2p_peer(call, i);
        XP_TRY(xp_ep_p2p_wait(call, peer, P2P_READY));
        if (peer != group->rank || stores_own)
            push_sums(call, peer, args->y);
        push_weights(call, peer, args->d_weight);
        const xp_ep_span rows = xp_ep_plan_recv_rows(call->plan, peer, call->round);
        xp_ep_count_bytes(group, peer, rows.n * (int64_t)group->shape.row_bytes);
        send_copies(call, peer, rows.n, args->y);
        xp_ep_p2p_signal(call, peer, P2P_DATA);
    }
    XP_TRY(xp_ep_p2p_wait_all(call, P2P_DATA));
    mine->expert_rows[group->rank] = xp_ep_cpu_expert_rows_for(call, group->rank, args->y);
    xp_ep_cpu_sum_tokens(call, mine->combine_rows, NULL, stores_own ? NULL : mine->expert_rows,
                         args->out);
    return XP_OK;
}

static xp_status sum_in_place(const xp_ep_call *call, const xp_ep_combine_args *args) {
    xp_ep_group *group = call->group;
    const int n_ranks = group->shape.n_ranks, me = group->rank;
    for (int i = 0; i < n_ranks; i++) {
        const int peer = xp_ep_p2p_peer(call, i);
        xp_ep_p2p_area(call, peer)->expert_rows[me] =
            xp_ep_cpu_expert_rows_for(call, peer, args->y);
        xp_ep_p2p_signal(call, peer, P2P_READY);
    }
    for (int i = 0; i < n_ranks; i++) {
        const int peer = xp_ep_p2p_peer(call, i);
        XP_TRY(xp_ep_p2p_wait(call, peer, P2P_READY));
        push_weights(call, peer, args->d_weight);
        const xp_ep_span span = xp_ep_plan_recv_assignments(call->plan, peer, call->round);
        /* What the peer reads here. */
        xp_ep_count_bytes(group, peer, span.n * (int64_t)group->shape.row_bytes);
        send_copies(call, peer, xp_ep_plan_recv_rows(call->plan, peer, call->round).n, args->y);
    }
    XP_TRY(xp_ep_p2p_lock_all(call));
    xp_ep_cpu_sum_tokens(call, NULL, NULL, xp_ep_p2p_area(call, me)->expert_rows, args->out);
    xp_ep_p2p_unlock_all(call);
    return xp_ep_p2p_barrier(call, P2P_DATA);
}

/*
 * Every rank adds up its own tokens' rows where the experts left them, so the work is split by
 * tokens: if the experts' ranks made the sums, the rank with the busiest experts would do nearly all
 * of the adding while the others wait.
 */
static xp_status combine_in_place(const xp_ep_call *call, const xp_ep_combine_args *args) {
    if (sum_in_place(call, args) == XP_OK)
        return XP_OK;
    /* A peer may still be reading the expert rows that the caller is about to free. */
    xp_ep_p2p_quiesce(call);
    return xp_comm_async_error(call->group->comm);
}

static xp_status run_combine(const xp_ep_call *call, const xp_ep_combine_args *args) {
    const p2p_state *state = call->group->transport_state;
    /* With several rounds the sums must outlast the expert rows of their round. */
    const bool in_place = state->direct && call->plan->n_rounds == 1;
    xp_ep_p2p_begin(call);
    XP_TRY(in_place ? combine_in_place(call, args) : combine_pushed(call, args));
    xp_ep_cpu_scatter_weights(call, xp_ep_p2p_area(call, call->group->rank)->weights,
                              args->d_topk_weight);
    return XP_OK;
}

/* ---- backend ------------------------------------------------------------------------------- */

static const xp_ep_cpu_transport transport = {.exchange = {.begin = begin_plan,
                                                           .target = target,
                                                           .run = exchange_metadata,
                                                           .complete = exchange_starts},
                                              .dispatch = run_dispatch,
                                              .combine = run_combine};

const xp_ep_backend xp_ep_cpu_p2p = {
    .name = "p2p/cpu",
    .cpu = &transport,
    .group_bytes = xp_ep_p2p_group_bytes,
    .plan_bytes = xp_ep_plan_bytes,
    .comm_bytes = xp_ep_no_comm_bytes,
    .group_create = xp_ep_p2p_windows_create,
    .group_destroy = xp_ep_p2p_windows_destroy,
    .plan_create = xp_ep_plan_reserve,
    .plan_destroy = xp_ep_plan_release,
    .plan_build = xp_ep_cpu_queue_build,
    .plan_wait = xp_ep_cpu_plan_wait,
    .dispatch = xp_ep_cpu_queue_dispatch,
    .combine = xp_ep_cpu_queue_combine,
    .combine_send = xp_ep_no_combine_send,
    .combine_recv = xp_ep_cpu_queue_combine,
    .async_error = xp_ep_no_device_error,
    .abort_flags = xp_ep_no_abort_flags,
    .add_stats = xp_ep_no_device_stats,
    .reset_stats = xp_ep_no_device_stats_reset,
};
