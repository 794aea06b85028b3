/* Bytes and time of dispatch and combine, and what hides them. */
#include "predict/step_parts.h"

/* How likely a token selects none of `part` of the experts. */
static double misses(const xp_sizes *s, double part) {
    const double n = (double)s->arch.n_experts;
    double none = 1;
    for (int64_t k = 0; k < s->arch.top_k; k++)
        none *= (n - part - (double)k) / (n - (double)k);
    return none > 0 ? none : 0;
}

/* Assignments round-robin over `period` slots: on how many of `n` equal parts of the slots a token's assignments
 * lie, on average. */
static double parts_in_turn(const xp_sizes *s, int64_t period, double n) {
    const int64_t k = s->arch.top_k;
    const double each = (double)period / n;
    double total = 0;
    for (int64_t t = 0; t < period; t++) {
        int64_t last = -1, found = 0;
        for (int64_t i = 0; i < k; i++) {
            const int64_t part = (int64_t)((double)((t * k + i) % period) / each);
            found += part != last;
            last = part;
        }
        total += (double)found < n ? (double)found : n;
    }
    return total / (double)period;
}

/* How many of `n` equal parts of the experts a token needs, on average. */
static double parts_needed(const xp_sizes *s, double n) {
    switch (s->forced) {
    case XP_FORCED_MODULO:
        return parts_in_turn(s, s->arch.n_experts, n);
    case XP_FORCED_SPREAD:
        return parts_in_turn(s, s->ep_size, n);
    default:
        return n * (1 - misses(s, (double)s->arch.n_experts / n));
    }
}

typedef struct
    rows { /* a token sends one way, and those that are copied where they start and end */
    double in_node, across, local;
} rows;

static rows rows_sent(const xp_sizes *s) {
    const double ep = s->ep_size, nodes = s->ep_nodes, assignments = (double)s->arch.top_k,
                 needed = parts_needed(s, ep);
    switch (s->transport) {
    case XP_EP_P2P:
        return (rows){.in_node = s->send_copies * needed * (ep - 1) / ep, .local = 2 * needed};
    case XP_EP_HIERARCHICAL:
        return (rows){.in_node = needed * (ep / nodes - 1) / (ep / nodes),
                      .across = parts_needed(s, nodes) * (nodes - 1) / nodes,
                      .local = 4 * needed};
    default: /* a row an assignment, packed, sent and unpacked */
        return (rows){.in_node = assignments * (ep / nodes - 1) / ep,
                      .across = assignments * (ep - ep / nodes) / ep,
                      .local = 4 * assignments};
    }
}

static double larger(double a, double b) {
    return a > b ? a : b;
}

bool xp_predict_exchange_sums(const xp_sizes *s) {
    return s->is_moe && s->ep_size > 1 && s->transport == XP_EP_P2P;
}

/* ---- alone ---------------------------------------------------------------------------------- */

/* Seconds of a layer's exchange, one after the other. Over p2p the expert's rank sums a token's rows before it
 * sends one (send), the token's rank adds those of its own experts and the sums that have come (recv). Backward
 * combine is a dispatch of gradients, and dispatch a combine. */
typedef struct op_times {
    double dispatch, send, recv;
} op_times;

static op_times alone(const xp_sizes *s, const rows *sent, double p2p_link) {
    const double row = s->element * (double)s->arch.dim * s->tokens, ep = s->ep_size,
                 link = s->transport == XP_EP_P2P ? p2p_link : s->rates.all_to_all,
                 moved = row * (sent->in_node / link + sent->across / s->rates.network) +
                         (sent->across > 0 ? s->n_parts * s->latency_s : 0),
                 copied = row * sent->local / s->rates.memory;
    if (!xp_predict_exchange_sums(s))
        return (op_times){.dispatch = moved + copied, .send = moved + copied};
    const double k = (double)s->arch.top_k, own = k / ep, sums = sent->in_node / s->send_copies;
    return (op_times){.dispatch = moved + copied,
                      .send = moved + row * (k - own + sums) / s->rates.memory,
                      .recv = row * (own + sums + 1) / s->rates.memory};
}

/* ---- beside GEMMs --------------------------------------------------------------------------- */

/* How much longer GEMMs take that leave SMs to an exchange. */
static double slower(const xp_sizes *s, int n_sms) {
    const double units = s->hardware->limits.units;
    return units > n_sms ? units / (units - n_sms) : 1;
}

/* What an exchange adds to GEMMs that need `rest` seconds for the rows of other ranks, in n_parts parts each of
 * which waits for its part of the exchange, behind `own` for this rank's rows, which waits for nothing. (For rows
 * that leave: the same backwards, own rows last.) The GEMMs wait for the first part, or for the last. */
static double added_by_parts(double exchange, double own, double rest, int n_parts) {
    const double n = n_parts, first = exchange / n - own,
                 last = exchange - own - rest * (n - 1) / n;
    return larger(0, larger(first, last));
}

typedef struct added { /* to a layer */
    double exposed, slowed;
} added;

/* Forward: dispatch beside w13, combine's send beside w2, as far as these are GEMMs of own rows or of parts that
 * are there already. Other transports send the sums of all rows at once. */
static added beside_forward(const xp_sizes *s, const op_times *t, const xp_layer_times *l) {
    const double own = 1.0 / s->ep_size, rest = 1 - own,
                 beside = own + rest * (s->row_parts - 1) / s->row_parts,
                 w13 = slower(s, s->overlap_sms), w2 = slower(s, s->send_sms);
    added a = {.exposed = t->recv + added_by_parts(t->dispatch, own * l->w13 * w13,
                                                   rest * l->w13 * w13, s->row_parts),
               .slowed = beside * l->w13 * (w13 - 1)};
    if (s->transport != XP_EP_P2P) {
        a.exposed += t->send;
        return a;
    }
    a.exposed += added_by_parts(t->send, own * l->w2 * w2, rest * l->w2 * w2, s->row_parts);
    a.slowed += beside * l->w2 * (w2 - 1);
    return a;
}

/* Backward: combine beside the weight gradients of w2 and wqkv of the layer above, dispatch beside that of w13.
 * What was not kept is dispatched again, behind the former. */
static added beside_backward(const xp_sizes *s, const op_times *t, const xp_layer_times *l) {
    const double gemm = slower(s, s->overlap_sms), w2 = l->w2_wgrad * gemm + l->wqkv_wgrad,
                 w13 = l->w13_wgrad * gemm;
    return (added){.exposed = larger(0, t->dispatch - w2) + larger(0, t->send + t->recv - w13) +
                              (s->saves_recv ? 0 : t->dispatch),
                   .slowed = (l->w2_wgrad + l->w13_wgrad) * (gemm - 1)};
}

/* All four, in us a layer, beside what hides them: for whoever asks where the time goes. */
static void note_layer(const xp_sizes *s, const op_times *t, const op_times *b,
                       const xp_layer_times *l, xp_exchange_layer *out) {
    const double w13 = slower(s, s->overlap_sms), w2 = slower(s, s->send_sms);
    *out = (xp_exchange_layer){.dispatch_s = t->dispatch,
                               .send_s = t->send,
                               .recv_s = t->recv,
                               .combine_backward_s = b->dispatch,
                               .dispatch_backward_s = b->send + b->recv,
                               .again_s = s->saves_recv ? 0 : b->dispatch};
    if (!s->hides_exchange)
        return;
    out->w13_s = l->w13 * w13;
    out->w2_s = s->transport == XP_EP_P2P ? l->w2 * w2 : 0;
    out->w2_wgrad_s = l->w2_wgrad * w13 + l->wqkv_wgrad;
    out->w13_wgrad_s = l->w13_wgrad * w13;
}

void xp_predict_exchange(const xp_sizes *s, xp_layer_times *l, xp_step_prediction *p) {
    if (!s->is_moe || s->ep_size == 1)
        return;
    const xp_hardware *h = s->hardware;
    const rows sent = rows_sent(s);
    const op_times t = alone(s, &sent, s->rates.link), b = alone(s, &sent, s->rates.link_backward);
    const double times = (double)s->arch.n_layers * (double)s->n_passes,
                 row = s->element * (double)s->arch.dim, n_ops = s->saves_recv ? 4 : 5,
                 n_rows = n_ops * s->tokens * times,
                 wait = s->transport == XP_EP_P2P ? s->n_parts * h->costs.rendezvous_us * 1e-6 : 0,
                 all_forward = t.dispatch + t.send + t.recv,
                 all_backward = (s->saves_recv ? 1 : 2) * b.dispatch + b.send + b.recv,
                 open = s->n_parts > 1 ? 1 - h->reached.overlap_hides : 1;
    added forward = {.exposed = open * all_forward}, backward = {.exposed = open * all_backward};
    if (s->hides_exchange) {
        forward = beside_forward(s, &t, l);
        backward = beside_backward(s, &b, l);
    }
    p->link_bytes = n_rows * sent.in_node * row;
    p->network_bytes = n_rows * sent.across * row;
    p->exposed_forward_s = times * (forward.exposed + wait / 2);
    p->exposed_backward_s = times * (backward.exposed + wait / 2);
    p->exchange_s = p->exposed_forward_s + p->exposed_backward_s;
    p->hidden_exchange_s =
        times * (all_forward + all_backward - forward.exposed - backward.exposed);
    p->slowed_experts_s = times * (forward.slowed + backward.slowed);
    p->experts_s += p->slowed_experts_s;
    note_layer(s, &t, &b, l, &p->exchange_layer);
    l->forward += forward.exposed + forward.slowed + wait / 2;
    l->backward += backward.exposed + backward.slowed + wait / 2;
}
