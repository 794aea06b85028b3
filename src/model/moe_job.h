/** One job of a MoE layer's pass: moe_experts.c computes it, moe_pass.c puts jobs in order. */
#ifndef XP_MODEL_MOE_JOB_H
#define XP_MODEL_MOE_JOB_H

#include "model/moe_core_internal.h"

/** One (part, round) of a pass. */
typedef struct xp_moe_job {
    xp_moe_core *core;
    const xp_moe_pass *pass;
    xp_moe_part *part;
    xp_moe_slot *slot;
    xp_stream *compute, *comm;
    int64_t begin, n_tokens; /* the part's tokens */
    int64_t index;           /* in the pass */
    int64_t round;
    int turn;      /* which of slot->received has d_out */
    int spare_sms; /* that the GEMMs beside the exchange leave to it */
    int send_sms;  /* the same for combine_send */
    bool first;    /* of the pass: weight gradients start here */
    bool last;     /* of the pass */
} xp_moe_job;

/** What a job queues, in this order but for `weights`. */
typedef struct xp_moe_phases {
    xp_status (*arrive)(const xp_moe_job *j);
    xp_status (*experts)(const xp_moe_job *j);
    xp_status (*leave)(const xp_moe_job *j);
    xp_status (*weights)(const xp_moe_job *j); /* what may run beside leave(); NULL: nothing */
    /* Of one part: the exchange of later rounds has a stream of its own, too. Forward has nothing to
     * run beside it. */
    bool all_rounds_beside;
} xp_moe_phases;

extern const xp_moe_phases xp_moe_forward_phases, xp_moe_backward_phases;

/** The first exchange of a job's backward: pass.d_out to the ranks of its experts. */
XP_NODISCARD xp_status xp_moe_send_d_out(const xp_moe_job *job);
/** Gradient of w2, while core.h and d_recv are the job's. */
XP_NODISCARD xp_status xp_moe_w2_gradient(const xp_moe_job *job);

#endif
