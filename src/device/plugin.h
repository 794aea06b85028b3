/**
 * The CUDA backend is a shared object of its own, libexpar_cuda.so, looked for beside libexpar and
 * the executable: the same binary runs on a machine without driver or CUDA libraries and can say
 * why the backend stayed out.
 */
#ifndef XP_DEVICE_PLUGIN_H
#define XP_DEVICE_PLUGIN_H

#include "expar/device.h"

#define XP_CUDA_ENTRY       "xp_cuda_backend_entry"
#define XP_CUDA_ABI_VERSION 15

#define XP_GPU_ID_BYTES     16
#define XP_IPC_HANDLE_BYTES 64
/** Memory that other processes open is reserved in whole multiples: the driver cuts smaller pieces
 * out of blocks of this size, and a handle opens a whole block. */
#define XP_GPU_SHARED_BLOCK_BYTES ((size_t)2 << 20)

/** GPUs that know of each other: how memory of one rank becomes addressable to another. */
typedef struct xp_gpu_peer_access {
    /** What tells GPUs apart on all nodes: the same bytes in every process that sees this one. */
    xp_status (*identity)(xp_device *device, char id[XP_GPU_ID_BYTES]);
    /** Whether kernels on GPU `from` can use memory of GPU `to` (indices of this process). */
    xp_status (*can_reach)(int from, int to, bool *reaches);
    /** From now on kernels and copies on `device` may use all memory of `peer`, another GPU of this
     * process; again is fine. XP_ENOTSUP when the two cannot reach each other. */
    xp_status (*enable_peer)(xp_device *device, xp_device *peer);
    /** A name for memory that another process of the node can open. `data` is the start of an
     * allocation of whole multiples of granularity, or others' memory would go with it. */
    xp_status (*export_memory)(xp_device *device, void *data, char handle[XP_IPC_HANDLE_BYTES]);
    /** Another process's memory, on this or on another GPU, as `device` addresses it. */
    xp_status (*open_memory)(xp_device *device, const char handle[XP_IPC_HANDLE_BYTES],
                             void **data);
    /** Before the owner frees it. */
    void (*close_memory)(xp_device *device, void *data);
    size_t granularity;
} xp_gpu_peer_access;

/** Calls that are timed one by one although all are queued before the first is waited for. */
typedef struct xp_timed_calls {
    int n; /* at most XP_MAX_TIMED_CALLS */
    xp_status (*before)(
        void *context);               /* queues what comes before each and is not timed; or NULL */
    xp_status (*call)(void *context); /* queues what is timed */
    void *context;
} xp_timed_calls;
#define XP_MAX_TIMED_CALLS 64

/** What the backend offers to the layers. Tables of layers above are typeless here; each layer
 * casts its own. */
typedef struct xp_cuda_backend {
    int abi_version;
    /** How many usable devices there are. @return XP_OK, or XP_ENOTSUP with the reason */
    xp_status (*device_count)(int *n_devices);
    xp_status (*device_create)(const xp_device_args *args, xp_device **device);
    const void *ops;         /* xp_ops */
    const void *ep_backends; /* xp_ep_backend_set, or NULL */
    /** One line about a device for people: name, memory, architecture, driver. */
    xp_status (*describe)(int index, char *text, size_t n_bytes);
    const void *plain_activation; /* xp_ops with the two silu_gate_prob entries alone */
    /**
     * Libraries that are opened when they are needed, one call each: index 0, 1, ... until false.
     * @param[out] text  "cuDNN 9.14.0", or why it is missing and what goes without it
     * @param[out] usable  whether it could be opened
     */
    bool (*library_describe)(int index, bool *usable, char *text, size_t n_bytes);
    /** Seconds on the device between the start and the end of what `call` queues on the stream;
     * waits for it. For benchmarks. */
    xp_status (*time_call)(xp_stream *stream, xp_status (*call)(void *context), void *context,
                           double *seconds);
    /** The same for each of several calls; waits once, for the last. @param[out] seconds  [calls->n] */
    xp_status (*time_each)(xp_stream *stream, const xp_timed_calls *calls, double *seconds);
    /** A reduction between ranks (xp_reduce_args of comm) over memory of the stream's device. */
    xp_status (*reduce)(xp_stream *stream, const void *args);
    const void *gemm_choices; /* xp_gemm_choice_calls of ops, or NULL */
    /** Open and reserve what a device's libraries keep, before the first step; or NULL. */
    xp_status (*prepare)(xp_device *device);
    const xp_gpu_peer_access *peer_access;
    /**
     * NCCL, opened on the first call; constant afterwards.
     * @param[out] text  "NCCL 2.28.3", or why it cannot serve and what to do
     * @return xp_nccl_calls of comm, or NULL
     */
    const void *(*nccl)(char *text, size_t n_bytes);
    /** The same where the program has loaded one already; never loads one. */
    const void *(*loaded_nccl)(char *text, size_t n_bytes);
    /** Whether cuDNN computes this attention_forward (xp_attention_args); or NULL. @param[out] why  it does not, as long as
     * the device; NULL: a kernel of our own is preferred */
    bool (*attention_by_cudnn)(xp_device *device, const void *args, const char **why);
} xp_cuda_backend;

/** Type of the entry symbol. */
typedef const xp_cuda_backend *(*xp_cuda_entry)(void);

/**
 * Load the backend once a process.
 * @return XP_OK; XP_ENOTSUP: no backend here, the last error says why (not built, library missing,
 * no driver)
 */
XP_NODISCARD xp_status xp_cuda_backend_get(const xp_cuda_backend **backend);

/**
 * Open a shared object that lies beside libexpar, beside the executable, or in ../lib of either;
 * then by its name alone.
 * @param[out] why  why it could not be opened, when NULL is returned
 */
void *xp_plugin_open(const char *file_name, char *why, size_t n_why);

#endif
