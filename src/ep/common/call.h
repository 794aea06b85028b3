/** One call in progress on one rank, and the checks that all backends make in stream order. */
#ifndef XP_EP_COMMON_CALL_H
#define XP_EP_COMMON_CALL_H

#include "ep/common/plan.h"

typedef struct xp_ep_call {
    xp_ep_group *group;
    xp_ep_plan *plan;
    xp_stream *stream;
    int64_t round;
    int64_t n_tokens;  /* rows of the caller's token tensor; must be the plan's T */
    const char *phase; /* "plan", "dispatch", ...: for errors and traces; static */
} xp_ep_call;

/** Arguments of combine. dispatch_backward is a combine with the gradients of the weights. */
typedef struct xp_ep_combine_args {
    const void *y;         /* [P, D] expert-major rows of this round */
    const float *d_weight; /* [P] or NULL */
    void *out;             /* [T, D] */
    float *d_topk_weight;  /* [T, K] or NULL */
} xp_ep_combine_args;

/** The slot's scratch: counts by tile. */
int32_t *xp_ep_call_tile_counts(const xp_ep_call *call);
/** In the slot's scratch behind them: this rank's counts, [counts_ints]. */
int32_t *xp_ep_call_own_counts(const xp_ep_call *call);

/** This round has no rows on any rank: nothing is exchanged. */
static inline bool xp_ep_call_is_empty(const xp_ep_call *call) {
    return call->round >= call->plan->n_rounds;
}
/** The plan is built, and for as many tokens as the caller's tensor has rows. */
static inline bool xp_ep_call_fits_plan(const xp_ep_call *call) {
    return call->plan->valid && call->n_tokens == call->plan->n_tokens;
}
/** @return XP_OK; XP_EINVAL that says why the plan does not fit. Other ranks may accept the call. */
XP_NODISCARD xp_status xp_ep_call_check_plan(const xp_ep_call *call);
/**
 * The rounds of a sum follow each other: rows of earlier rounds wait in the slot for the later ones,
 * and another sum in between would overwrite them. The same on every rank.
 * @return XP_EINVAL when this round does not continue the slot's open sum
 */
XP_NODISCARD xp_status xp_ep_call_check_order(const xp_ep_call *call);

#endif
