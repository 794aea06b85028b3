/**
 * How long a step will take on hardware that need not be here: work over its limits and the shares of them that
 * expar reaches there, and fixed costs of kernels and launches (predict/hardware.h).
 */
#ifndef XP_PREDICT_STEP_TIME_H
#define XP_PREDICT_STEP_TIME_H

#include "config/config.h"
#include "expar/ep.h"
#include "parallel/mesh.h"
#include "predict/hardware.h"

typedef struct xp_cluster {
    const xp_hardware *hardware;
    int gpus_per_node;   /* ranks of a node; of a CPU they share its cores */
    double network_gbps; /* between nodes, of each GPU, GB/s one way */
    double latency_us;   /* between nodes */
} xp_cluster;

/** Seconds of one rank's step, by what they are spent on; bytes that the rank sends in a step. */
typedef struct xp_step_prediction {
    double dense_s;     /* projections, dense feed-forward */
    double attention_s; /* forward and backward */
    double experts_s;   /* grouped GEMMs */
    double memory_s;    /* norms, RoPE, activations, sums: what the memory's rate bounds */
    double head_s;      /* logits, loss and their gradients */
    double exchange_s;  /* dispatch and combine, forward and backward: what does not hide */
    double gradients_s; /* reduced and gathered: what does not hide */
    double optimizer_s;
    double launch_s; /* fixed costs of kernels, and waiting for the host where it cannot keep up */
    double step_s;   /* the sum */
    double hidden_exchange_s;         /* beside the other half of the microbatch, with overlap */
    double host_s;                    /* that the host needs to enqueue a step */
    double link_bytes, network_bytes; /* of the exchange: inside a node, between nodes */
    double gradient_bytes;            /* reduced and gathered */
    double tokens;                    /* of one rank's step */
    int64_t n_passes;                 /* microbatches of a step */
    xp_ep_transport transport;        /* XP_EP_AUTO: nothing is exchanged */
    double flops;                     /* as the run prints them */
    bool uses_graphs;                 /* passes are launched as CUDA graphs */
} xp_step_prediction;

/**
 * @param layout  from xp_mesh_layout(), ep_nodes set
 * @return XP_OK; XP_ECONFIG as the run itself would give; XP_ENOTSUP for float32 on a GPU, whose kernels were not
 *         measured
 */
XP_NODISCARD xp_status xp_predict_step(const xp_config *config, const xp_mesh *layout,
                                       const xp_cluster *cluster, xp_step_prediction *prediction);

#endif
