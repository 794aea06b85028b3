/** The core's insides, shared by moe_core.c (memory), moe_route.c (router),
 * moe_experts.c (a job) and moe_pass.c (all jobs). */
#ifndef XP_MODEL_MOE_CORE_INTERNAL_H
#define XP_MODEL_MOE_CORE_INTERNAL_H

#include "model/moe_core.h"

/** Buffers of a job. Two jobs are in flight with XP_OVERLAP_HALVES, so there are two sets. */
typedef struct xp_moe_slot {
    void *received[2]; /* [recv_capacity, D]: rows of d_out in [turn], of x in the other */
    void *rows;        /* [assignment_capacity, D] expert outputs, or their input gradients */
    float *dp;         /* [assignment_capacity] */
    xp_event *arrived, *ready, *spent,
        *sent; /* dispatched; rows computed; inputs no longer read; combined */
} xp_moe_slot;

/** The gradient of w2 of a pass's last job, to be computed later. */
typedef struct xp_moe_deferred {
    bool pending;
    xp_moe_pass pass; /* copied */
    int64_t job;
    int turn;
} xp_moe_deferred;

/** Saved rows of a step, handed out front to back. */
typedef struct xp_moe_arena {
    char *base;
    int64_t row_bytes, n_rows, used;
} xp_moe_arena;

struct xp_moe_core {
    xp_moe_core_args args;
    const xp_ops *ops;
    xp_ep_group *group;
    xp_ep_sizes sizes;
    int n_local; /* L */
    int n_parts;
    int n_slots;
    bool is_null;           /* only counting */
    bool fuses_silu;        /* experts' activation in one op with their GEMMs */
    xp_stream *comm_stream; /* of the exchange; NULL: the compute stream */
    xp_event *routed;
    xp_moe_deferred deferred;
    int turn; /* which of a slot's `received` has d_out: the other one may wait for w2's gradient */
    const xp_moe_saved *begun; /* the layer whose backward has begun: its d_out is on its way */
    void *plan_bytes;          /* null device: what plans would hold */
    void *comm_bytes;          /* null device: what an a2a group's communicators would */
    void *activations, *workspace;
    xp_moe_slot slots[2];
    xp_moe_arena gate_up_arena, recv_arena;
    int64_t grads_at; /* args.grads in the gate_up arena, bytes; -1: not there */
    xp_moe_recomputed recomputed;
    void *
        gate_up; /* [assignment_capacity, 2F] of a layer that has not saved them; NULL when all have */
    void *h;     /* [assignment_capacity, F] */
    float *d_topk_weight; /* [T, K] */
    float *d_logits;      /* [T, E] */
    void *router_scratch; /* bf16 rows: of router_linear_backward */
    int32_t *forced;      /* [T, K] */
};

xp_status xp_moe_route(xp_moe_core *core, const xp_moe_pass *pass, xp_stream *stream);
/** dlogits -> gate gradient; adds the router's part to dx. */
xp_status xp_moe_route_backward(xp_moe_core *core, const xp_moe_pass *pass, xp_stream *stream);
/** First token of a part (part n_parts: T). */
int64_t xp_moe_part_begin(const xp_moe_core *core, int64_t n_tokens, int part);

#endif
