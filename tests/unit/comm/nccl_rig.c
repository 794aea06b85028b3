#include "comm/device/choose.h"
#include "nccl_rig.h"

bool rig_build(rank_job *job, xp_comm *comm, rig *r, xp_stream_kind kind, size_t max_bytes) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    *r = (rig){0};
    fake_enter(job->rank);
    RANK_CHECK(job, xp_device_create(&args, &r->device) == XP_OK);
    RANK_CHECK(job, xp_stream_create(r->device, kind, &r->stream) == XP_OK);
    job->status = xp_nccl_backend_create(
        &(xp_nccl_backend_args){comm, r->device, &fake_nccl, max_bytes, fake_reduce}, &r->backend);
    return job->status == XP_OK;
}

void rig_tear_down(rank_job *job, rig *r) {
    /* What is queued uses the engine; after a failure it ends when NCCL has been aborted. */
    RANK_CHECK(job, xp_stream_sync(r->stream) == XP_OK);
    xp_comm_backend_destroy(r->backend);
    xp_stream_destroy(r->stream);
    RANK_CHECK(job, xp_device_bytes(r->device, NULL) == 0);
    xp_device_destroy(r->device);
}
