/** One rank's engine on the fake NCCL, with a CPU for its GPU. */
#ifndef TESTS_UNIT_COMM_NCCL_RIG_H
#define TESTS_UNIT_COMM_NCCL_RIG_H

#include "fake_nccl.h"
#include "ranks.h"

typedef struct rig {
    xp_device *device;
    xp_stream *stream;
    xp_comm_backend *backend;
} rig;

/** Collective over comm. @return true when the engine is there; job->status tells otherwise */
bool rig_build(rank_job *job, xp_comm *comm, rig *r, xp_stream_kind kind, size_t max_bytes);
void rig_tear_down(rank_job *job, rig *r);

#endif
