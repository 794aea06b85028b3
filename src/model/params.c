#include "model/params.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "ops/ops.h"

/* How the Hugging Face tensors lie in a parameter. */
typedef enum layout {
    LAYOUT_WHOLE,     /* one tensor of the parameter's shape */
    LAYOUT_QKV,       /* row blocks of H*C, G*C, G*C */
    LAYOUT_GATE_UP,   /* two halves of the rows */
    LAYOUT_EXPERT_13, /* per local expert: gate, up */
    LAYOUT_EXPERT_2,  /* per local expert: down */
} layout;

/* What xp_param does not say: how to cut it and what the pieces are called. */
typedef struct cut {
    const char *name; /* of the parameter, after "layers.N." or whole */
    layout how;
    int layer;           /* -1: not in a layer */
    const char *hf_name; /* after "model.layers.N." or whole; without ".weight" */
} cut;

struct xp_param_table {
    xp_arch arch;
    int first_expert, n_local;
    int64_t n_elements;
    int n_params, n_groups;
    int n_layer_params; /* of each layer; they follow the embedding */
    xp_param *params;
    cut *cuts;
    xp_param_group *groups;
};

enum { LAYER_PARAMS = 9, MODEL_PARAMS = 3, MODEL_GROUPS = 2 }; /* at most */

static int64_t align_up(int64_t value, int64_t unit) {
    return (value + unit - 1) / unit * unit;
}

/* Names of 64 bytes hold "layers.", ten digits and any name below. The planner makes thousands of
 * tables, hence no snprintf. */
static void join(char *name, const char *prefix, const char *rest) {
    const size_t n = strlen(prefix);
    memcpy(name, prefix, n);
    memcpy(name + n, rest, strlen(rest) + 1);
}

static void begin_group(xp_param_table *table, const char *prefix, const char *name, int layer,
                        bool is_expert) {
    xp_param_group *group = &table->groups[table->n_groups++];
    table->n_elements = align_up(table->n_elements, XP_GROUP_ALIGN);
    join(group->name, prefix, name);
    group->layer = layer;
    group->is_expert = is_expert;
    group->offset = table->n_elements;
    group->first_param = table->n_params;
}

static void add(xp_param_table *table, const char *prefix, cut how, int n_dims,
                const int64_t shape[3], double std) {
    xp_param_group *group = &table->groups[table->n_groups - 1];
    xp_param *param = &table->params[table->n_params];
    join(param->name, prefix, how.name);
    param->n_dims = n_dims;
    param->n_elements = 1;
    for (int i = 0; i < n_dims; i++) {
        param->shape[i] = shape[i];
        param->n_elements *= shape[i];
    }
    param->offset = align_up(table->n_elements, XP_PARAM_ALIGN);
    param->group = table->n_groups - 1;
    param->init_std = (float)std;
    int n_local = table->n_local;
    const int n_slices[] = {1, 3, 2, 2 * n_local, n_local};
    param->n_slices = n_slices[how.how];
    table->cuts[table->n_params++] = how;
    table->n_elements = param->offset + param->n_elements;
    group->n_elements = table->n_elements - group->offset;
    group->n_params++;
}

static void add_layer(xp_param_table *table, int layer) {
    const xp_arch *arch = &table->arch;
    int64_t d = arch->dim, c = arch->head_dim, h = arch->n_heads, g = arch->n_kv_heads;
    int64_t f = arch->n_experts > 0 ? arch->moe_dim : arch->hidden_dim, n_local = table->n_local;
    const double std = 0.02, out_std = 0.02 / sqrt(2.0 * (double)arch->n_layers);
    char group[32], prefix[sizeof(group) + 1];
    snprintf(group, sizeof(group), "layers.%d", layer);
    join(prefix, group, ".");
    begin_group(table, group, "", layer, false);
    const int64_t norm[3] = {d}, head_norm[3] = {c}, wqkv[3] = {(h + 2 * g) * c, d},
                  wo[3] = {d, h * c};
    add(table, prefix, (cut){"input_norm", LAYOUT_WHOLE, layer, "input_layernorm"}, 1, norm, 0);
    add(table, prefix, (cut){"wqkv", LAYOUT_QKV, layer, "self_attn"}, 2, wqkv, std);
    if (arch->qk_norm) {
        add(table, prefix, (cut){"q_norm", LAYOUT_WHOLE, layer, "self_attn.q_norm"}, 1, head_norm,
            0);
        add(table, prefix, (cut){"k_norm", LAYOUT_WHOLE, layer, "self_attn.k_norm"}, 1, head_norm,
            0);
    }
    add(table, prefix, (cut){"wo", LAYOUT_WHOLE, layer, "self_attn.o_proj"}, 2, wo, out_std);
    add(table, prefix, (cut){"post_norm", LAYOUT_WHOLE, layer, "post_attention_layernorm"}, 1, norm,
        0);
    if (arch->n_experts == 0) {
        const int64_t w13[3] = {2 * f, d}, w2[3] = {d, f};
        add(table, prefix, (cut){"w13", LAYOUT_GATE_UP, layer, "mlp"}, 2, w13, std);
        add(table, prefix, (cut){"w2", LAYOUT_WHOLE, layer, "mlp.down_proj"}, 2, w2, out_std);
        return;
    }
    const int64_t gate[3] = {arch->n_experts, d}, w13[3] = {n_local, 2 * f, d},
                  w2[3] = {n_local, d, f};
    add(table, prefix, (cut){"gate", LAYOUT_WHOLE, layer, "mlp.gate"}, 2, gate, std);
    begin_group(table, prefix, "experts", layer, true);
    add(table, prefix, (cut){"experts.w13", LAYOUT_EXPERT_13, layer, "mlp.experts"}, 3, w13, std);
    add(table, prefix, (cut){"experts.w2", LAYOUT_EXPERT_2, layer, "mlp.experts"}, 3, w2, out_std);
}

static void fill(xp_param_table *table) {
    const xp_arch *arch = &table->arch;
    const int64_t vocab[3] = {arch->vocab_size, arch->dim}, norm[3] = {arch->dim};
    begin_group(table, "", "embed", -1, false);
    add(table, "", (cut){"embed", LAYOUT_WHOLE, -1, "model.embed_tokens"}, 2, vocab, 0.02);
    for (int layer = 0; layer < arch->n_layers; layer++)
        add_layer(table, layer);
    table->n_layer_params = (table->n_params - 1) / (int)arch->n_layers;
    begin_group(table, "", "head", (int)arch->n_layers, false);
    add(table, "", (cut){"final_norm", LAYOUT_WHOLE, -1, "model.norm"}, 1, norm, 0);
    if (!arch->tie_embeddings)
        add(table, "", (cut){"lm_head", LAYOUT_WHOLE, -1, "lm_head"}, 2, vocab, 0.02);
    table->n_elements = align_up(table->n_elements, XP_GROUP_ALIGN);
}

xp_status xp_param_table_create(const xp_arch *arch, int ep_rank, int ep_size,
                                xp_param_table **table) {
    XP_TRY(xp_arch_check(arch));
    if (ep_size < 1 || ep_rank < 0 || ep_rank >= ep_size)
        return xp_error(XP_EINVAL, "parameter table: EP rank %d of %d", ep_rank, ep_size);
    if (arch->n_experts % ep_size != 0)
        return xp_error(XP_ECONFIG,
                        "parallelism.expert_parallel_degree = %d does not divide the %d experts of "
                        "model.flavor '%s'",
                        ep_size, arch->n_experts, arch->flavor);
    xp_param_table *made = calloc(1, sizeof(*made));
    if (!made)
        return xp_error(XP_ENOMEM, "parameter table: out of memory");
    made->arch = *arch;
    made->n_local = arch->n_experts / ep_size;
    made->first_expert = ep_rank * made->n_local;
    size_t n_layers = (size_t)arch->n_layers;
    made->params = calloc(n_layers * LAYER_PARAMS + MODEL_PARAMS, sizeof(*made->params));
    made->cuts = calloc(n_layers * LAYER_PARAMS + MODEL_PARAMS, sizeof(*made->cuts));
    made->groups = calloc(2 * n_layers + MODEL_GROUPS, sizeof(*made->groups));
    if (!made->params || !made->cuts || !made->groups) {
        xp_param_table_destroy(made);
        return xp_error(XP_ENOMEM, "parameter table: out of memory");
    }
    fill(made);
    *table = made;
    return XP_OK;
}

void xp_param_table_destroy(xp_param_table *table) {
    if (!table)
        return;
    free(table->params);
    free(table->cuts);
    free(table->groups);
    free(table);
}

int xp_param_table_n_params(const xp_param_table *table) {
    return table->n_params;
}

const xp_param *xp_param_table_param(const xp_param_table *table, int i) {
    return &table->params[i];
}

int xp_param_table_n_groups(const xp_param_table *table) {
    return table->n_groups;
}

const xp_param_group *xp_param_table_group(const xp_param_table *table, int i) {
    return &table->groups[i];
}

int64_t xp_param_table_n_elements(const xp_param_table *table) {
    return table->n_elements;
}

int xp_param_table_find_in(const xp_param_table *table, int64_t layer, const char *name) {
    const int head = 1 + (int)table->arch.n_layers * table->n_layer_params;
    int begin = 0, end = table->n_params;
    if (layer >= table->arch.n_layers)
        return -1;
    if (layer >= 0) {
        begin = 1 + (int)layer * table->n_layer_params;
        end = begin + table->n_layer_params;
    }
    for (int i = begin; i < end; i++) {
        if (layer < 0 && i == 1)
            i = head; /* past the layers */
        if (i < end && strcmp(table->cuts[i].name, name) == 0)
            return i;
    }
    return -1;
}

int xp_param_table_find(const xp_param_table *table, const char *name) {
    const char *const layers = "layers.";
    const size_t n = strlen(layers);
    if (strncmp(name, layers, n) != 0)
        return xp_param_table_find_in(table, -1, name);
    char *rest = NULL;
    const long layer = strtol(name + n, &rest, 10);
    const int i = layer >= 0 && *rest == '.' ? xp_param_table_find_in(table, layer, rest + 1) : -1;
    return i >= 0 && strcmp(table->params[i].name, name) == 0 ? i : -1; /* "layers.03.wo" is none */
}

/* Rows [first, first + n) of the parameter seen as [rows, width] and the tensor's name inside its
 * layer. */
static void slice_rows(xp_param_slice *slice, const xp_param *param, int64_t first, int64_t n,
                       int64_t width) {
    slice->n_dims = 2;
    slice->shape[0] = n;
    slice->shape[1] = width;
    slice->offset = param->offset + first * width;
    slice->n_elements = n * width;
}

void xp_param_table_slice(const xp_param_table *table, int param, int i, xp_param_slice *slice) {
    const xp_param *p = &table->params[param];
    const cut *how = &table->cuts[param];
    const xp_arch *arch = &table->arch;
    int64_t width = p->shape[p->n_dims - 1];
    char tail[64];
    *slice = (xp_param_slice){0};
    switch (how->how) {
    case LAYOUT_WHOLE:
        slice_rows(slice, p, 0, p->n_elements / width, width);
        if (p->n_dims == 1) {
            slice->n_dims = 1;
            slice->shape[0] = width;
            slice->shape[1] = 0;
        }
        snprintf(tail, sizeof(tail), "%s", how->hf_name);
        break;
    case LAYOUT_QKV: {
        int64_t q = (int64_t)arch->n_heads * arch->head_dim;
        int64_t kv = (int64_t)arch->n_kv_heads * arch->head_dim;
        slice_rows(slice, p, i == 0 ? 0 : q + (i - 1) * kv, i == 0 ? q : kv, width);
        snprintf(tail, sizeof(tail), "%s.%c_proj", how->hf_name, "qkv"[i]);
        break;
    }
    case LAYOUT_GATE_UP:
        slice_rows(slice, p, i * (p->shape[0] / 2), p->shape[0] / 2, width);
        snprintf(tail, sizeof(tail), "%s.%s_proj", how->hf_name, i == 0 ? "gate" : "up");
        break;
    case LAYOUT_EXPERT_13:
        slice_rows(slice, p, i * (p->shape[1] / 2), p->shape[1] / 2, width);
        snprintf(tail, sizeof(tail), "%s.%d.%s_proj", how->hf_name, table->first_expert + i / 2,
                 i % 2 == 0 ? "gate" : "up");
        break;
    case LAYOUT_EXPERT_2:
        slice_rows(slice, p, i * p->shape[1], p->shape[1], width);
        snprintf(tail, sizeof(tail), "%s.%d.down_proj", how->hf_name, table->first_expert + i);
        break;
    }
    if (how->layer >= 0)
        snprintf(slice->hf_name, sizeof(slice->hf_name), "model.layers.%d.%s.weight", how->layer,
                 tail);
    else
        snprintf(slice->hf_name, sizeof(slice->hf_name), "%s.weight", tail);
}

/* The part of [first, first + n) that lies in [offset, offset + count); returns its length, 0 when
 * none. */
static int64_t overlap(int64_t first, int64_t n, int64_t offset, int64_t count, int64_t *begin) {
    int64_t end = first + n < offset + count ? first + n : offset + count;
    *begin = first > offset ? first : offset;
    return end > *begin ? end - *begin : 0;
}

xp_status xp_param_table_draw(const xp_param_table *table, uint64_t seed, int64_t first, int64_t n,
                              xp_stream *stream, float *out) {
    const xp_ops *ops;
    XP_TRY(xp_ops_get(xp_stream_device(stream), &ops));
    if (n <= 0)
        return XP_OK;
    XP_TRY(xp_zero(stream, out, (size_t)n * sizeof(float)));
    for (int i = 0; i < table->n_params; i++) {
        const xp_param *param = &table->params[i];
        int64_t begin = 0;
        if (overlap(first, n, param->offset, param->n_elements, &begin) == 0)
            continue;
        for (int s = 0; s < param->n_slices; s++) {
            xp_param_slice slice;
            xp_param_table_slice(table, i, s, &slice);
            int64_t count = overlap(first, n, slice.offset, slice.n_elements, &begin);
            const xp_draw_args args = {.seed = seed,
                                       .stream = xp_rng_stream(slice.hf_name),
                                       .first = (uint64_t)(begin - slice.offset),
                                       .n = count,
                                       .std = param->init_std,
                                       .out = out + (begin - first)};
            if (count > 0)
                XP_TRY(ops->draw(stream, &args));
        }
    }
    return XP_OK;
}
