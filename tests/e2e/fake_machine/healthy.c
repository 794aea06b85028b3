/*
 * A CUDA backend of a machine with $FAKE_GPUS GPUs that work, as far as `expar doctor` looks: a GPU is a CPU device, and
 * every copy takes the same time. $FAKE_MISSING names what is not there (cublas cudnn nccl), $FAKE_APART GPUs that do not
 * reach each other, $FAKE_MIXED GPUs of several kinds, $FAKE_FULL GPUs that cannot be opened, $FAKE_DIES a program that is
 * killed when it opens one, $FAKE_LOST GPUs that ranks cannot tell apart, $FAKE_WRONG an RMSNorm that computes something else, $FAKE_CUDNN_FAILS a cuDNN
 * that loads and does not serve. Ranks share one GPU.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device/cpu/cpu_device.h"
#include "device/device_internal.h"
#include "device/plugin.h"
#include "ep/backends.h"
#include "ops/gemm_choice.h"
#include "ops/ops.h"

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
    if (getenv("FAKE_DIES"))
        raise(SIGUSR1);
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

/* The same for all: there is no NCCL behind nccl(). */
static xp_status identity(xp_device *device, char id[XP_GPU_ID_BYTES]) {
    (void)device;
    memset(id, 0, XP_GPU_ID_BYTES);
    return getenv("FAKE_LOST") ? xp_error(XP_EDEVICE, "cuda:0 fell off the bus") : XP_OK;
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

/* The plain code of a CPU, in the order of its stream. */
#define FAKE_OP(entry, queued, args_type, check, cuda)                                             \
    static xp_status queued(xp_stream *stream, void *args) {                                       \
        return xp_ops_reference()->entry(stream, args);                                            \
    }                                                                                              \
    static xp_status cuda(xp_stream *stream, const args_type *args) {                              \
        return xp_cpu_submit_named(stream, #entry, queued, args, sizeof *args);                    \
    }
XP_OP_LIST(FAKE_OP)
#undef FAKE_OP

static xp_status wrong_rmsnorm(xp_stream *stream, const xp_rmsnorm_args *args) {
    xp_rmsnorm_args other = *args;
    other.eps = 1;
    return xp_cuda_rmsnorm_forward(stream, &other);
}

static size_t no_scratch(const xp_device *device, const xp_attention_args *args, bool backward) {
    (void)device;
    (void)args;
    (void)backward;
    return 0;
}

static const xp_ops *ops(void) {
#define FAKE_ENTRY(entry, queued, args_type, check, cuda) .entry = cuda,
    static xp_ops table = {.name = "fake", XP_OP_LIST(FAKE_ENTRY).attention_scratch = no_scratch};
#undef FAKE_ENTRY
    if (getenv("FAKE_WRONG"))
        table.rmsnorm_forward = wrong_rmsnorm;
    return &table;
}

static bool by_cudnn(xp_device *device, const void *args, const char **why) {
    (void)device;
    (void)args;
    *why = "CUDNN_STATUS_FAKE";
    return !getenv("FAKE_CUDNN_FAILS") && !is_missing("cudnn");
}

XP_API const xp_cuda_backend *xp_cuda_backend_entry(void);

const xp_cuda_backend *xp_cuda_backend_entry(void) {
    static const xp_gpu_peer_access peers = {
        .identity = identity, .can_reach = can_reach, .enable_peer = enable_peer};
    static const xp_gemm_choice_calls choices = {NULL}; /* its devices are CPUs: never called */
    /* p2p would write into memory of GPUs */
    static const xp_ep_backend_set experts = {.local = &xp_ep_cpu_local,
                                              .p2p = &xp_ep_cpu_a2a,
                                              .a2a = &xp_ep_cpu_a2a,
                                              .hierarchical = &xp_ep_cpu_hierarchical};
    static xp_cuda_backend backend = {.abi_version = XP_CUDA_ABI_VERSION,
                                      .device_count = count,
                                      .device_create = create,
                                      .describe = describe,
                                      .library_describe = library_describe,
                                      .time_call = time_call,
                                      .gemm_choices = &choices,
                                      .peer_access = &peers,
                                      .ep_backends = &experts,
                                      .attention_by_cudnn = by_cudnn,
                                      .nccl = nccl};
    backend.ops = ops();
    return &backend;
}
