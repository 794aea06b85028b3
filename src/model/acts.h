/**
 * The activation table: the one list of what a layer's forward leaves for its backward.
 * Reservation, recomputation and the memory plan read it. An activation that the recompute mode
 * does not save has one memory that all layers share; backward fills it again with the same ops on
 * the same inputs, so the three modes give the same bits.
 *
 *                                                  none    selective   full
 *   layer input, its rstd                          saved   saved       saved
 *   qkv, attention, mid residual, routing scores   saved   saved       again
 *   gate_up rows (the largest: 2F a token, 2F K    saved   again       again
 *   in a MoE model)
 *
 * The expert rows of a MoE layer are not in this table but in the arena of moe_core.h: how many
 * there are is known only after routing.
 */
#ifndef XP_MODEL_ACTS_H
#define XP_MODEL_ACTS_H

#include "core/arena.h"
#include "model/model.h"

typedef enum xp_act_id {
    XP_ACT_INPUT = 0,   /* [T, D] residual stream that enters the layer */
    XP_ACT_INPUT_RSTD,  /* [T] fp32 */
    XP_ACT_QKV,         /* [T, (H + 2G) C] raw projections */
    XP_ACT_ATTENTION,   /* [T, H C] */
    XP_ACT_LSE,         /* [T, H] fp32 */
    XP_ACT_MID,         /* [T, D] residual stream after attention */
    XP_ACT_MID_RSTD,    /* [T] fp32 */
    XP_ACT_GATE_UP,     /* [T, 2F] dense FFN before the activation */
    XP_ACT_SCORES,      /* [T, E] fp32 */
    XP_ACT_TOPK_IDX,    /* [T, K] int32 */
    XP_ACT_TOPK_WEIGHT, /* [T, K] fp32 */
    XP_ACT_ROUTER_LSE,  /* [T] fp32, with a z-loss */
    XP_ACT_AUX_DENSITY, /* [B, E] fp32, with an auxiliary loss */
    XP_N_ACTS
} xp_act_id;

typedef struct xp_acts {
    int n_layers; /* 1 when nothing is saved for a backward pass */
    bool saved[XP_N_ACTS];
    void **data; /* [n_layers * XP_N_ACTS] host table of pointers; owned */
} xp_acts;

/** Table of pointers for these sizes, without memory yet. */
XP_NODISCARD xp_status xp_acts_create(const xp_model_args *args, xp_acts *acts);
void xp_acts_destroy(xp_acts *acts);
/** Take (or, with a NULL base, count) the memory of all layers. */
void xp_acts_carve(xp_acts *acts, const xp_model_args *args, xp_slab *slab);
/** Bytes of one activation of one layer; 0 when this model does not have it. */
size_t xp_act_bytes(const xp_model_args *args, xp_act_id id);

static inline void *xp_acts_get(const xp_acts *acts, int layer, xp_act_id id) {
    int row = layer < acts->n_layers ? layer : acts->n_layers - 1;
    return acts->data[row * XP_N_ACTS + id];
}

#endif
