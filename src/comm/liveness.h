/**
 * The liveness table: shared memory of the processes of one node, with a slot a process (what it is
 * doing, whom it waits for) and the node's failure. A reader needs no help from the process it
 * reads about, so the table works when that one is stopped or dead; messages do not.
 */
#ifndef XP_COMM_LIVENESS_H
#define XP_COMM_LIVENESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "comm/failure.h"
#include "comm/provider.h"

#define XP_LIVENESS_NOT_FAILED 0U
#define XP_LIVENESS_WRITING    1U
#define XP_LIVENESS_FAILED     2U

/** One process, written by itself. */
typedef struct xp_liveness_slot {
    _Alignas(64) _Atomic int32_t rank; /* of the world */
    _Atomic int32_t pid;
    _Atomic int32_t
        waits_for;           /* the rank of the world it has waited for longest in a call, or -1 */
    _Atomic int32_t n_waits; /* for peers, in shared memory */
    _Atomic uint32_t finalized; /* ends in good order: its exit is no failure */
    _Atomic uint64_t activity[XP_FAILURE_PHASE / 8];
} xp_liveness_slot;

typedef struct xp_liveness_memory {
    _Atomic uint32_t failed; /* XP_LIVENESS_...; `failure` is whole once it says FAILED */
    xp_failure failure;
    xp_liveness_slot slots[]; /* [n_slots] the node's ranks in ascending order */
} xp_liveness_memory;

typedef struct xp_liveness {
    xp_liveness_memory *memory;
    xp_liveness_slot *mine;
    int *pidfds; /* [n_slots] file descriptors that become readable when the process ends, or -1 */
    int n_slots;
    int fd; /* of the memory; -1 where another process made it */
} xp_liveness;

/** The node's first rank makes the memory; the others open it from that process. */
XP_NODISCARD xp_status xp_liveness_create(int n_slots, xp_liveness *table);
XP_NODISCARD xp_status xp_liveness_open(int n_slots, int pid, int fd, xp_liveness *table);
/** Take slot `index`, as a rank of the world. */
void xp_liveness_join(xp_liveness *table, int index, int rank);
/** Once all have joined: open a pidfd of each process, which tells when it ends. */
void xp_liveness_open_pidfds(xp_liveness *table);
void xp_liveness_close(xp_liveness *table);

void xp_liveness_set_activity(xp_liveness *table, const char *activity);
/** The slot of a rank of the world; NULL when it is on another node. */
const xp_liveness_slot *xp_liveness_find(const xp_liveness *table, int rank);
/** What that process was last doing; "" before its first call. */
void xp_liveness_get_activity(const xp_liveness_slot *slot, char text[XP_FAILURE_PHASE]);

/** Becomes the node's failure unless there is one. @return true: it was the first */
bool xp_liveness_fail(xp_liveness *table, const xp_failure *failure);
bool xp_liveness_has_failed(const xp_liveness *table);
/** Only when it has failed. */
void xp_liveness_get_failure(const xp_liveness *table, xp_failure *failure);
/** Make `failure` the node's unless there is one; then *failure becomes that one. */
void xp_liveness_settle(xp_liveness *table, xp_failure *failure);
/** What a process was doing that is named in a failure: `rank`'s activity, or this process's own
 * where `rank` is on another node, since then that says most. */
void xp_liveness_activity_of(const xp_liveness *table, int rank, char text[XP_FAILURE_PHASE]);
/** The one line about a process that ended before it was finalized. */
void xp_liveness_describe_death(const xp_liveness_slot *slot, const char *host,
                                char text[XP_FAILURE_TEXT]);
/**
 * A wait in shared memory for `rank` has ended, which `text` tells. The table may know that it
 * waits for another rank in turn.
 * @param[out] whole  the text with what the table adds
 * @return the rank that all wait for in the end
 */
int xp_liveness_explain_timeout(const xp_liveness *table, int rank, const char *text,
                                char whole[XP_FAILURE_TEXT]);

/** The slot of a process that ended before it was finalized, or NULL. */
const xp_liveness_slot *xp_liveness_find_dead(const xp_liveness *table);
bool xp_liveness_is_stopped(const xp_liveness_slot *slot);
/** True when the process is in a wait for others itself. */
bool xp_liveness_is_waiting(const xp_liveness_slot *slot);
/** What is known of a rank of the world: UNKNOWN on another node. */
xp_wait_state xp_liveness_wait_state(const xp_liveness *table, int rank);
/** Follow who waits for whom from `rank`: the rank that all wait for in the end. */
int xp_liveness_find_culprit(const xp_liveness *table, int rank);
/** Wait until every other process of the node has ended, at most so long; not for `except`, a rank
 * of the world, or for those that are stopped. */
void xp_liveness_wait_for_exits(const xp_liveness *table, int except, double seconds);

#endif
