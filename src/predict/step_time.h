/**
 * How long a step will take on GPUs that need not be here: work over the GPU's limits and the
 * shares of them that expar's kernels reach.
 *
 * The shares were measured on an H100 (docs/benchmarks.md, "Where a step's time goes"); on a GPU
 * that was not measured they are assumed. Nothing that is beside other work in the run is counted
 * twice: gradient reductions hide behind half of the backward pass, an exchange hides behind
 * nothing (on two GPUs expert_parallel_overlap was measured to cost more than it hid).
 */
#ifndef XP_PREDICT_STEP_TIME_H
#define XP_PREDICT_STEP_TIME_H

#include "config/config.h"
#include "expar/ep.h"
#include "parallel/mesh.h"
#include "predict/gpus.h"

typedef struct xp_cluster {
    const xp_gpu *gpu;
    int gpus_per_node;
    double network_gbps; /* between nodes, of each GPU, GB/s one way */
} xp_cluster;

/** Seconds of one rank's step, by what they are spent on; bytes that the rank sends in a step. */
typedef struct xp_step_prediction {
    double dense_s;     /* projections, dense feed-forward */
    double attention_s; /* forward and backward */
    double experts_s;   /* grouped GEMMs */
    double memory_s;    /* norms, RoPE, activations, sums: what the GPU's memory bounds */
    double head_s;      /* logits, loss and their gradients */
    double exchange_s;  /* dispatch and combine, forward and backward */
    double gradients_s; /* reduced and gathered, what does not hide */
    double optimizer_s;
    double step_s;                    /* the sum */
    double link_bytes, network_bytes; /* of the exchange: inside a node, between nodes */
    double gradient_bytes;            /* reduced and gathered */
    double tokens;                    /* of one rank's step */
    int64_t n_passes;                 /* microbatches of a step */
    xp_ep_transport transport;        /* XP_EP_AUTO: nothing is exchanged */
    double flops;                     /* as the run prints them */
} xp_step_prediction;

/**
 * @param layout  from xp_mesh_layout(), ep_nodes set
 * @return XP_OK; XP_ECONFIG as the run itself would give; XP_ENOTSUP for float32, whose kernels
 *         were not measured
 */
XP_NODISCARD xp_status xp_predict_step(const xp_config *config, const xp_mesh *layout,
                                       const xp_cluster *cluster, xp_step_prediction *prediction);

#endif
