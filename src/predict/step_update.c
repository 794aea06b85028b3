/* Time of the optimizer and of gradients and parameters between ranks. */
#include "predict/step_parts.h"

/* Of an element: master (a bf16 parameter and its remainder, or an fp32 parameter) and both moments, read and
 * written; the gradient is read by the norm and by the update. */
#define STATE_BYTES 24

typedef struct traffic {          /* of one rank and step */
    double reduced, gathered;     /* bytes */
    double reduced_s, gathered_s; /* alone */
} traffic;

/* Bytes a second of a rank in a ring over a group: inside a node NVLink's; between nodes all
 * network cards of the group's ranks on a node carry the rings together. */
static double ring_rate(const xp_sizes *s, bool spans_nodes, double ranks_of_node) {
    const double network = s->rates.network * (ranks_of_node > 1 ? ranks_of_node : 1);
    return spans_nodes && network < s->rates.link ? network : s->rates.link;
}

/* `elements` whose optimizer state `n` ranks of a replica share. */
static void add_shards(const xp_sizes *s, double elements, double n, double rate, traffic *t) {
    const double others = elements * (n - 1) / n;
    t->reduced += others * s->gradient_bytes;
    t->gathered += others * s->element;
    t->reduced_s += others * s->gradient_bytes / rate;
    t->gathered_s += others * s->element / rate;
}

/* A rank's own share, added up over `n` replicas. */
static void add_replicas(const xp_sizes *s, double share, double n, double rate, traffic *t) {
    const double n_bytes = 2 * share * s->gradient_bytes * (n - 1) / n;
    t->reduced += n_bytes;
    t->reduced_s += n_bytes / rate;
}

void xp_predict_update(const xp_sizes *s, const xp_mesh *m, const xp_cluster *c,
                       xp_step_prediction *p) {
    const xp_arch *a = &s->arch;
    const double all_experts = s->is_moe ? 3.0 * (double)a->n_layers * (double)a->n_experts *
                                               (double)a->dim * (double)a->moe_dim
                                         : 0,
                 dense = (double)xp_arch_n_params(a) - all_experts,
                 experts = all_experts / s->ep_size, n = m->n_shard, n_e = m->n_expert_shard,
                 own = dense / n + experts / n_e, of_node = c->gpus_per_node;
    p->optimizer_s = own * (STATE_BYTES + 2 * s->gradient_bytes) / s->rates.memory;
    traffic t = {0};
    const bool spans = m->n_ranks > c->gpus_per_node && c->gpus_per_node % m->n_shard != 0;
    add_shards(s, dense, n, ring_rate(s, spans, of_node), &t);
    add_shards(s, experts, n_e, ring_rate(s, spans, of_node / s->ep_size), &t);
    add_replicas(s, own, m->n_replicate, ring_rate(s, m->n_ranks > c->gpus_per_node, of_node / n),
                 &t);
    /* Reductions run beside the last pass's backward, two thirds of its work, and what they take from it counts:
     * at most the share that was measured to hide, and half of that time. */
    const double compute = p->dense_s + p->attention_s + p->experts_s + p->memory_s,
                 window = compute / (double)s->n_passes * 2 / 3 / 2,
                 hides = s->hardware->reached.reductions_hide * t.reduced_s;
    p->gradient_bytes = t.reduced + t.gathered;
    p->gradients_s = t.gathered_s + t.reduced_s - (hides < window ? hides : window);
}
