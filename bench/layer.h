/** Two settings of expert parallelism on one MoE layer, forward and backward, in turns. */
#ifndef XP_BENCH_LAYER_H
#define XP_BENCH_LAYER_H

#include "model/moe_core.h"
#include "ranks.h"
#include "samples.h"

/** What a run may choose. */
typedef struct xp_bench_setting {
    xp_ep_transport transport;
    int num_sms;
    int64_t overlap; /* see xp_overlap_choose() */
    bool save_recv;
    double overlap_split;
} xp_bench_setting;

typedef struct xp_bench_layer_case {
    int n_ranks, ep_size; /* ep_size > 1 divides n_ranks: all groups work at once */
    bool cuda;
    int64_t n_tokens; /* T of each rank */
    /* Sizes, routing and what is saved; settings[] decides about the rest. */
    xp_moe_core_args model;
    xp_bench_setting settings[2];
    double seconds; /* pairs are measured for so long, after the warm-up, */
    double precise; /* or when the ratio's median is known this well; at least MIN_PAIRS pairs */
    /* rank 0; NULL: none. @param share  of `seconds` */
    void (*progress)(void *context, double share);
    void *context;
} xp_bench_layer_case;

#define XP_BENCH_LAYER_MIN_PAIRS 8

/** Of rank 0's process. */
typedef struct xp_bench_layer_result {
    xp_bench_samples s[2];        /* a pass of the slowest rank */
    xp_bench_samples ratio;       /* s[1] / s[0], pair by pair */
    xp_ep_transport transport[2]; /* after AUTO has been resolved */
    bool same_bits;               /* out and dx of both settings, on all ranks */
} xp_bench_layer_result;

XP_NODISCARD xp_status xp_bench_layer(const xp_bench_host *host, const xp_bench_layer_case *c,
                                      xp_bench_layer_result *result);
/** Device memory of a rank for this case, counted on the null device. */
XP_NODISCARD xp_status xp_bench_layer_bytes(const xp_bench_layer_case *c, int64_t *n_bytes);

#endif
