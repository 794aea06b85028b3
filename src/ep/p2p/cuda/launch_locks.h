/**
 * Rank threads queue kernels that write into each other's windows, and a rank's host may be far
 * ahead of its GPU. Before a rank of a failed group frees its window it must know that nobody queues
 * such kernels any more: every rank launches under its own lock, and checks there whether the
 * communicator has failed.
 */
#ifndef XP_EP_P2P_CUDA_LAUNCH_LOCKS_H
#define XP_EP_P2P_CUDA_LAUNCH_LOCKS_H

#include "expar/comm.h"

typedef struct xp_ep_launch_locks xp_ep_launch_locks;

/** Collective over rank threads. */
XP_NODISCARD xp_status xp_ep_launch_locks_create(xp_comm *comm, xp_ep_launch_locks **locks);
/** This rank has no more use of them; the last one frees. All functions accept NULL: no locks. */
void xp_ep_launch_locks_release(xp_ep_launch_locks *locks);
void xp_ep_launch_lock(xp_ep_launch_locks *locks, int rank);
void xp_ep_launch_unlock(xp_ep_launch_locks *locks, int rank);
/** After the communicator has failed: returns when every rank that held its lock has released it.
 * Who takes a lock later sees the failure. */
void xp_ep_launch_locks_drain(xp_ep_launch_locks *locks);

#endif
