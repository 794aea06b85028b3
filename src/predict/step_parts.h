/** Inside src/predict: what a step's time is made of. */
#ifndef XP_PREDICT_STEP_PARTS_H
#define XP_PREDICT_STEP_PARTS_H

#include "model/model.h"
#include "predict/step_time.h"

/** One rank's share of the hardware, per second, at what expar reaches. */
typedef struct xp_rates {
    double flops;                     /* limit; GEMMs take their shares of it */
    double memory;                    /* bytes read and written */
    double link, all_to_all, network; /* bytes one way */
} xp_rates;

typedef struct xp_sizes {
    xp_arch arch;
    const xp_hardware *hardware;
    xp_rates rates;
    double tokens; /* of one pass of a rank */
    double seq_len;
    int64_t n_passes;
    double element;        /* bytes of an activation or parameter */
    double gradient_bytes; /* an element */
    xp_recompute recompute;
    bool is_moe, saves_recv;
    int n_parts;         /* of a microbatch: 2 with halves */
    bool hides_exchange; /* beside GEMMs: forward of own rows, backward weight gradients */
    xp_forced_mode forced;
    xp_ep_transport transport;
    int ep_size, ep_nodes;
    double latency_s; /* between nodes */
} xp_sizes;

/** Errors as of xp_predict_step(). */
XP_NODISCARD xp_status xp_predict_sizes(const xp_config *config, const xp_mesh *layout,
                                        const xp_cluster *cluster, xp_sizes *sizes);
/** Forward, backward, recomputation of all layers, and the head. */
void xp_predict_compute(const xp_sizes *s, xp_step_prediction *p);
/** Fixed costs of the step's kernels and launches; `in_graphs`: of passes launched as CUDA graphs. */
void xp_predict_launches(const xp_sizes *s, bool in_graphs, xp_step_prediction *p);
/** Dispatch and combine; after the compute. */
void xp_predict_exchange(const xp_sizes *s, xp_step_prediction *p);
/** The update, gradients between ranks; after the compute. */
void xp_predict_update(const xp_sizes *s, const xp_mesh *mesh, const xp_cluster *cluster,
                       xp_step_prediction *p);

#endif
