/** One rank of xp_bench_layer(): its memory, and a pass of each setting. */
#ifndef XP_BENCH_LAYER_RANK_H
#define XP_BENCH_LAYER_RANK_H

#include "device.h"
#include "layer.h"

typedef struct xp_layer_lane {
    xp_moe_core *core;
    xp_moe_saved saved;
    void *out, *dx;
} xp_layer_lane;

typedef struct xp_layer_rank {
    const xp_bench_layer_case *c;
    xp_bench_rank *rank;
    xp_bench_device d;
    xp_comm *ep;
    xp_moe_weights weights;
    void *x, *d_out;
    int32_t *targets; /* zeros: every token counts in the extra losses */
    xp_layer_lane lanes[2];
} xp_layer_rank;

/** Everything of the rank but its device. Collective, unless the device only counts. */
XP_NODISCARD xp_status xp_layer_reserve(xp_layer_rank *r);
/** Values in what was reserved. */
XP_NODISCARD xp_status xp_layer_fill(xp_layer_rank *r);
/** Collective. */
void xp_layer_release(xp_layer_rank *r);
/** Queue forward and backward. */
XP_NODISCARD xp_status xp_layer_pass(xp_layer_rank *r, xp_layer_lane *lane);

#endif
