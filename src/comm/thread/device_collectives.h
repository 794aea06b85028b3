/** Collectives over memory of the one GPU that all ranks use. */
#ifndef XP_COMM_THREAD_DEVICE_COLLECTIVES_H
#define XP_COMM_THREAD_DEVICE_COLLECTIVES_H

#include "comm/thread/team.h"

/** xp_comm_provider.run_on_device */
xp_status xp_thread_run_on_device(xp_comm *comm, const xp_comm_call *call, xp_stream *stream);

#endif
