#include "predict/step_time.h"

#include <math.h>
#include <string.h>
#include "ep/internal.h"
#include "parallel/run.h"

/* Shares of the data sheet's figures that were reached. */
#define DENSE_SHARE     0.70 /* cuBLASLt at the projections' and the head's shapes */
#define ATTENTION_SHARE 0.55 /* cuDNN */
#define BACKWARD_SHARE  0.35 /* cuDNN, deterministic */
#define MEMORY_SHARE    0.79
#define LINK_SHARE      0.60 /* p2p's kernels, NCCL's rings */
#define A2A_SHARE       0.55 /* NCCL's all-to-all */
#define NETWORK_SHARE   0.80 /* assumed: no run between GPU nodes yet */
/* Grouped GEMMs by the rows of an expert, forward, dgrad and wgrad together; and how much longer
 * wgrad takes where it adds to fp32 sums. */
static const double grouped_rows[] = {256, 2048, 16384}, grouped_share[] = {0.38, 0.57, 0.63},
                    adding_takes[] = {8, 2.4, 1.25};
/* Fixed costs. */
#define PLAN_S            50e-6 /* a plan, whatever its size */
#define PLAN_ASSIGNMENT_S 0.6e-9
#define LAYER_S           80e-6  /* starts of a layer's ops, both ways */
#define MEET_S            200e-6 /* ranks of a p2p exchange that wait for each other, a layer */
#define OPTIMIZER_BYTES   30     /* an element: master and moments both ways, gradient, parameter */

typedef struct sizes {
    xp_arch arch;
    double tokens; /* of one pass of a rank */
    double seq_len;
    int64_t n_passes;
    double gradient_bytes; /* an element */
    xp_recompute recompute;
    bool is_moe, saves_recv;
    xp_forced_mode forced;
    xp_ep_transport transport;
    int ep_size, ep_nodes;
} sizes;

typedef struct work {             /* of one layer and pass, one way */
    double dense, attention, ffn; /* FLOPs */
    double bytes;                 /* read and written */
} work;

static double qkv_width(const xp_arch *a) {
    return (double)((a->n_heads + 2 * a->n_kv_heads) * (int64_t)a->head_dim);
}

static double ffn_width(const sizes *s) {
    const xp_arch *a = &s->arch;
    return s->is_moe ? (double)(a->top_k * a->moe_dim) : (double)a->hidden_dim;
}

/* Elements of bf16 that the ops of a layer read and write for a token. */
static work forward_work(const sizes *s) {
    const xp_arch *a = &s->arch;
    const double t = s->tokens, d = (double)a->dim, q = (double)a->n_heads * a->head_dim,
                 sums = s->is_moe ? (double)(a->top_k + 1) * d : 0;
    return (work){.dense = 2 * t * d * (qkv_width(a) + q),
                  .attention = 2 * t * s->seq_len * q, /* causal: half of the square */
                  .ffn = 6 * t * d * ffn_width(s),
                  .bytes = 2 * t * (8 * d + 2 * qkv_width(a) + 3 * ffn_width(s) + sums)};
}

static work backward_work(const sizes *s) {
    const work forward = forward_work(s);
    const xp_arch *a = &s->arch;
    const double d = (double)a->dim, sums = s->is_moe ? (double)(a->top_k + 1) * d : 0;
    return (work){.dense = 2 * forward.dense,
                  .attention = 2.5 * forward.attention, /* five GEMMs instead of two */
                  .ffn = 2 * forward.ffn,
                  .bytes = 2 * s->tokens * (20 * d + 6 * qkv_width(a) + 6 * ffn_width(s) + sums)};
}

/* ---- the exchange --------------------------------------------------------------------------- */

/* How likely a token selects none of `part` of the experts. */
static double misses(const sizes *s, double part) {
    const double n = (double)s->arch.n_experts;
    double none = 1;
    for (int64_t k = 0; k < s->arch.top_k; k++)
        none *= (n - part - (double)k) / (n - (double)k);
    return none > 0 ? none : 0;
}

/* Assignments round-robin over `period` slots: on how many of `n` equal parts of the slots a token's assignments
 * lie, on average. */
static double parts_in_turn(const sizes *s, int64_t period, double n) {
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
static double parts_needed(const sizes *s, double n) {
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

static rows rows_sent(const sizes *s) {
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

static void add_exchange(const sizes *s, const xp_cluster *c, xp_step_prediction *p) {
    if (!s->is_moe || s->ep_size == 1)
        return;
    const rows sent = rows_sent(s);
    const double times = (double)s->arch.n_layers * (double)s->n_passes,
                 row = 2 * (double)s->arch.dim,
                 n_rows = (s->saves_recv ? 4 : 5) * s->tokens * times,
                 share = s->transport == XP_EP_P2P ? LINK_SHARE : A2A_SHARE;
    p->link_bytes = n_rows * sent.in_node * row;
    p->network_bytes = n_rows * sent.across * row;
    p->exchange_s = p->link_bytes / (c->gpu->link_gbps * 1e9 * share) +
                    p->network_bytes / (c->network_gbps * 1e9 * NETWORK_SHARE) +
                    n_rows * sent.local * row / (c->gpu->memory_tbps * 1e12 * MEMORY_SHARE) +
                    (s->transport == XP_EP_P2P ? MEET_S * times : 0);
}

/* ---- compute -------------------------------------------------------------------------------- */

/* The value at `x` on the line through the three points, straight over the logarithm of x. */
static double between(double x, const double *at, const double *value) {
    const int i = x < at[1] ? 0 : 1;
    const double position = log(x / at[i]) / log(at[i + 1] / at[i]), kept = position < 0 ? 0
                                                                            : position > 1
                                                                                ? 1
                                                                                : position;
    return value[i] + kept * (value[i + 1] - value[i]);
}

/* Rows of an expert in a pass: its EP group's tokens, evenly. */
static double rows_an_expert(const sizes *s) {
    const double n = s->tokens * (double)s->arch.top_k * s->ep_size / (double)s->arch.n_experts;
    return n > 1 ? n : 1;
}

static void add_work(const sizes *s, const xp_gpu *gpu, double times, const work *w,
                     double attention_share, xp_step_prediction *p) {
    const double peak = gpu->bf16_tflops * 1e12;
    if (s->is_moe)
        p->experts_s +=
            times * w->ffn / (peak * between(rows_an_expert(s), grouped_rows, grouped_share));
    else
        p->dense_s += times * w->ffn / (peak * DENSE_SHARE);
    p->dense_s += times * w->dense / (peak * DENSE_SHARE);
    p->attention_s += times * w->attention / (peak * attention_share);
    p->memory_s += times * w->bytes / (gpu->memory_tbps * 1e12 * MEMORY_SHARE);
}

static void add_layers(const sizes *s, const xp_gpu *gpu, xp_step_prediction *p) {
    const double times = (double)s->arch.n_layers * (double)s->n_passes;
    const work forward = forward_work(s);
    work backward = backward_work(s);
    if (s->is_moe && s->n_passes > 1) /* half of it is wgrad */
        backward.ffn *= (1 + between(rows_an_expert(s), grouped_rows, adding_takes)) / 2;
    add_work(s, gpu, times, &forward, ATTENTION_SHARE, p);
    add_work(s, gpu, times, &backward, BACKWARD_SHARE, p);
    if (s->recompute != XP_RECOMPUTE_NONE) {
        work again = s->recompute == XP_RECOMPUTE_FULL ? forward : (work){0};
        again.ffn = forward.ffn * 2 / 3; /* gate and up */
        add_work(s, gpu, times, &again, ATTENTION_SHARE, p);
    }
    p->memory_s += times * LAYER_S;
    if (s->is_moe)
        p->memory_s += times * (PLAN_S + PLAN_ASSIGNMENT_S * s->tokens * (double)s->arch.top_k);
}

static void add_head(const sizes *s, const xp_gpu *gpu, xp_step_prediction *p) {
    const double logits = s->tokens * (double)s->arch.vocab_size * (double)s->n_passes;
    p->head_s = 6 * logits * (double)s->arch.dim / (gpu->bf16_tflops * 1e12 * DENSE_SHARE) +
                3 * 2 * logits / (gpu->memory_tbps * 1e12 * MEMORY_SHARE);
}

/* ---- parameters ----------------------------------------------------------------------------- */

typedef struct traffic {          /* of one rank and step */
    double reduced, gathered;     /* bytes */
    double reduced_s, gathered_s; /* alone */
} traffic;

/* Bytes a second of a rank in a ring over a group: inside a node NVLink's; between nodes all
 * network cards of the group's ranks on a node carry the rings together. */
static double ring_rate(const xp_cluster *c, bool spans_nodes, double ranks_of_node) {
    const double link = c->gpu->link_gbps * 1e9 * LINK_SHARE,
                 network = c->network_gbps * 1e9 * NETWORK_SHARE *
                           (ranks_of_node > 1 ? ranks_of_node : 1);
    return spans_nodes && network < link ? network : link;
}

/* `elements` whose optimizer state `n` ranks of a replica share. */
static void add_shards(const sizes *s, double elements, double n, double rate, traffic *t) {
    const double others = elements * (n - 1) / n;
    t->reduced += others * s->gradient_bytes;
    t->gathered += others * 2;
    t->reduced_s += others * s->gradient_bytes / rate;
    t->gathered_s += others * 2 / rate;
}

/* A rank's own share, added up over `n` replicas. */
static void add_replicas(const sizes *s, double share, double n, double rate, traffic *t) {
    const double n_bytes = 2 * share * s->gradient_bytes * (n - 1) / n;
    t->reduced += n_bytes;
    t->reduced_s += n_bytes / rate;
}

static void add_parameters(const sizes *s, const xp_mesh *m, const xp_cluster *c,
                           xp_step_prediction *p) {
    const xp_arch *a = &s->arch;
    const double memory = c->gpu->memory_tbps * 1e12 * MEMORY_SHARE,
                 all_experts = s->is_moe ? 3.0 * (double)a->n_layers * (double)a->n_experts *
                                               (double)a->dim * (double)a->moe_dim
                                         : 0,
                 dense = (double)xp_arch_n_params(a) - all_experts,
                 experts = all_experts / s->ep_size, n = m->n_shard, n_e = m->n_expert_shard,
                 own = dense / n + experts / n_e, of_node = c->gpus_per_node;
    p->optimizer_s = own * (OPTIMIZER_BYTES + s->gradient_bytes) / memory; /* the norm, too */
    traffic t = {0};
    const bool spans = m->n_ranks > c->gpus_per_node && c->gpus_per_node % m->n_shard != 0;
    add_shards(s, dense, n, ring_rate(c, spans, of_node), &t);
    add_shards(s, experts, n_e, ring_rate(c, spans, of_node / s->ep_size), &t);
    add_replicas(s, own, m->n_replicate, ring_rate(c, m->n_ranks > c->gpus_per_node, of_node / n),
                 &t);
    /* Half of the last pass's backward, two thirds of its work, hides reductions. */
    const double compute = p->dense_s + p->attention_s + p->experts_s + p->memory_s,
                 left = t.reduced_s - compute / (double)s->n_passes * 2 / 3 / 2;
    p->gradient_bytes = t.reduced + t.gathered;
    p->gradients_s = t.gathered_s + (left > 0 ? left : 0);
}

static xp_status read_sizes(const xp_config *config, const xp_mesh *layout, sizes *s) {
    const char *dtype = config->training.dtype, *mode = config->activation_checkpoint.mode;
    int64_t global;
    memset(s, 0, sizeof *s);
    if (dtype && strcmp(dtype, "float32") == 0)
        return xp_error(XP_ENOTSUP, "how fast float32 is was not measured: training.dtype = "
                                    "\"bfloat16\" can be foretold");
    XP_TRY(xp_arch_from_config(config, &s->arch));
    XP_TRY(xp_run_batch_sizes(config, layout->n_ranks, &s->n_passes, &global));
    s->seq_len = (double)config->training.seq_len;
    s->tokens = (double)config->training.local_batch_size * s->seq_len;
    s->gradient_bytes = s->n_passes > 1 ? 4 : 2;
    s->recompute = xp_run_recompute(mode);
    s->is_moe = s->arch.n_experts > 0;
    s->saves_recv =
        xp_saves_recv(s->recompute, xp_run_save_dispatched(config->moe.save_dispatched));
    s->forced = xp_run_forced(config);
    s->ep_size = layout->ep_size;
    s->ep_nodes = layout->ep_nodes > 1 ? layout->ep_nodes : 1;
    xp_ep_config ep = {.transport = xp_run_transport(config, &s->arch), .n_nodes = s->ep_nodes};
    XP_TRY(xp_ep_choose_transport(&ep, s->ep_nodes == 1));
    s->transport = ep.transport;
    return XP_OK;
}

xp_status xp_predict_step(const xp_config *config, const xp_mesh *layout, const xp_cluster *cluster,
                          xp_step_prediction *prediction) {
    xp_step_prediction p = {0};
    sizes s;
    XP_TRY(read_sizes(config, layout, &s));
    add_layers(&s, cluster->gpu, &p);
    add_head(&s, cluster->gpu, &p);
    add_exchange(&s, cluster, &p);
    add_parameters(&s, layout, cluster, &p);
    p.step_s = p.dense_s + p.attention_s + p.experts_s + p.memory_s + p.head_s + p.exchange_s +
               p.gradients_s + p.optimizer_s;
    p.tokens = s.tokens * (double)s.n_passes;
    p.n_passes = s.n_passes;
    p.transport = s.is_moe && s.ep_size > 1 ? s.transport : XP_EP_AUTO;
    p.flops = p.tokens * xp_arch_flops_per_token(&s.arch, config->training.seq_len);
    *prediction = p;
    return XP_OK;
}
