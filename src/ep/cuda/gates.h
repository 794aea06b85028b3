/**
 * Rank threads queue kernels that write into each other's windows, and a rank's host may be far
 * ahead of its device. Before a rank of a failed group frees its window it must know that nobody
 * queues such work any more: every rank queues behind its own gate, and looks there whether the
 * communicator has failed.
 */
#ifndef XP_EP_CUDA_GATES_H
#define XP_EP_CUDA_GATES_H

#include "expar/comm.h"

typedef struct xp_ep_gates xp_ep_gates;

/** Collective over rank threads. */
XP_NODISCARD xp_status xp_ep_gates_open(xp_comm *comm, xp_ep_gates **gates);
/** This rank has no more use of them; the last frees. All functions accept NULL: no gates. */
void xp_ep_gates_close(xp_ep_gates *gates);
void xp_ep_gates_enter(xp_ep_gates *gates, int rank);
void xp_ep_gates_leave(xp_ep_gates *gates, int rank);
/** After the communicator has failed: returns when every rank that entered before has left. Who
 * enters later sees the failure. */
void xp_ep_gates_wait(xp_ep_gates *gates);

#endif
