/** Collectives over addresses that all ranks can use. */
#ifndef XP_COMM_THREAD_COLLECTIVES_H
#define XP_COMM_THREAD_COLLECTIVES_H

#include "comm/thread/team.h"

/** xp_comm_provider.run */
xp_status xp_thread_run(xp_comm *comm, const xp_comm_call *call);
/** Between enter and leave: XP_ECOMM for all when two ranks do not make the same call. */
xp_status xp_thread_check_match(xp_thread_comm *comm, const xp_comm_call *mine);
/** Where piece `piece` of n elements starts when each of `size` ranks reduces one. */
int64_t xp_thread_piece_start(int64_t n, int size, int piece);

#endif
