#include "gpu_limits.h"

#include "checkop.h"

#define SECONDS 0.3 /* of each of the two */

static xp_status measure(ck_candidate *candidate, ck_limits *limits) {
    XP_TRY(xp_ops_get(candidate->device, &candidate->ops));
    XP_TRY(xp_stream_create(candidate->device, XP_STREAM_COMPUTE, &candidate->stream));
    return ck_measure_gpu_limits(candidate, SECONDS, limits);
}

xp_status xp_bench_gpu_limits(xp_hardware *hardware) {
    const xp_device_args args = {.kind = XP_DEVICE_CUDA, .n_threads = 1};
    ck_candidate candidate = {.same_bits_as = -1};
    ck_limits limits;
    XP_TRY(xp_device_create(&args, &candidate.device));
    const xp_status status = measure(&candidate, &limits);
    xp_stream_destroy(candidate.stream);
    xp_device_destroy(candidate.device);
    if (status != XP_OK)
        return status;
    hardware->measured.gemm_tflops = limits.flops_per_s * 1e-12;
    hardware->measured.copy_tbps = limits.copy_bytes_per_s * 1e-12;
    return XP_OK;
}
