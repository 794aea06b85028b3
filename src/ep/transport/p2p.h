/**
 * The p2p transport's memory and signals. Every rank's window holds, for each slot, what its peers
 * write there: flags, their counts, their assignments, rows that come home, and (between processes) rows
 * that arrive.
 *
 * A call on a slot has an epoch, the same on all ranks because all make the same calls in the same
 * order. A flag of rank p in my window is the epoch of p's last call that reached that point.
 * Nobody may run two calls ahead into memory still in use, because every call waits for something
 * of every peer.
 */
#ifndef XP_EP_TRANSPORT_P2P_H
#define XP_EP_TRANSPORT_P2P_H

#include "comm/flag.h"
#include "ep/transport/transport.h"

typedef enum p2p_point {
    P2P_COUNTS = 0,  /* the peer's block is in my window */
    P2P_ASSIGNMENTS, /* its assignments are */
    P2P_STARTS,      /* where its rounds start is */
    P2P_READY,       /* the peer's rows may be written, or its expert rows read, now */
    P2P_DATA,        /* the peer has written mine, and read mine */
    P2P_BUSY, /* not an epoch: 1 while the peer uses memory of mine that is not the window's */
    P2P_N_POINTS
} p2p_point;

typedef struct p2p_flag {
    _Alignas(64) _Atomic uint32_t epoch; /* a line each: peers write side by side */
} p2p_flag;

/** One slot of one rank's window, as this process addresses it. */
typedef struct p2p_area {
    xp_bell *bell;
    p2p_flag *flags;               /* [P2P_N_POINTS, R] */
    void **recv_at;                /* [R] threads: where rank d wants its rows, written by d */
    xp_ep_expert_rows *near;       /* [R] threads: rank d's expert rows for me, written by d */
    int32_t *blocks;               /* [R, block_ints] */
    int32_t *starts;               /* [R, max_rounds] */
    xp_ep_assignment *assignments; /* [max_recv_assignments] */
    float *weights; /* [max_send_assignments] gradients of weights on their way home */
    char *home;     /* [max_send_rows, D] first-level sums on their way home */
    char *recv;     /* [recv_capacity, D]; processes only */
} p2p_area;

typedef struct p2p_state {
    xp_window *window;
    p2p_area *areas;  /* [n_slots, R] */
    uint32_t *epochs; /* [n_slots] */
    bool direct;      /* peers can use any address of mine: rows go straight into the caller's
                         recv_x, and sums read the callers' expert rows */
} p2p_state;

/** "counts", ... */
const char *xp_ep_p2p_point_name(p2p_point point);
p2p_area *xp_ep_p2p_area(const xp_ep_step *step, int rank);
/** A new call on this step's slot. */
void xp_ep_p2p_begin(const xp_ep_step *step);
/** Tell `peer` that this rank has reached `point` of the current call; all its writes before are
 * visible to whom sees it. */
void xp_ep_p2p_post(const xp_ep_step *step, int peer, p2p_point point);
/** Wait until `peer` has. @return XP_ECOMM, sticky, naming the peer when it does not come, or
 * another rank's failure */
XP_NODISCARD xp_status xp_ep_p2p_wait(const xp_ep_step *step, int peer, p2p_point point);
/** Before using a peer's own memory; XP_ECOMM when the group has failed and the memory may
 * be gone. */
XP_NODISCARD xp_status xp_ep_p2p_lock(const xp_ep_step *step, int peer);
void xp_ep_p2p_unlock(const xp_ep_step *step, int peer);
/** After a failure: return when no peer uses this rank's memory any more. */
void xp_ep_p2p_quiesce(const xp_ep_step *step);

#endif
