/**
 * The work of a step by its parts, in FLOP and bytes, and the time below which no kernel can do it: the floor at the
 * machine's measured limits. Where predict/step_time.h says how long a step will take, this says how long it must.
 */
#ifndef XP_PREDICT_STEP_WORK_H
#define XP_PREDICT_STEP_WORK_H

#include "predict/step_time.h"

/** What a step consists of. Parts from XP_PART_OTHER on have no work: their floor is 0. */
typedef enum xp_part {
    XP_PART_ATTENTION_FORWARD,
    XP_PART_ATTENTION_BACKWARD,
    XP_PART_DENSE_FORWARD,
    XP_PART_DENSE_BACKWARD,
    XP_PART_EXPERT_FORWARD,
    XP_PART_EXPERT_DGRAD,
    XP_PART_EXPERT_WGRAD,
    XP_PART_ACTIVATION,
    XP_PART_NORMS,
    XP_PART_QK_NORM_ROPE,
    XP_PART_ROUTER,
    XP_PART_PLAN,
    XP_PART_EXCHANGE, /* dispatch, combine, and the sums over a token's experts */
    XP_PART_HEAD,
    XP_PART_CROSS_ENTROPY,
    XP_PART_EMBEDDING,
    XP_PART_OPTIMIZER,
    XP_PART_OTHER,       /* copies, sums of losses */
    XP_PART_COLLECTIVES, /* gradients, parameters, losses between ranks: what does not hide */
    XP_PART_OUTSIDE,     /* validation, checkpoint */
    XP_PART_GAPS,        /* nothing runs */
    XP_N_PARTS
} xp_part;

typedef enum xp_bound { XP_BOUND_NONE, XP_BOUND_GEMM, XP_BOUND_COPY, XP_BOUND_LINK } xp_bound;

/** Of one rank and step. Bytes are read and written once; what stays in a cache between two ops counts twice. */
typedef struct xp_part_work {
    double flops, bytes, link_bytes;
    double floor_s; /* op by op the larger of FLOP and bytes over their limits */
    xp_bound bound; /* by which most of it is bound */
} xp_part_work;

/** One rank's share of the machine, a second. */
typedef struct xp_step_limits {
    double flops;   /* dense GEMM: bf16 on a GPU, fp32 on a CPU */
    double memory;  /* bytes of a copy, read and written */
    double link;    /* bytes one way inside a node */
    double network; /* and between nodes */
    bool measured;  /* else what the data sheet promises */
} xp_step_limits;

typedef struct xp_step_work {
    xp_step_limits limits;
    xp_part_work parts[XP_N_PARTS];
} xp_step_work;

/** "attention forward", "gaps". */
const char *xp_part_name(xp_part part);
/** "GEMM", "copy", "link"; "" for XP_BOUND_NONE. */
const char *xp_bound_name(xp_bound bound);

/**
 * Parameters and errors as of xp_predict_step(). An exchange and collectives that the configuration hides beside
 * other work have the floor 0. Attention counts whole causal rows, whatever documents they hold.
 */
XP_NODISCARD xp_status xp_predict_work(const xp_config *config, const xp_mesh *layout,
                                       const xp_cluster *cluster, xp_step_work *work);

#endif
