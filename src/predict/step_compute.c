/* Time of a step's GEMMs, attention, memory-bound ops and launches. */
#include <math.h>
#include "predict/step_parts.h"

#define TILE 128.0 /* rows and columns of a GEMM's tile: fewer tiles than SMs leave SMs idle */

/* Kernels of a layer and pass, of the head, and of the update of a layer and step: traces of a step. */
enum {
    MOE_FORWARD = 18,
    MOE_BACKWARD = 32,
    DENSE_FORWARD = 11,
    DENSE_BACKWARD = 22,
    EXCHANGE_KERNELS = 12, /* of a layer with EP, both ways */
    HEAD_KERNELS = 24,
    UPDATE_KERNELS = 2, /* of GPUs with peers */
    STEP_KERNELS = 8,   /* norm and update of a step */
    GRAPH_LAUNCHES = 6  /* of a pass that is one CUDA graph: the batch, the graph, the losses */
};

static double qkv_width(const xp_arch *a) {
    return (double)((a->n_heads + 2 * a->n_kv_heads) * (int64_t)a->head_dim);
}

static double q_width(const xp_arch *a) {
    return (double)a->n_heads * a->head_dim;
}

static double ffn_width(const xp_sizes *s) {
    const xp_arch *a = &s->arch;
    return s->is_moe ? (double)(a->top_k * a->moe_dim) : (double)a->hidden_dim;
}

/* ---- GEMMs ---------------------------------------------------------------------------------- */

/* Short sums pay a tile's start and end. */
static double depth_share(double k, double depth) {
    return k / (k + depth);
}

static double gemm_s(const xp_sizes *s, double m, double n, double k) {
    const xp_hardware *h = s->hardware;
    const double tiles = ceil(m / TILE) * ceil(n / TILE), units = h->limits.units,
                 fill = h->is_cpu || tiles >= units ? 1 : tiles / units;
    return 2 * m * n * k /
           (s->rates.flops * h->reached.dense * depth_share(k, h->reached.dense_depth) * fill);
}

/* A projection forward (y[t, n] = x[t, k] w), and backward: dx and dw. */
static double forward_s(const xp_sizes *s, double n, double k) {
    return gemm_s(s, s->tokens, n, k);
}

static double backward_s(const xp_sizes *s, double n, double k) {
    return gemm_s(s, s->tokens, k, n) + gemm_s(s, n, k, s->tokens);
}

/* Rows of an expert in a GEMM: its EP group's tokens, evenly. */
static double rows_an_expert(const xp_sizes *s) {
    const double n =
        s->tokens / s->n_parts * (double)s->arch.top_k * s->ep_size / (double)s->arch.n_experts;
    return n > 1 ? n : 1;
}

/* The value at `rows` on the line through 256, 2048 and 16384 rows, straight over the logarithm. */
static double by_rows(double rows, double at_256, double at_2048, double at_16384) {
    const double position = log(rows / 256) / log(8);
    if (position < 0)
        return at_256;
    if (position < 1)
        return at_256 + position * (at_2048 - at_256);
    return position < 2 ? at_2048 + (position - 1) * (at_16384 - at_2048) : at_16384;
}

typedef struct grouped { /* seconds of a layer's expert GEMMs, all parts of a microbatch */
    double gate_up, forward, dgrad, wgrad;
} grouped;

static grouped grouped_s(const xp_sizes *s) {
    const xp_hardware *h = s->hardware;
    const double rows = rows_an_expert(s), depth = h->reached.grouped_depth,
                 d = (double)s->arch.dim, f = (double)s->arch.moe_dim,
                 flops = 2 * s->tokens * (double)s->arch.top_k * d * f, /* of one matrix of three */
        few = by_rows(rows, h->reached.grouped_256_rows, h->reached.grouped_2048_rows, 1),
                 adding = by_rows(rows, h->reached.adding_256_rows, h->reached.adding_2048_rows,
                                  h->reached.adding_16384_rows),
                 rate = s->rates.flops * h->reached.grouped;
    /* Every pass but the first adds to the gradients, and so does the second part of a microbatch. */
    const double n_adds = (double)s->n_passes * s->n_parts,
                 plain = s->n_passes > 1 ? 0 : 1 / n_adds, longer = plain + (1 - plain) * adding;
    grouped g;
    g.gate_up = 2 * flops / (rate * few * depth_share(d, depth));
    g.forward = g.gate_up + flops / (rate * few * depth_share(f, depth));
    g.dgrad = 2 * flops / (rate * few * depth_share(2 * f, depth)) +
              flops / (rate * few * depth_share(d, depth));
    g.wgrad = 3 * flops / (rate * h->reached.wgrad * depth_share(rows, depth)) * longer;
    return g;
}

/* ---- layers --------------------------------------------------------------------------------- */

typedef struct layer_s { /* of one layer and pass */
    double dense, attention, experts, memory;
} layer_s;

static double attention_s(const xp_sizes *s, double share) {
    const double flops = 2 * s->tokens * s->seq_len * q_width(&s->arch); /* half of the square */
    return flops / (s->rates.flops * share *
                    depth_share(s->seq_len, s->hardware->reached.attention_length));
}

/* Elements of a token's K rows and of their sum, where it is made alone. */
static double sums_of(const xp_sizes *s) {
    return s->is_moe && !xp_predict_exchange_sums(s) ? (double)((s->arch.top_k + 1) * s->arch.dim)
                                                     : 0;
}

/* Elements of a token that silu(gate) * up * prob writes, where it is an op of its own. */
static double activation_of(const xp_sizes *s) {
    return s->activates_in_gemms ? 0 : ffn_width(s);
}

/* Elements that the memory-bound ops of a layer read and write for a token. */
static layer_s forward_layer(const xp_sizes *s, const grouped *g) {
    const xp_arch *a = &s->arch;
    const double d = (double)a->dim, sums = sums_of(s);
    layer_s l = {.dense = forward_s(s, qkv_width(a), d) + forward_s(s, d, q_width(a)),
                 .attention = attention_s(s, s->hardware->reached.attention_forward),
                 .experts = s->is_moe ? g->forward : 0,
                 .memory = s->element * s->tokens *
                           (8 * d + 2 * qkv_width(a) + 3 * activation_of(s) + sums) /
                           s->rates.memory};
    if (!s->is_moe)
        l.dense += forward_s(s, 2 * ffn_width(s), d) + forward_s(s, d, ffn_width(s));
    return l;
}

static layer_s backward_layer(const xp_sizes *s, const grouped *g) {
    const xp_arch *a = &s->arch;
    const double d = (double)a->dim, sums = sums_of(s);
    layer_s l = {.dense = backward_s(s, qkv_width(a), d) + backward_s(s, d, q_width(a)),
                 .attention = 2.5 * attention_s(s, s->hardware->reached.attention_backward),
                 .experts = s->is_moe ? g->dgrad + g->wgrad : 0,
                 .memory = s->element * s->tokens *
                           (20 * d + 6 * qkv_width(a) + 6 * activation_of(s) + sums) /
                           s->rates.memory};
    if (!s->is_moe)
        l.dense += backward_s(s, 2 * ffn_width(s), d) + backward_s(s, d, ffn_width(s));
    return l;
}

static layer_s recomputed_layer(const xp_sizes *s, const grouped *g, const layer_s *forward) {
    if (s->recompute == XP_RECOMPUTE_NONE)
        return (layer_s){0};
    const double d = (double)s->arch.dim;
    layer_s l = s->recompute == XP_RECOMPUTE_FULL ? *forward : (layer_s){0};
    if (s->is_moe)
        l.experts = g->gate_up;
    else if (s->recompute == XP_RECOMPUTE_SELECTIVE)
        l.dense = forward_s(s, 2 * ffn_width(s), d);
    else
        l.dense -= forward_s(s, d, ffn_width(s)); /* its output is not needed again */
    return l;
}

static void add_layer(double times, const layer_s *l, xp_step_prediction *p) {
    p->dense_s += times * l->dense;
    p->attention_s += times * l->attention;
    p->experts_s += times * l->experts;
    p->memory_s += times * l->memory;
}

static double head_s(const xp_sizes *s) {
    const double vocab = (double)s->arch.vocab_size, d = (double)s->arch.dim;
    const double logits = s->tokens * vocab; /* written, read, and their gradients read twice */
    return forward_s(s, vocab, d) + backward_s(s, vocab, d) +
           3 * s->element * logits / s->rates.memory;
}

static double plan_s(const xp_sizes *s) {
    const xp_hardware *h = s->hardware;
    return s->is_moe ? s->n_parts * h->costs.plan_us * 1e-6 +
                           h->costs.plan_assignment_ns * 1e-9 * s->tokens * (double)s->arch.top_k
                     : 0;
}

static double all_of(const layer_s *l) {
    return l->dense + l->attention + l->experts + l->memory;
}

/* Kernels of all passes, whatever their work. */
static double n_pass_kernels(const xp_sizes *s) {
    double each = s->is_moe ? MOE_FORWARD + MOE_BACKWARD : DENSE_FORWARD + DENSE_BACKWARD;
    if (s->recompute == XP_RECOMPUTE_FULL)
        each += s->is_moe ? MOE_FORWARD : DENSE_FORWARD;
    if (s->is_moe && s->ep_size > 1)
        each += EXCHANGE_KERNELS * s->n_parts;
    return (double)s->n_passes * ((double)s->arch.n_layers * each + HEAD_KERNELS);
}

void xp_predict_launches(const xp_sizes *s, bool in_graphs, xp_step_prediction *p) {
    const xp_hardware *h = s->hardware;
    const double update = (double)s->arch.n_layers * UPDATE_KERNELS + STEP_KERNELS,
                 passes = n_pass_kernels(s),
                 launches = in_graphs ? (double)s->n_passes * GRAPH_LAUNCHES : passes;
    p->launch_s = (passes * (in_graphs ? h->costs.graph_kernel_us : h->costs.kernel_us) +
                   update * h->costs.kernel_us) *
                  1e-6;
    p->host_s = (launches + update) * h->costs.launch_us * 1e-6;
}

void xp_predict_compute(const xp_sizes *s, xp_layer_times *layer, xp_step_prediction *p) {
    const double times = (double)s->arch.n_layers * (double)s->n_passes;
    const grouped g = s->is_moe ? grouped_s(s) : (grouped){0};
    layer_s forward = forward_layer(s, &g);
    const layer_s backward = backward_layer(s, &g), again = recomputed_layer(s, &g, &forward);
    forward.memory += plan_s(s);
    add_layer(times, &forward, p);
    add_layer(times, &backward, p);
    add_layer(times, &again, p);
    *layer = (xp_layer_times){.forward = all_of(&forward),
                              .backward = all_of(&backward) + all_of(&again),
                              .w13 = g.gate_up,
                              .w2 = g.forward - g.gate_up,
                              .w13_wgrad = g.wgrad * 2 / 3,
                              .w2_wgrad = g.wgrad / 3,
                              .wqkv_wgrad =
                                  gemm_s(s, qkv_width(&s->arch), (double)s->arch.dim, s->tokens),
                              .head = head_s(s)};
    p->head_s = (double)s->n_passes * layer->head;
}
