/**
 * What the processes of one node show each other in shared memory: what each is doing, that it is
 * alive, and the node's failure. Nobody needs the other's help to read it, so it works when a peer
 * is stopped or dead, which messages do not.
 */
#ifndef XP_COMM_MPI_BOARD_H
#define XP_COMM_MPI_BOARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "comm/failure.h"

#define XP_BOARD_NOT_FAILED 0U
#define XP_BOARD_WRITING    1U
#define XP_BOARD_FAILED     2U

/** One process, written by itself. */
typedef struct xp_board_slot {
    _Alignas(64) _Atomic int32_t rank; /* of the world */
    _Atomic int32_t pid;
    _Atomic int32_t
        waits_for;           /* the rank of the world it has waited for longest in a call, or -1 */
    _Atomic int32_t n_waits; /* for peers, in shared memory */
    _Atomic uint32_t parted; /* ends in good order: its exit is no failure */
    _Atomic uint64_t activity[XP_FAILURE_PHASE / 8];
} xp_board_slot;

typedef struct xp_board_memory {
    _Atomic uint32_t failed; /* XP_BOARD_...; `failure` is whole once it says FAILED */
    xp_failure failure;
    xp_board_slot slots[]; /* [n_slots] the node's ranks in ascending order */
} xp_board_memory;

typedef struct xp_board {
    xp_board_memory *memory;
    xp_board_slot *mine;
    int *watches; /* [n_slots] file descriptors that become readable when the process ends, or -1 */
    int n_slots;
    int fd; /* of the memory; -1 where another process made it */
} xp_board;

/** The node's first rank makes the memory; the others open it from that process. */
XP_NODISCARD xp_status xp_board_create(int n_slots, xp_board *board);
XP_NODISCARD xp_status xp_board_open(int n_slots, int pid, int fd, xp_board *board);
/** Sign in as process `index` of the node. */
void xp_board_join(xp_board *board, int index, int rank);
/** Once all have signed in: watch over their processes. */
void xp_board_watch(xp_board *board);
void xp_board_close(xp_board *board);

void xp_board_set_activity(xp_board *board, const char *activity);
/** The slot of a rank of the world; NULL when it is on another node. */
const xp_board_slot *xp_board_find(const xp_board *board, int rank);
/** What that process was last doing; "" before its first call. */
void xp_board_get_activity(const xp_board_slot *slot, char text[XP_FAILURE_PHASE]);

/** Becomes the node's failure unless there is one. @return true: it was the first */
bool xp_board_fail(xp_board *board, const xp_failure *failure);
bool xp_board_has_failed(const xp_board *board);
/** Only when it has failed. */
void xp_board_get_failure(const xp_board *board, xp_failure *failure);

/** The slot of a process that ended without parting, or NULL. */
const xp_board_slot *xp_board_find_dead(const xp_board *board);
bool xp_board_is_stopped(const xp_board_slot *slot);
/** True when the process is in a wait for others itself. */
bool xp_board_is_waiting(const xp_board_slot *slot);
/** Follow who waits for whom from `rank`: the rank that all wait for in the end. */
int xp_board_find_culprit(const xp_board *board, int rank);
/** Wait until every other process of the node has ended, at most so long; not for `except`, a rank
 * of the world, or for those that are stopped. */
void xp_board_outlast(const xp_board *board, int except, double seconds);

/** A mapping that other processes may open as (pid, fd), filled with zeros and reserved: no later
 * access can fail for want of memory. */
XP_NODISCARD xp_status xp_shared_create(size_t n_bytes, const char *what, int *fd, void **data);
XP_NODISCARD xp_status xp_shared_open(size_t n_bytes, int pid, int fd, void **data);

#endif
