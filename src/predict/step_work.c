#include "predict/step_work.h"

#include <math.h>
#include <string.h>
#include "predict/step_parts.h"

/* Bytes of an assignment that a plan reads (expert, weight) and writes (gather list, weight, position). */
#define PLAN_BYTES 20

typedef struct counter {
    const xp_sizes *s;
    xp_step_work *work;
    double bound_s[XP_N_PARTS][XP_BOUND_LINK + 1];
} counter;

/* ---- counting ------------------------------------------------------------------------------- */

/* An op that runs `times` in a step. */
static void add(counter *c, xp_part part, double times, double flops, double bytes) {
    const xp_step_limits *l = &c->work->limits;
    const double compute_s = times * flops / l->flops, copy_s = times * bytes / l->memory;
    xp_part_work *w = &c->work->parts[part];
    w->flops += times * flops;
    w->bytes += times * bytes;
    w->floor_s += fmax(compute_s, copy_s);
    c->bound_s[part][compute_s >= copy_s ? XP_BOUND_GEMM : XP_BOUND_COPY] +=
        fmax(compute_s, copy_s);
}

/* Elements that an op reads and writes for each token of a pass. */
static void add_rows(counter *c, xp_part part, double times, double elements) {
    add(c, part, times, 0, c->s->element * c->s->tokens * elements);
}

/* c[m, n] = a[m, k] b[k, n], an element of c with so many bytes */
static void add_gemm(counter *c, xp_part part, double times, const double mnk[3],
                     double result_bytes) {
    const double m = mnk[0], n = mnk[1], k = mnk[2];
    add(c, part, times, 2 * m * n * k, c->s->element * (m * k + k * n) + result_bytes * m * n);
}

static void add_forward(counter *c, xp_part part, double times, double n, double k) {
    add_gemm(c, part, times, (double[]){c->s->tokens, n, k}, c->s->element);
}

/* Of a gradient's element: written, and where it is added to also read. */
static double gradient_traffic(const xp_sizes *s) {
    return s->gradient_bytes * (s->n_passes > 1 ? 2 : 1);
}

static void add_backward(counter *c, xp_part part, double times, double n, double k) {
    add_gemm(c, part, times, (double[]){c->s->tokens, k, n}, c->s->element);
    add_gemm(c, part, times, (double[]){n, k, c->s->tokens}, gradient_traffic(c->s));
}

/* ---- layers --------------------------------------------------------------------------------- */

typedef struct widths {
    double d, q, kv, qkv, ffn; /* ffn: of all experts of a token */
} widths;

static widths widths_of(const xp_sizes *s) {
    const xp_arch *a = &s->arch;
    const double q = (double)a->n_heads * a->head_dim, kv = (double)a->n_kv_heads * a->head_dim;
    return (widths){.d = (double)a->dim,
                    .q = q,
                    .kv = kv,
                    .qkv = q + 2 * kv,
                    .ffn =
                        s->is_moe ? (double)a->top_k * (double)a->moe_dim : (double)a->hidden_dim};
}

static void add_attention(counter *c, const widths *w, double layers, bool again) {
    const xp_sizes *s = c->s;
    const double flops = 2 * s->tokens * s->seq_len * w->q, /* half of the square */
        bytes = s->element * s->tokens * (2 * w->q + 2 * w->kv);
    add(c, XP_PART_ATTENTION_FORWARD, layers * (again ? 2 : 1), flops, bytes);
    add(c, XP_PART_ATTENTION_BACKWARD, layers, 2.5 * flops, 2 * bytes);
}

static void add_dense(counter *c, const widths *w, double layers) {
    const xp_sizes *s = c->s;
    for (int again = 0; again <= (s->recompute == XP_RECOMPUTE_FULL); again++) {
        const xp_part part = again ? XP_PART_DENSE_BACKWARD : XP_PART_DENSE_FORWARD;
        add_forward(c, part, layers, w->qkv, w->d);
        add_forward(c, part, layers, w->d, w->q);
    }
    add_backward(c, XP_PART_DENSE_BACKWARD, layers, w->qkv, w->d);
    add_backward(c, XP_PART_DENSE_BACKWARD, layers, w->d, w->q);
    if (s->is_moe)
        return;
    add_forward(c, XP_PART_DENSE_FORWARD, layers, 2 * w->ffn, w->d);
    add_forward(c, XP_PART_DENSE_FORWARD, layers, w->d, w->ffn);
    add_backward(c, XP_PART_DENSE_BACKWARD, layers, 2 * w->ffn, w->d);
    add_backward(c, XP_PART_DENSE_BACKWARD, layers, w->d, w->ffn);
    if (s->recompute != XP_RECOMPUTE_NONE)
        add_forward(c, XP_PART_DENSE_BACKWARD, layers, 2 * w->ffn, w->d);
}

/* The GEMMs of an assignment's row: with the weights once, and the tokens' own rows once where they are gathered. */
static void add_experts(counter *c, const widths *w, double layers) {
    const xp_sizes *s = c->s;
    const double e = s->element, f = (double)s->arch.moe_dim, k = (double)s->arch.top_k,
                 rows = s->tokens * k, flops = 2 * rows * w->d * f,
                 matrix = (double)s->arch.n_experts / s->ep_size * w->d * f,
                 gathered = s->tokens * w->d;
    const double first = e * (gathered + 2 * rows * f + 2 * matrix),
                 second = e * (rows * f + rows * w->d + matrix);
    add(c, XP_PART_EXPERT_FORWARD, layers * (s->recompute == XP_RECOMPUTE_NONE ? 1 : 2), 2 * flops,
        first);
    add(c, XP_PART_EXPERT_FORWARD, layers, flops, second);
    add(c, XP_PART_EXPERT_DGRAD, layers, flops, e * (gathered + rows * f + matrix));
    add(c, XP_PART_EXPERT_DGRAD, layers, 2 * flops, e * (2 * rows * f + rows * w->d + 2 * matrix));
    add(c, XP_PART_EXPERT_WGRAD, layers, flops,
        e * (gathered + rows * f) + gradient_traffic(s) * matrix);
    add(c, XP_PART_EXPERT_WGRAD, layers, 2 * flops,
        e * (gathered + 2 * rows * f) + gradient_traffic(s) * 2 * matrix);
}

/* Norms: x and the branch to their sum and the normed rows; the normed rows once more; backward x, dy and the
 * residual's gradient to dx. QK-norm with RoPE: forward again before attention's backward. */
static void add_norms(counter *c, const widths *w, double layers) {
    const bool full = c->s->recompute == XP_RECOMPUTE_FULL;
    const double qk = w->q + w->kv, times = layers / (double)c->s->arch.n_layers;
    add_rows(c, XP_PART_NORMS, layers, (8 + (full ? 8 : 4) + 8) * w->d);
    add_rows(c, XP_PART_NORMS, times, (4 + 3) * w->d);
    add_rows(c, XP_PART_QK_NORM_ROPE, layers, 2 * 2 * qk + 3 * qk);
    add_rows(c, XP_PART_ACTIVATION, layers, 3 * w->ffn + 6 * w->ffn);
}

static void add_router(counter *c, const widths *w, double layers) {
    const xp_sizes *s = c->s;
    const double t = s->tokens, e = s->arch.n_experts, k = (double)s->arch.top_k;
    const bool as_gemms = s->element == 4; /* its gradients, of fp32 rows */
    add_gemm(c, XP_PART_DENSE_FORWARD, layers, (double[]){t, e, w->d}, 4);
    if (s->recompute == XP_RECOMPUTE_FULL)
        add_gemm(c, XP_PART_DENSE_BACKWARD, layers, (double[]){t, e, w->d}, 4);
    if (as_gemms)
        add_backward(c, XP_PART_DENSE_BACKWARD, layers, e, w->d);
    else
        add(c, XP_PART_ROUTER, layers, 4 * t * e * w->d, t * (6 * w->d + 4 * e));
    add(c, XP_PART_ROUTER, layers, 0, t * (8 * e + 8 * k));  /* logits to scores, assignments */
    add(c, XP_PART_ROUTER, layers, 0, 4 * t * k);            /* assignments counted */
    add(c, XP_PART_ROUTER, layers, 0, t * (8 * e + 12 * k)); /* backward */
    add(c, XP_PART_PLAN, layers, 0, PLAN_BYTES * t * k);
}

/* ---- the rest of a step --------------------------------------------------------------------- */

static void add_head(counter *c, const widths *w) {
    const xp_sizes *s = c->s;
    const double passes = (double)s->n_passes, vocab = (double)s->arch.vocab_size;
    add_forward(c, XP_PART_HEAD, passes, vocab, w->d);
    add_backward(c, XP_PART_HEAD, passes, vocab, w->d);
    add_rows(c, XP_PART_CROSS_ENTROPY, passes, 2 * vocab); /* the gradient in place of the logits */
    add_rows(c, XP_PART_EMBEDDING, passes, 2 * w->d + w->d);
    add(c, XP_PART_EMBEDDING, 1, 0, s->gradient_bytes * vocab * w->d);
}

static bool hides_exchange(const xp_sizes *s) {
    return s->hides_exchange || s->n_parts > 1;
}

/* Sums over a token's rows at its rank, forward and backward; bytes between ranks as the predictor counts them. */
static void add_exchange(counter *c, const widths *w, double layers, const xp_step_prediction *p) {
    const xp_sizes *s = c->s;
    xp_part_work *part = &c->work->parts[XP_PART_EXCHANGE];
    if (s->ep_size == 1) {
        add_rows(c, XP_PART_EXCHANGE, layers * 2, ((double)s->arch.top_k + 1) * w->d);
        return;
    }
    part->link_bytes = p->link_bytes + p->network_bytes;
    part->bound = XP_BOUND_LINK;
    if (!hides_exchange(s))
        part->floor_s =
            fmax(p->link_bytes / c->work->limits.link, p->network_bytes / c->work->limits.network);
}

static void choose_bounds(counter *c) {
    for (int i = 0; i < XP_N_PARTS; i++)
        if (c->work->parts[i].floor_s > 0 && c->work->parts[i].bound == XP_BOUND_NONE)
            c->work->parts[i].bound = c->bound_s[i][XP_BOUND_GEMM] >= c->bound_s[i][XP_BOUND_COPY]
                                          ? XP_BOUND_GEMM
                                          : XP_BOUND_COPY;
}

/* ---- limits --------------------------------------------------------------------------------- */

static double measured_or(double measured, double promised) {
    return measured > 0 ? measured : promised;
}

/* What a CPU's description gives is measured; a GPU's limits are its data sheet's. */
static xp_step_limits limits_of(const xp_cluster *cluster) {
    const xp_hardware *h = cluster->hardware;
    const double sharers = h->is_cpu ? cluster->gpus_per_node : 1,
                 memory = h->limits.memory_tbps * 1e12 / sharers;
    if (h->is_cpu)
        return (xp_step_limits){.flops = h->limits.tflops * 1e12 / sharers,
                                .memory = memory,
                                .link = memory / 2,
                                .network = cluster->network_gbps * 1e9,
                                .measured = true};
    return (xp_step_limits){.flops = measured_or(h->measured.gemm_tflops, h->limits.tflops) * 1e12,
                            .memory =
                                measured_or(h->measured.copy_tbps, h->limits.memory_tbps) * 1e12,
                            .link = measured_or(h->measured.link_gbps, h->limits.link_gbps) * 1e9,
                            .network = cluster->network_gbps * 1e9,
                            .measured = h->measured.gemm_tflops > 0 && h->measured.copy_tbps > 0};
}

xp_status xp_predict_work(const xp_config *config, const xp_mesh *layout, const xp_cluster *cluster,
                          xp_step_work *work) {
    xp_sizes s;
    xp_step_prediction p = {0};
    xp_step_work made;
    XP_TRY(xp_predict_sizes(config, layout, cluster, &s));
    memset(&made, 0, sizeof made);
    made.limits = limits_of(cluster);
    counter c = {.s = &s, .work = &made};
    const widths w = widths_of(&s);
    const double layers = (double)s.arch.n_layers * (double)s.n_passes;
    xp_layer_times layer;
    xp_predict_compute(&s, &layer, &p);
    xp_predict_exchange(&s, &layer, &p);
    xp_predict_update(&s, layout, cluster, &layer, &p);
    add_attention(&c, &w, layers, s.recompute == XP_RECOMPUTE_FULL);
    add_dense(&c, &w, layers);
    add_norms(&c, &w, layers);
    add_head(&c, &w);
    if (s.is_moe) {
        add_experts(&c, &w, layers);
        add_router(&c, &w, layers);
        add_exchange(&c, &w, layers, &p);
    }
    add(&c, XP_PART_OPTIMIZER, 1, 0, p.optimizer_s * s.rates.memory);
    choose_bounds(&c);
    *work = made;
    return XP_OK;
}

/* ---- names ---------------------------------------------------------------------------------- */

const char *xp_part_name(xp_part part) {
    static const char *const names[XP_N_PARTS] = {[XP_PART_ATTENTION_FORWARD] = "attention forward",
                                                  [XP_PART_ATTENTION_BACKWARD] =
                                                      "attention backward",
                                                  [XP_PART_DENSE_FORWARD] = "dense GEMMs forward",
                                                  [XP_PART_DENSE_BACKWARD] = "dense GEMMs backward",
                                                  [XP_PART_EXPERT_FORWARD] = "expert GEMMs forward",
                                                  [XP_PART_EXPERT_DGRAD] = "expert GEMMs dgrad",
                                                  [XP_PART_EXPERT_WGRAD] = "expert GEMMs wgrad",
                                                  [XP_PART_ACTIVATION] = "activation",
                                                  [XP_PART_NORMS] = "norms",
                                                  [XP_PART_QK_NORM_ROPE] = "QK-norm + RoPE",
                                                  [XP_PART_ROUTER] = "router",
                                                  [XP_PART_PLAN] = "plan",
                                                  [XP_PART_EXCHANGE] = "exchange and sums",
                                                  [XP_PART_HEAD] = "head GEMMs",
                                                  [XP_PART_CROSS_ENTROPY] = "cross-entropy",
                                                  [XP_PART_EMBEDDING] = "embedding",
                                                  [XP_PART_OPTIMIZER] = "optimizer",
                                                  [XP_PART_OTHER] = "copies and other ops",
                                                  [XP_PART_COLLECTIVES] = "collectives, exposed",
                                                  [XP_PART_OUTSIDE] = "validation, checkpoint",
                                                  [XP_PART_GAPS] = "gaps"};
    return names[part];
}

const char *xp_bound_name(xp_bound bound) {
    static const char *const names[] = {"", "GEMM", "copy", "link"};
    return names[bound];
}
