/** Collectives made of NCCL's: all are queued, and the host goes on. */
#ifndef XP_COMM_NCCL_COLLECTIVES_H
#define XP_COMM_NCCL_COLLECTIVES_H

#include "comm/nccl/handle.h"

/** Memory of the GPU that reductions need: as the largest collective asks, within bounds. */
int64_t xp_nccl_scratch_bytes(int n_ranks, size_t max_bytes);
/** xp_comm_backend_ops.run */
xp_status xp_nccl_run(xp_comm_backend *backend, const xp_comm_call *call, xp_stream *stream);

#endif
