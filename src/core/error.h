/** Errors that belong to another rank. */
#ifndef XP_CORE_ERROR_H
#define XP_CORE_ERROR_H

#include "expar/status.h"

/** The last error is a failure of this rank of the world, which all ranks have agreed on; until the
 * thread's next error, but xp_error_context() keeps it. -1: it is the caller's own. */
void xp_error_set_rank(int rank);
int xp_last_error_rank(void);

#endif
