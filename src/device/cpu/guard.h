/**
 * Memory of guarded CPU devices: nobody can touch it while no queued work runs, so that host code
 * which would fail on a GPU fails here too, at the very access. One address range serves all
 * guarded devices of a process: work of one may read what belongs to its peer, as on GPUs that
 * share a node. For tests.
 */
#ifndef XP_DEVICE_CPU_GUARD_H
#define XP_DEVICE_CPU_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include "expar/status.h"

/** The range is used again once all of it is free. Page-aligned, filled with bytes that are NaN in
 * every float type. */
XP_NODISCARD xp_status xp_guard_alloc(size_t n_bytes, void **data);
void xp_guard_free(void *data);
bool xp_guard_holds(const void *data);

/** Queued work begins, ends; any number at the same time. */
void xp_guard_open(void);
void xp_guard_close(void);

#endif
