/** A page that follows runs: HTTP on this machine's loopback address, for its own browser. */
#ifndef XP_REPORT_SERVE_H
#define XP_REPORT_SERVE_H

#include <signal.h>
#include "report/run.h"

/**
 * Serve GET / (the page), /data?version=N (the numbers; 204 when they are still version N) on
 * 127.0.0.1 until *stop is set.
 * @param port  0: a free one
 * @param ready  gets the address, before the first request; may be NULL
 * @return XP_OK: *stop was set; XP_EIO: the port cannot be used
 */
XP_NODISCARD xp_status xp_report_serve(xp_report_run *const *runs, int n_runs, int port,
                                       const volatile sig_atomic_t *stop,
                                       void (*ready)(const char *address));

#endif
