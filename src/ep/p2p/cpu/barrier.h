/** Flags and waits of the p2p transport on a CPU: a futex event in each window wakes its owner. */
#ifndef XP_EP_P2P_CPU_BARRIER_H
#define XP_EP_P2P_CPU_BARRIER_H

#include "ep/p2p/p2p.h"

/** The i-th peer of this rank, itself last: the order starts behind this rank, so that not every
 * rank turns to rank 0 first. */
int xp_ep_p2p_peer(const xp_ep_call *call, int i);
/** Set `peer`'s flag: this rank has reached `point` of the current call. Release: who sees the flag
 * sees all writes before it. */
void xp_ep_p2p_signal(const xp_ep_call *call, int peer, p2p_point point);
/** Wait until `peer` has. Acquire. @return XP_ECOMM, sticky, naming the peer when it does not come,
 * or another rank's failure */
XP_NODISCARD xp_status xp_ep_p2p_wait(const xp_ep_call *call, int peer, p2p_point point);
void xp_ep_p2p_signal_all(const xp_ep_call *call, p2p_point point);
XP_NODISCARD xp_status xp_ep_p2p_wait_all(const xp_ep_call *call, p2p_point point);
/** Signal all, then wait for all. */
XP_NODISCARD xp_status xp_ep_p2p_barrier(const xp_ep_call *call, p2p_point point);

/** Before using a peer's memory outside its window. XP_ECOMM: the group has failed and the memory
 * may be gone. */
XP_NODISCARD xp_status xp_ep_p2p_lock(const xp_ep_call *call, int peer);
void xp_ep_p2p_unlock(const xp_ep_call *call, int peer);
/** The same for all peers. */
XP_NODISCARD xp_status xp_ep_p2p_lock_all(const xp_ep_call *call);
void xp_ep_p2p_unlock_all(const xp_ep_call *call);
/** After a failure: return when no peer uses this rank's memory any more. */
void xp_ep_p2p_quiesce(const xp_ep_call *call);

#endif
