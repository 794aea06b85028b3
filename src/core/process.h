/** Other processes of this host. */
#ifndef XP_CORE_PROCESS_H
#define XP_CORE_PROCESS_H

#include <stdbool.h>

/** True when the process cannot run: stopped by a signal or a debugger. */
bool xp_process_is_stopped(int pid);

#endif
