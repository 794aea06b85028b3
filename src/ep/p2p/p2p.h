/**
 * The p2p transport's windows, which its CPU and its GPU backend share. The window of every rank
 * holds, for each slot, what its peers write there: flags, counts, assignments, combine rows, and
 * (between processes) recv rows.
 *
 * A call on a slot has an epoch, the same on all ranks because all ranks make the same calls in the
 * same order. Epochs count from 1 to 2^32 - 1 and then start over; 0 is what a window starts with.
 * Flag (point, p) in this rank's window is the epoch of rank p's last call that has reached that point.
 * No rank can run two calls ahead into memory still in use, because every call waits for something of
 * every peer.
 */
#ifndef XP_EP_P2P_P2P_H
#define XP_EP_P2P_P2P_H

#include <stdatomic.h>
#include "comm/futex_event.h"
#include "ep/common/call.h"
#include "ep/common/rows.h"

/** Synchronisation points of a call. */
typedef enum p2p_point {
    P2P_COUNTS = 0,  /* the peer's counts are in my window; CPU: its assignments as well */
    P2P_ASSIGNMENTS, /* GPU: its assignments are in its own */
    P2P_STARTS,      /* where its rounds start is */
    P2P_READY,       /* the peer's rows may be written, or its expert rows read, from now on */
    P2P_DATA,        /* the peer has written mine, and has read mine */
    P2P_BUSY,        /* no epoch: non-zero while the peer uses memory of mine outside the window */
    P2P_N_POINTS
} p2p_point;

typedef struct p2p_flag {
    _Alignas(64) _Atomic uint32_t epoch; /* a cache line each: peers write side by side */
} p2p_flag;

/** Bytes at the head of a window for what waiting ranks sleep on (CPU) or poll (GPU). */
#define XP_EP_P2P_WAIT_BYTES 256
typedef union p2p_wait_words {
    xp_futex_event wake; /* CPU */
    char bytes[XP_EP_P2P_WAIT_BYTES];
} p2p_wait_words;

/** One slot of one rank's window, as this process addresses it. */
typedef struct p2p_area {
    p2p_wait_words *wait;
    p2p_flag *flags;                /* [P2P_N_POINTS, R] */
    void **recv_at;                 /* [R] threads: where rank d wants its rows, written by d */
    xp_ep_expert_rows *expert_rows; /* [R] threads: rank d's expert rows for me, written by d */
    int32_t *rank_counts;           /* [R, counts_ints] */
    int32_t *starts;                /* [R, max_rounds] */
    /* CPU: xp_ep_assignment [max_recv_assignments] for this rank, written by the others. GPU:
     * xp_ep_gpu_assignment [max_send_assignments] of this rank, which the others read. */
    void *assignments;
    float *weights;     /* [max_send_assignments] gradients of weights */
    char *combine_rows; /* [max_send_rows, D] first-level sums for this rank's tokens */
    char *recv;         /* [recv_capacity, D]; processes only */
    uint32_t
        *arrived; /* [R, arrival words] processes: epochs of the rows here, written by rank d */
    char *copies; /* [R - 1, max_tokens, D] copies from each peer; with send_copies > 1 */
} p2p_area;

typedef struct p2p_state {
    xp_window *window;
    p2p_area *areas;       /* [n_slots, R] */
    uint32_t *epochs;      /* [n_slots] */
    uint32_t *last_epochs; /* [n_slots] CPU: of the last plan; GPU: of the last call with rows */
    /* Peers can use any address of this rank: rows go straight into the caller's recv_x, and sums
     * read the callers' expert rows. */
    bool direct;
} p2p_state;

/** GPU processes tell of rows that they have written into a window by chunks of so many, of sums for
 * combine also by pieces of a row. */
#define XP_EP_P2P_CHUNK_ROWS  4
#define XP_EP_P2P_PIECE_BYTES 4096
static inline int64_t xp_ep_p2p_arrival_words(const xp_ep_shape *shape) {
    const int64_t piece = XP_EP_P2P_PIECE_BYTES;
    return (shape->max_tokens + XP_EP_P2P_CHUNK_ROWS - 1) / XP_EP_P2P_CHUNK_ROWS *
           (((int64_t)shape->row_bytes + piece - 1) / piece);
}

size_t xp_ep_p2p_group_bytes(const xp_ep_shape *shape, const xp_ep_config *config);
/** Collective: the windows of all ranks. group->transport_state. */
XP_NODISCARD xp_status xp_ep_p2p_windows_create(xp_ep_group *group);
void xp_ep_p2p_windows_destroy(xp_ep_group *group);

static inline p2p_area *xp_ep_p2p_area(const xp_ep_call *call, int rank) {
    const p2p_state *state = call->group->transport_state;
    return state->areas + call->plan->slot * call->group->shape.n_ranks + rank;
}

/** Where this rank's copies go in the window of `peer`. */
static inline char *xp_ep_p2p_copies(const xp_ep_call *call, int peer) {
    const xp_ep_shape *s = &call->group->shape;
    const int me = call->group->rank, at = me < peer ? me : me - 1;
    return xp_ep_p2p_area(call, peer)->copies + (size_t)at * (size_t)s->max_tokens * s->row_bytes;
}

static inline uint32_t xp_ep_p2p_next_epoch(uint32_t epoch) {
    return epoch == UINT32_MAX ? 1 : epoch + 1;
}
/** Begin a call on its slot: the next epoch. */
void xp_ep_p2p_begin(const xp_ep_call *call);
uint32_t xp_ep_p2p_epoch(const xp_ep_call *call);
/** "counts", ... */
const char *xp_ep_p2p_point_name(p2p_point point);

#endif
