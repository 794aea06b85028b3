/* Bytes and time of dispatch and combine. */
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

typedef struct rows { /* a token sends one way; read and written where they start and end */
    double in_node, across, local;
} rows;

static rows rows_sent(const xp_sizes *s) {
    const double ep = s->ep_size, nodes = s->ep_nodes, assignments = (double)s->arch.top_k,
                 needed = parts_needed(s, ep);
    switch (s->transport) {
    case XP_EP_P2P:
        return (rows){.in_node = needed * (ep - 1) / ep, .local = 2 * needed};
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

static double smaller(double a, double b) {
    return a < b ? a : b;
}

/* What `each` of n_ops dispatches and combines hide behind GEMMs. Forward it is the GEMMs of a rank's own
 * rows, one of R parts of the forward third; only over p2p does combine hide behind the shorter one. */
static double hidden_beside_gemms(const xp_sizes *s, const xp_step_prediction *p, double each,
                                  double n_ops) {
    const xp_hardware *h = s->hardware;
    const double own = p->experts_s / 3 / s->ep_size, w13 = own * 2 / 3;
    const double forward = s->transport == XP_EP_P2P ? smaller(2 * each, own) : smaller(each, w13);
    return h->reached.backward_hides * each * (n_ops - 2) + h->reached.forward_hides * forward;
}

void xp_predict_exchange(const xp_sizes *s, xp_step_prediction *p) {
    if (!s->is_moe || s->ep_size == 1)
        return;
    const xp_hardware *h = s->hardware;
    const rows sent = rows_sent(s);
    const double times = (double)s->arch.n_layers * (double)s->n_passes,
                 row = s->element * (double)s->arch.dim, n_ops = s->saves_recv ? 4 : 5,
                 n_rows = n_ops * s->tokens * times,
                 link = s->transport == XP_EP_P2P ? s->rates.link : s->rates.all_to_all;
    p->link_bytes = n_rows * sent.in_node * row;
    p->network_bytes = n_rows * sent.across * row;
    double all = p->link_bytes / link + p->network_bytes / s->rates.network +
                 n_rows * sent.local * row / s->rates.memory;
    if (s->transport == XP_EP_P2P)
        all += s->n_parts * h->costs.rendezvous_us * 1e-6 * times;
    if (sent.across > 0)
        all += s->n_parts * n_ops * times * s->latency_s;
    if (s->n_parts > 1)
        p->hidden_exchange_s = h->reached.overlap_hides * all;
    else if (s->hides_exchange)
        p->hidden_exchange_s = hidden_beside_gemms(s, p, all / n_ops, n_ops);
    p->exchange_s = all - p->hidden_exchange_s;
}
