#include "model/acts.h"

#include <stdlib.h>

typedef enum width { /* elements a token */
                     WIDTH_ONE,
                     WIDTH_DIM,
                     WIDTH_QKV,
                     WIDTH_HEADS,
                     WIDTH_Q,
                     WIDTH_FFN,
                     WIDTH_EXPERTS,
                     WIDTH_ASSIGNMENTS,
} width;

typedef struct row {
    width width;
    bool is_f32;          /* fp32 or int32 whatever the model's type */
    bool a_sequence;      /* a row a sequence instead of a token */
    bool selective, full; /* saved in this mode ("none" saves all) */
} row;

static const row rows[XP_N_ACTS] = {
    [XP_ACT_INPUT] = {WIDTH_DIM, false, false, true, true},
    [XP_ACT_INPUT_RSTD] = {WIDTH_ONE, true, false, true, true},
    [XP_ACT_QKV] = {WIDTH_QKV, false, false, true, false},
    [XP_ACT_ATTENTION] = {WIDTH_Q, false, false, true, false},
    [XP_ACT_LSE] = {WIDTH_HEADS, true, false, true, false},
    [XP_ACT_MID] = {WIDTH_DIM, false, false, true, false},
    [XP_ACT_MID_RSTD] = {WIDTH_ONE, true, false, true, false},
    [XP_ACT_GATE_UP] = {WIDTH_FFN, false, false, false, false},
    [XP_ACT_SCORES] = {WIDTH_EXPERTS, true, false, true, false},
    [XP_ACT_TOPK_IDX] = {WIDTH_ASSIGNMENTS, true, false, true, false},
    [XP_ACT_TOPK_WEIGHT] = {WIDTH_ASSIGNMENTS, true, false, true, false},
    [XP_ACT_ROUTER_LSE] = {WIDTH_ONE, true, false, true, false},
    [XP_ACT_AUX_DENSITY] = {WIDTH_EXPERTS, true, true, true, false},
};

static int64_t elements(const xp_arch *arch, width w) {
    int64_t c = arch->head_dim;
    switch (w) {
    case WIDTH_ONE:
        return 1;
    case WIDTH_DIM:
        return arch->dim;
    case WIDTH_QKV:
        return (arch->n_heads + 2 * (int64_t)arch->n_kv_heads) * c;
    case WIDTH_HEADS:
        return arch->n_heads;
    case WIDTH_Q:
        return arch->n_heads * c;
    case WIDTH_FFN:
        return 2 * arch->hidden_dim;
    case WIDTH_EXPERTS:
        return arch->n_experts;
    case WIDTH_ASSIGNMENTS:
        return arch->top_k;
    }
    return 0;
}

size_t xp_act_bytes(const xp_model_args *args, xp_act_id id) {
    const row *r = &rows[id];
    bool moe = args->arch->n_experts > 0;
    if ((id == XP_ACT_ROUTER_LSE && (!moe || args->z_loss_coeff == 0.0)) ||
        (id == XP_ACT_AUX_DENSITY && (!moe || args->aux_loss_coeff == 0.0)))
        return 0;
    int64_t n = r->a_sequence ? args->n_rows : args->n_rows * args->seq_len;
    size_t bytes = r->is_f32 ? sizeof(float) : xp_dtype_bytes(args->dtype);
    return (size_t)(n * elements(args->arch, r->width)) * bytes;
}

xp_status xp_acts_create(const xp_model_args *args, xp_acts *acts) {
    *acts = (xp_acts){.n_layers = args->inference ? 1 : (int)args->arch->n_layers};
    for (int id = 0; id < XP_N_ACTS; id++)
        acts->saved[id] =
            !args->inference &&
            (args->recompute == XP_RECOMPUTE_NONE ||
             (args->recompute == XP_RECOMPUTE_SELECTIVE ? rows[id].selective : rows[id].full));
    acts->data = calloc((size_t)acts->n_layers * XP_N_ACTS, sizeof(*acts->data));
    return acts->data ? XP_OK : xp_error(XP_ENOMEM, "activation table: out of memory");
}

void xp_acts_destroy(xp_acts *acts) {
    free(acts->data);
    acts->data = NULL;
}

void xp_acts_carve(xp_acts *acts, const xp_model_args *args, xp_slab *slab) {
    for (int id = 0; id < XP_N_ACTS; id++) {
        size_t bytes = xp_act_bytes(args, (xp_act_id)id);
        void *shared = NULL;
        for (int layer = 0; layer < acts->n_layers; layer++) {
            if (bytes > 0 && (acts->saved[id] || layer == 0))
                shared = xp_slab_take(slab, bytes);
            acts->data[layer * XP_N_ACTS + id] = shared;
        }
    }
}
