/* Time of the optimizer, and of gradients and parameters between ranks: what hides behind the layers. */
#include "parallel/shard.h"
#include "predict/step_parts.h"

/* Of an element: master (a bf16 parameter and its remainder, or an fp32 parameter) and both moments, read and
 * written; the gradient is read by the norm and by the update. */
#define STATE_BYTES 24

/* Collectives of a group of parameters, or of all. */
typedef struct traffic {
    double own;                   /* elements of the optimizer's state on a rank */
    double bytes;                 /* reduced and gathered */
    double reduced_s, gathered_s; /* alone */
    double cost_s;                /* what other work loses beside them, if all of it hides */
} traffic;

/* Ranks that share a group's optimizer state, and replicas of it. */
typedef struct ring {
    double n_ranks, n_replicas;
    double rate, replica_rate; /* bytes a second of a rank */
    double latency_s;
} ring;

/* Inside a node the link's rate; between nodes all network adapters of the group's ranks on a node carry its rings
 * together. NCCL lays these: the code makes one collective over the whole group, it does not reduce inside a node
 * first. */
static double ring_rate(const xp_sizes *s, bool spans_nodes, double ranks_of_node) {
    const double network = s->rates.network * (ranks_of_node > 1 ? ranks_of_node : 1);
    return spans_nodes && network < s->rates.collectives ? network : s->rates.collectives;
}

static ring ring_of(const xp_sizes *s, const xp_mesh *m, const xp_cluster *c, bool is_expert) {
    const double of_node = c->gpus_per_node;
    const bool spans = m->n_ranks > c->gpus_per_node && c->gpus_per_node % m->n_shard != 0,
               replicas_span = m->n_ranks > c->gpus_per_node;
    return (ring){.n_ranks = is_expert ? m->n_expert_shard : m->n_shard,
                  .n_replicas = m->n_replicate,
                  .rate = ring_rate(s, spans, is_expert ? of_node / s->ep_size : of_node),
                  .replica_rate = ring_rate(s, replicas_span, of_node / m->n_shard),
                  .latency_s = spans ? (m->n_shard / of_node - 1) * s->latency_s : 0};
}

/* What GEMMs lose beside a collective: as measured inside a node, and at least the SMs that it keeps. */
static double cost_of(const xp_sizes *s, double bytes, double seconds) {
    const xp_hardware *h = s->hardware;
    const double measured = h->reached.collectives_cost * bytes / s->rates.collectives,
                 kept = seconds * XP_SHARD_BESIDE_CTAS / h->limits.units;
    return measured > kept ? measured : kept;
}

/* A group: reduced to each rank's share, this added up over replicas, parameters gathered. */
static traffic group_of(const xp_sizes *s, const ring *r, double elements) {
    const double n = r->n_ranks, m = r->n_replicas, others = elements * (n - 1) / n,
                 replicas = 2 * elements / n * (m - 1) / m * s->gradient_bytes,
                 latency = n > 1 ? r->latency_s : 0;
    traffic t = {.own = elements / n};
    if (n * m == 1 || elements == 0)
        return t;
    t.bytes = others * (s->gradient_bytes + s->element) + replicas;
    t.reduced_s = others * s->gradient_bytes / r->rate + replicas / r->replica_rate + latency;
    t.gathered_s = others * s->element / r->rate + latency;
    t.cost_s = cost_of(s, t.bytes, t.reduced_s + t.gathered_s);
    return t;
}

static void add(traffic *sum, const traffic *t, double times) {
    sum->own += times * t->own;
    sum->bytes += times * t->bytes;
    sum->reduced_s += times * t->reduced_s;
    sum->gathered_s += times * t->gathered_s;
    sum->cost_s += times * t->cost_s;
}

typedef struct groups {
    traffic embed, layer, head, all;
} groups;

static groups groups_of(const xp_sizes *s, const xp_mesh *m, const xp_cluster *c) {
    const xp_arch *a = &s->arch;
    const double n_layers = (double)a->n_layers, table = (double)(a->vocab_size * a->dim),
                 head = a->tie_embeddings ? 0 : table,
                 experts = s->is_moe ? 3.0 * (double)(a->n_experts * a->dim * a->moe_dim) : 0,
                 dense = ((double)xp_arch_n_params(a) - table - head) / n_layers - experts;
    const ring dense_ring = ring_of(s, m, c, false), expert_ring = ring_of(s, m, c, true);
    groups g = {.embed = group_of(s, &dense_ring, table),
                .layer = group_of(s, &dense_ring, dense),
                .head = group_of(s, &dense_ring, head)};
    const traffic of_experts = group_of(s, &expert_ring, experts / s->ep_size);
    add(&g.layer, &of_experts, 1);
    add(&g.all, &g.embed, 1);
    add(&g.all, &g.layer, n_layers);
    add(&g.all, &g.head, 1);
    return g;
}

static double later(double a, double b) {
    return a > b ? a : b;
}

/* The last pass's backward: the head's gradients are ready at its start, a layer's when it is done, the embedding's
 * before the lowest layer's last weight gradient. They are reduced one after the other. */
static double exposed_reduction(const xp_sizes *s, const groups *g, const xp_layer_times *l) {
    double now = 0, reduced = g->head.reduced_s;
    for (int64_t i = 0; i < s->arch.n_layers; i++) {
        now += l->backward;
        if (i + 1 == s->arch.n_layers)
            reduced = later(reduced, now - l->wqkv_wgrad) + g->embed.reduced_s;
        reduced = later(reduced, now) + g->layer.reduced_s;
    }
    return later(0, reduced - now);
}

/* Groups are updated, and gathered one after the other, in the order in which the next forward pass waits for
 * them. */
static double exposed_gather(const xp_sizes *s, const groups *g, const xp_layer_times *l,
                             double update_s) {
    const double each = update_s / g->all.own;
    double updated = each * g->embed.own, gathered = updated + g->embed.gathered_s,
           now = later(update_s, gathered), alone = update_s;
    for (int64_t i = 0; i < s->arch.n_layers; i++) {
        updated += each * g->layer.own;
        gathered = later(gathered, updated) + g->layer.gathered_s;
        now = later(now, gathered) + l->forward;
        alone += l->forward;
    }
    return later(now, later(gathered, update_s) + g->head.gathered_s) - alone;
}

void xp_predict_update(const xp_sizes *s, const xp_mesh *m, const xp_cluster *c,
                       const xp_layer_times *l, xp_step_prediction *p) {
    const groups g = groups_of(s, m, c);
    const double all = g.all.reduced_s + g.all.gathered_s;
    p->optimizer_s = g.all.own * (STATE_BYTES + 2 * s->gradient_bytes) / s->rates.memory;
    p->gradient_bytes = g.all.bytes;
    p->reduced_s = g.all.reduced_s;
    p->gathered_s = g.all.gathered_s;
    if (all == 0)
        return;
    /* A CPU's cores compute nothing beside a collective. */
    const bool hides = !s->hardware->is_cpu;
    p->exposed_reduced_s = hides ? exposed_reduction(s, &g, l) : p->reduced_s;
    p->exposed_gathered_s = hides ? exposed_gather(s, &g, l, p->optimizer_s) : p->gathered_s;
    const double exposed = p->exposed_reduced_s + p->exposed_gathered_s;
    p->gradients_s = exposed + (1 - exposed / all) * g.all.cost_s;
}
