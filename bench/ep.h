/** Dispatch and combine beside a copy on the same threads or GPU, and beside the link between the ranks, in the same run. */
#ifndef XP_BENCH_EP_H
#define XP_BENCH_EP_H

#include <stdbool.h>
#include "expar/ep.h"
#include "ranks.h"

typedef enum xp_bench_routing {
    XP_BENCH_RANDOM = 0, /* K different experts, all equally likely */
    XP_BENCH_SKEWED,     /* K different experts, expert e with weight 1 / (e + 1) */
    XP_BENCH_MODULO,     /* forced balance: (t K + k) % E */
    XP_BENCH_SPREAD,     /* forced balance over distinct ranks */
    XP_BENCH_N_ROUTINGS
} xp_bench_routing;
const char *xp_bench_routing_name(xp_bench_routing routing);

#define XP_BENCH_EP_MAX_TRANSPORTS 3

typedef enum xp_bench_ep_op {
    XP_BENCH_EP_DISPATCH = 0,
    XP_BENCH_EP_COMBINE,
    XP_BENCH_EP_COMBINE_BACKWARD, /* a dispatch of the gradients */
    XP_BENCH_EP_DISPATCH_BACKWARD,
    XP_BENCH_EP_N_OPS
} xp_bench_ep_op;

/** One shape; its transports are measured in turns. */
typedef struct xp_bench_ep_case {
    int n_ranks;
    int64_t n_tokens, dim; /* T of each rank, D */
    int top_k, n_experts;
    xp_dtype dtype;
    xp_bench_routing routing;
    double capacity_factor;
    int n_transports;
    xp_ep_transport transports[XP_BENCH_EP_MAX_TRANSPORTS];
    double seconds; /* how long each transport is repeated, at least */
    bool cuda; /* each rank on its GPU (xp_gpu_choose), and times are the device's; else the CPU */
    bool backward;          /* the two backward ops as well */
    bool host_synchronized; /* xp_ep_config.host_synchronized */
    int num_sms;            /* xp_ep_config.num_sms */
} xp_bench_ep_case;

/** [T, K] ids of a rank, the same in every run. */
XP_NODISCARD xp_status xp_bench_fill_routing(const xp_bench_ep_case *c, int rank, int32_t *ids);

/** Sums over all ranks; times of the slowest rank, medians. */
typedef struct xp_bench_ep_row {
    bool failed; /* with the reason; nothing else is set then */
    char error[512];
    int64_t n_rounds;
    double plan_s;                  /* from routing in device memory to a plan */
    double op_s[XP_BENCH_EP_N_OPS]; /* 0: not measured */
    double memcpy_bytes_per_s;      /* bytes read plus bytes written */
    /* xp_bench_link's; 0: there is none to measure */
    double link_both_bytes_per_s, link_one_bytes_per_s;
    /* Of one op, what the busiest rank sends to or receives from others, whichever is more: over p2p a row for each token and
     * rank, over a2a a row for each assignment. The other ops carry the same, in one direction or the other. */
    double link_bytes;
    double moved_bytes; /* rows that dispatch delivers plus rows that combine returns, each once */
    /* Bytes read plus bytes written that the contract asks for: dispatch reads and writes each
     * delivered row once; combine reads the expert rows and writes the tokens. Where a rank cannot
     * read another's expert rows (processes, GPUs, several rounds) it also writes and reads one sum
     * for each row that comes from another rank. */
    double dispatch_bytes, combine_bytes;
    int n_samples;
} xp_bench_ep_row;

/**
 * A group of one rank sends nothing whatever its transport: ask for one transport then.
 * @param[out] rows  [n_transports]; of rank 0's process
 */
XP_NODISCARD xp_status xp_bench_ep(const xp_bench_host *host, const xp_bench_ep_case *c,
                                   xp_bench_ep_row *rows);

#endif
