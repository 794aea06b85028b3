/** This process, and others of this host. */
#ifndef XP_CORE_PROCESS_H
#define XP_CORE_PROCESS_H

#include <stdbool.h>

/** True when the process cannot run: stopped by a signal or a debugger. */
bool xp_process_is_stopped(int pid);

/** Cores that this process may use, at least 1. */
int xp_process_n_cores(void);

#endif
