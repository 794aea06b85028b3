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

/** Seconds of a layer's exchange, each op on its own, and of the GEMMs that it can run beside, with the SMs that they
 * leave to it; these are 0 where nothing runs beside it. */
typedef struct xp_exchange_layer {
    double dispatch_s, send_s, recv_s; /* forward; send and recv: of combine */
    double combine_backward_s, dispatch_backward_s;
    double again_s;                 /* dispatch in the backward pass, of rows that were not kept */
    double w13_s, w2_s;             /* forward, all rows: own rows are one of R parts of them */
    double w2_wgrad_s, w13_wgrad_s; /* w2_wgrad_s: with wqkv's, of the layer above */
} xp_exchange_layer;

/** Seconds of one rank's step, by what they are spent on; bytes that the rank sends in a step. */
typedef struct xp_step_prediction {
    double dense_s;     /* projections, dense feed-forward */
    double attention_s; /* forward and backward */
    double experts_s;   /* grouped GEMMs, slower beside an exchange */
    double memory_s;    /* norms, RoPE, activations, sums: what the memory's rate bounds */
    double head_s;      /* logits, loss and their gradients */
    double exchange_s;  /* dispatch and combine, forward and backward: what does not hide */
    double gradients_s; /* reduced and gathered: what does not hide, and what others lose */
    double optimizer_s;
    double launch_s; /* fixed costs of kernels, and waiting for the host where it cannot keep up */
    double step_s;   /* the sum */
    /* Of these, and what hides. */
    double exposed_forward_s, exposed_backward_s; /* exchange_s: with waits for the slower rank */
    double hidden_exchange_s;
    double slowed_experts_s; /* of experts_s: what GEMMs lose to the exchange beside them */
    xp_exchange_layer exchange_layer;
    int ep_size;
    double reduced_s, gathered_s; /* gradients and parameters, alone */
    double exposed_reduced_s,
        exposed_gathered_s;           /* of gradients_s, what waits for them; the rest of it
                                                     is what other work loses beside them */
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
