/** Inside src/predict: what a step's time is made of. */
#ifndef XP_PREDICT_STEP_PARTS_H
#define XP_PREDICT_STEP_PARTS_H

#include "model/model.h"
#include "predict/step_time.h"

/** One rank's share of the hardware, per second, at what expar reaches. */
typedef struct xp_rates {
    double flops;  /* limit; GEMMs take their shares of it */
    double memory; /* bytes read and written */
    /* Bytes one way. link: of p2p, forward and backward. */
    double link, link_backward, all_to_all, collectives, network;
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
    bool activates_in_gemms;   /* the experts' activation, in the epilogues of their GEMMs */
    int n_parts;               /* of a microbatch: 2 with halves */
    bool hides_exchange;       /* beside GEMMs: forward of own rows, backward weight gradients */
    int row_parts;             /* in which rows of other ranks come and go beside GEMMs */
    int overlap_sms, send_sms; /* that an exchange beside GEMMs takes from them; combine's send */
    xp_forced_mode forced;
    xp_ep_transport transport;
    int ep_size, ep_nodes;
    double send_copies; /* of each row to another rank */
    double latency_s;   /* between nodes */
} xp_sizes;

/** Seconds of a layer in one pass: what hides exchanges and collectives. */
typedef struct xp_layer_times {
    double forward, backward; /* all of it: recomputation, and from xp_predict_exchange() on what it
                                 adds */
    double w13, w2;           /* grouped GEMMs forward, all rows */
    double w13_wgrad, w2_wgrad, wqkv_wgrad; /* weight gradients */
    double head;                            /* of a pass, forward and backward */
} xp_layer_times;

/** Errors as of xp_predict_step(). */
XP_NODISCARD xp_status xp_predict_sizes(const xp_config *config, const xp_mesh *layout,
                                        const xp_cluster *cluster, xp_sizes *sizes);
/** Forward, backward, recomputation of all layers, and the head. */
void xp_predict_compute(const xp_sizes *s, xp_layer_times *layer, xp_step_prediction *p);
/** Whether the sums of a token's K rows are part of the exchange (else memory-bound ops). */
bool xp_predict_exchange_sums(const xp_sizes *s);
/** Fixed costs of the step's kernels and launches; `in_graphs`: of passes launched as CUDA graphs. */
void xp_predict_launches(const xp_sizes *s, bool in_graphs, xp_step_prediction *p);
/** Dispatch and combine, and the GEMMs that they slow down; after the compute. */
void xp_predict_exchange(const xp_sizes *s, xp_layer_times *layer, xp_step_prediction *p);
/** The update, gradients and parameters between ranks; after the exchange. */
void xp_predict_update(const xp_sizes *s, const xp_mesh *mesh, const xp_cluster *cluster,
                       const xp_layer_times *layer, xp_step_prediction *p);

#endif
