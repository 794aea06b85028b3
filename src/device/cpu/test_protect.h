/**
 * For tests: CPU devices that behave like GPUs, asked for by words in xp_device_args.caps.
 *
 *   test_protect   device memory is mprotected while no queued work runs, so that host code which
 *                  would fail on a GPU fails here too, at the very access
 *   test_defer     with test_protect: a compute stream keeps its work until somebody waits for it
 *
 * One address range serves all protected devices of a process: work of one may read what belongs to
 * its peer, as GPUs with peer access may.
 */
#ifndef XP_DEVICE_CPU_TEST_PROTECT_H
#define XP_DEVICE_CPU_TEST_PROTECT_H

#include <stdbool.h>
#include <stddef.h>
#include "expar/status.h"

/** The range is used again once all of it is free. Page-aligned, filled with bytes that are NaN in
 * every float type. */
XP_NODISCARD xp_status xp_test_protect_alloc(size_t n_bytes, void **data);
void xp_test_protect_free(void *data);
bool xp_test_protect_holds(const void *data);

/** Queued work begins, ends; any number at the same time. */
void xp_test_protect_open(void);
void xp_test_protect_close(void);

#endif
