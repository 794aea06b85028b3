/*
 * A CUDA backend of a machine with $FAKE_GPUS GPUs that work, as far as `expar doctor` looks: a GPU is a CPU device, and
 * every copy takes the same time. $FAKE_MISSING names what is not there (cublas cudnn nccl), $FAKE_APART GPUs that do not
 * reach each other, $FAKE_MIXED GPUs of several kinds, $FAKE_FULL GPUs that cannot be opened.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device/device_internal.h"
#include "device/plugin.h"
#include "ops/gemm_choice.h"

static bool is_missing(const char *what) {
    const char *all = getenv("FAKE_MISSING");
    return all && strstr(all, what);
}

static xp_status count(int *n_devices) {
    const char *text = getenv("FAKE_GPUS");
    *n_devices = text ? atoi(text) : 0;
    return *n_devices > 0 ? XP_OK : xp_error(XP_ENOTSUP, "FAKE_GPUS is not set");
}

static xp_status create(const xp_device_args *args, xp_device **device) {
    const xp_device_args cpu = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    if (getenv("FAKE_FULL"))
        return xp_error(XP_ENOMEM, "cuda:%d has no memory left", args->index);
    return xp_cpu_device_create(&cpu, device);
}

static xp_status describe(int index, char *text, size_t n_bytes) {
    snprintf(text, n_bytes, "Fake GPU%s, 1.0 GiB, 132 SMs",
             getenv("FAKE_MIXED") && index == 1 ? " Pro" : "");
    return XP_OK;
}

static bool library_describe(int index, bool *usable, char *text, size_t n_bytes) {
    static const char *const names[] = {"cuBLASLt", "cuDNN"}, *const keys[] = {"cublas", "cudnn"};
    if (index < 0 || index > 1)
        return false;
    *usable = !is_missing(keys[index]);
    snprintf(text, n_bytes, "%s%s", names[index],
             *usable ? " 13.0.0" : ": libfake.so.13: cannot open shared object file");
    return true;
}

static xp_status time_call(xp_stream *stream, xp_status (*call)(void *context), void *context,
                           double *seconds) {
    const char *text = getenv("FAKE_GPUS");
    (void)stream;
    *seconds = 5e-4;
    return text && atoi(text) > 2 ? XP_OK : call(context); /* many would take a CPU too long */
}

static xp_status can_reach(int from, int to, bool *reaches) {
    *reaches = from == to || !getenv("FAKE_APART");
    return XP_OK;
}

static xp_status enable_peer(xp_device *device, xp_device *peer) {
    return device != peer ? XP_OK : xp_error(XP_EINVAL, "a GPU is not its own peer");
}

static const void *nccl(char *text, size_t n_bytes) {
    static const int serves = 1;
    snprintf(text, n_bytes, "%s",
             is_missing("nccl") ? "NCCL 2.19.3 is too old, 2.28 is needed" : "NCCL 2.28.9");
    return is_missing("nccl") ? NULL : &serves;
}

XP_API const xp_cuda_backend *xp_cuda_backend_entry(void);

const xp_cuda_backend *xp_cuda_backend_entry(void) {
    static const xp_gpu_peer_access peers = {.can_reach = can_reach, .enable_peer = enable_peer};
    static const xp_gemm_choice_calls choices = {NULL}; /* its devices are CPUs: never called */
    static const xp_cuda_backend backend = {.abi_version = XP_CUDA_ABI_VERSION,
                                            .device_count = count,
                                            .device_create = create,
                                            .describe = describe,
                                            .library_describe = library_describe,
                                            .time_call = time_call,
                                            .gemm_choices = &choices,
                                            .peer_access = &peers,
                                            .nccl = nccl};
    return &backend;
}
