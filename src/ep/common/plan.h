/**
 * A plan's arrays. A row is a (token, rank) pair. As a source, this rank numbers its send rows and
 * send assignments by (destination, token[, expert]); as an expert rank it numbers its recv rows and
 * recv assignments by (source, token[, expert]). Both numberings run over all rounds, and for each
 * peer the rows of a round are contiguous in them.
 */
#ifndef XP_EP_COMMON_PLAN_H
#define XP_EP_COMMON_PLAN_H

#include "ep/common/assignment.h"
#include "ep/common/group.h"

/** hierarchical only: the rows that cross between nodes. See hierarchical/forwarding.h. */
typedef struct xp_ep_forwarding xp_ep_forwarding;

/** GPU: page-locked copies of what the host reads of a plan; lengths as in xp_ep_plan. */
typedef struct xp_ep_host_plan {
    int64_t *expert_tokens;
    int32_t *rank_counts, *totals, *round_assignments;
} xp_ep_host_plan;

struct xp_ep_plan {
    xp_ep_group *group;
    int slot;
    void *memory;
    xp_stream *stream; /* of the last build */
    bool valid;        /* the last build succeeded, as far as the host knows */
    int64_t n_tokens, n_rounds;
    bool host_knows_rounds; /* GPU: the last build has read n_rounds; else it is max_rounds */
    int64_t n_recv_rows, n_recv_assignments;

    int32_t *rank_counts; /* [R, counts_ints] every rank's counts */
    /* Prefix sums of the counts, [R + 1]: */
    int32_t *send_row_base, *send_assignment_base; /* first send row, assignment to rank d */
    int32_t *recv_row_base, *recv_assignment_base; /* first recv row, assignment from rank s */
    /* and [R]: */
    int32_t *dest_row_base, *dest_assignment_base;     /* this rank's first row, assignment in
                                                          destination d's numbering */
    int32_t *source_row_base, *source_assignment_base; /* first row, assignment to this rank in
                                                          source s's numbering */

    int32_t *send_token;              /* [send rows] */
    int32_t *send_assignment;         /* [send rows + 1] first send assignment of a row */
    int32_t *assignment_entry;        /* [send assignments] token * K + k */
    int32_t *token_first, *token_row; /* [M + 1], [send rows]: rows of each token, ascending
                                          destination */
    int32_t *send_round;              /* [max_rounds + 1, R] first send row to d in round r */
    int32_t *dest_slot;               /* [max_rounds, R] p2p: where in d's recv_x this rank's rows
                                          of round r start */

    int32_t *recv_assignment; /* [recv rows + 1] first recv assignment of a row */
    int32_t *round_row;       /* [max_rounds + 1] first recv row of a round */
    int32_t *assignment_pos;  /* [recv assignments] assignment row within its round */
    /* xp_ep_view by round: */
    int32_t *offsets;       /* [max_rounds, L + 1] */
    int32_t *gather;        /* [max_rounds, P] */
    float *weight;          /* [max_rounds, P] */
    int32_t *n_recv;        /* [max_rounds] */
    int32_t *own_rows;      /* [max_rounds, L, 2] */
    int32_t *own_token;     /* [max_rounds, P] */
    int64_t *expert_tokens; /* [L] */
    /* GPU only: */
    int32_t *totals; /* [4 + R] rounds, recv rows, recv assignments, refused; assignments to each
                        rank */
    int32_t *round_assignments; /* [max_rounds + 1, 2 R] of round r: first send assignment to each
                                   rank, first recv assignment from each */
    xp_ep_host_plan *host;
    xp_ep_forwarding *forwarding;
};

/** What a plan is built from; device memory. */
typedef struct xp_ep_routing {
    const int32_t *topk_idx;  /* [T, K] */
    const float *topk_weight; /* [T, K]; NULL: 1 */
    int64_t n_tokens;         /* T */
} xp_ep_routing;

/** Device bytes of a plan's arrays above, without `forwarding`. */
size_t xp_ep_plan_bytes(const xp_ep_shape *shape, const xp_ep_config *config);
/** Reserve and zero them, and lay the arrays out. */
XP_NODISCARD xp_status xp_ep_plan_reserve(xp_ep_plan *plan);
void xp_ep_plan_release(xp_ep_plan *plan);

/** Consecutive rows or assignments. */
typedef struct xp_ep_span {
    int32_t first, n;
} xp_ep_span;

/* Spans of a plan in host memory. */

/** This rank's send rows to `dest` in a round. */
xp_ep_span xp_ep_plan_send_rows(const xp_ep_plan *plan, int dest, int64_t round);
xp_ep_span xp_ep_plan_send_assignments(const xp_ep_plan *plan, int dest, int64_t round);
/** The recv rows from `source` in a round. In recv_x they start at first - round_row[round]. */
xp_ep_span xp_ep_plan_recv_rows(const xp_ep_plan *plan, int source, int64_t round);
xp_ep_span xp_ep_plan_recv_assignments(const xp_ep_plan *plan, int source, int64_t round);

/* Counts of all ranks in host memory, [R, counts_ints]. */

int32_t xp_ep_counts_assignments(const xp_ep_shape *shape, const int32_t *rank_counts, int source,
                                 int dest);
int32_t xp_ep_counts_rows(const xp_ep_shape *shape, const int32_t *rank_counts, int source,
                          int dest);
/** XP_EINVAL for the first rank whose counts carry a routing error: it decides the error of all. */
XP_NODISCARD xp_status xp_ep_counts_check(const xp_ep_group *group, const int32_t *rank_counts);
/** The same for one rank's error (kind, token, value). XP_OK when the kind is 0. */
XP_NODISCARD xp_status xp_ep_routing_explain(const xp_ep_group *group, int rank,
                                             const int32_t error[3]);

#endif
