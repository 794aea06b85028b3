/**
 * A plan's insides. "Rows" are (token, rank) pairs. As a source this rank numbers its send rows and
 * send assignments by (destination, token[, expert]); as an expert rank it numbers its recv rows and recv
 * assignments by (source, token[, expert]). Both numberings run over all rounds, and the rows of a round
 * are contiguous in them for each peer.
 */
#ifndef XP_EP_PLAN_H
#define XP_EP_PLAN_H

#include "ep/group.h"

/** hierarchical only: rows between nodes. See transport/hierarchical.c. */
typedef struct xp_ep_relay xp_ep_relay;

/** Page-locked copies of what a plan on a GPU says; lengths as there. */
typedef struct xp_ep_host_plan {
    int64_t *expert_tokens;
    int32_t *blocks, *totals, *round_assignments;
} xp_ep_host_plan;

struct xp_ep_plan {
    xp_ep_group *group;
    int slot;
    void *memory;
    xp_stream *stream; /* of the last build */
    bool valid;
    int64_t n_tokens, n_rounds;
    int64_t n_recv_rows, n_recv_assignments;

    int32_t *blocks; /* [R, block_ints] every rank's counts */
    /* Derived from them, [R + 1] each. */
    int32_t *send_row_base, *send_assignment_base; /* first send row, assignment to rank d */
    int32_t *recv_row_base, *recv_assignment_base; /* first recv row, assignment from rank s */
    int32_t *dest_row_base,
        *dest_assignment_base; /* [R] this rank's first row, assignment in destination d's numbering */
    int32_t *source_row_base,
        *source_assignment_base; /* [R] its first row, assignment to this rank in source s's numbering */

    int32_t *send_token;       /* [send rows] */
    int32_t *send_assignment;  /* [send rows + 1] first send assignment of a row */
    int32_t *assignment_entry; /* [send assignments] token * K + k */
    int32_t *token_first,
        *token_row;      /* [M + 1], [send rows]: rows of each token, ascending destination */
    int32_t *send_round; /* [max_rounds + 1, R] first send row to d in round r */
    int32_t
        *dest_slot; /* [max_rounds, R] p2p: where in d's recv_x this rank's rows of round r start */

    int32_t *recv_assignment; /* [recv rows + 1] first recv assignment of a row */
    int32_t *round_row;       /* [max_rounds + 1] first recv row of a round */
    int32_t *assignment_pos;  /* [recv assignments] assignment row within its round */
    int32_t *offsets, *gather,
        *n_recv;   /* xp_ep_view, by round: [max_rounds, L + 1], [max_rounds, P], [max_rounds] */
    float *weight; /* [max_rounds, P] */
    int64_t *expert_tokens; /* [L] */
    int32_t *
        totals; /* [4 + R] rounds, recv rows, recv assignments, refused, assignments to each rank: GPU */
    int32_t *
        round_assignments; /* [max_rounds + 1, 2 R] first send assignment to each rank, first recv assignment
                              from  each, of round r: GPU */
    xp_ep_host_plan *host; /* GPU: what of it the host has fetched */
    xp_ep_relay *relay;
};

/** Some consecutive rows or assignments. */
typedef struct xp_ep_span {
    int32_t first, n;
} xp_ep_span;

/** This rank's send rows to `dest` in a round. */
xp_ep_span xp_ep_plan_send_rows(const xp_ep_plan *plan, int dest, int64_t round);
xp_ep_span xp_ep_plan_send_assignments(const xp_ep_plan *plan, int dest, int64_t round);
/** The recv rows from `source` in a round; their place in recv_x is first - round_row[round]. */
xp_ep_span xp_ep_plan_recv_rows(const xp_ep_plan *plan, int source, int64_t round);
xp_ep_span xp_ep_plan_recv_assignments(const xp_ep_plan *plan, int source, int64_t round);

/** One call in progress on one rank. */
typedef struct xp_ep_step {
    xp_ep_group *group;
    xp_ep_plan *plan;
    xp_stream *stream;
    int64_t round;
    const char *phase; /* "plan", "dispatch", ...: for errors */
} xp_ep_step;

/** XP_EINVAL for the first rank whose block (host memory, [R, block_ints]) says that its routing is
 * refused. */
xp_status xp_ep_plan_explain(const xp_ep_group *group, const int32_t *blocks);
/** The same for one rank's error: kind, token, value. XP_OK when the kind is 0. */
xp_status xp_ep_plan_explain_rank(const xp_ep_group *group, int rank, const int32_t error[3]);

/** The work of xp_ep_plan_build once it has reached its turn on the stream. */
xp_status xp_ep_plan_run(const xp_ep_step *step, const int32_t *topk_idx, const float *topk_weight,
                         int64_t n_tokens);

#endif
