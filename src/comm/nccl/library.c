/* libnccl.so.2, opened at run time: the binary needs no NCCL, and in a process that has NCCL
 * already (PyTorch's) that one serves when it is new enough: never is a second one loaded. */
#include <dlfcn.h>
#include <limits.h>
#include <nccl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include "comm/nccl/calls.h"
#include "device/cuda/cuda_device.h"

#define FILE_NAME     "libnccl.so.2"
#define LEAST_VERSION 22800

_Static_assert(sizeof(ncclUniqueId) == XP_NCCL_ID_BYTES, "NCCL's name of a communicator");

/* Types are nccl.h's own. */
typedef struct library {
    __typeof__(ncclGetVersion) *get_version;
    __typeof__(ncclGetUniqueId) *get_unique_id;
    __typeof__(ncclCommInitRankConfig) *comm_init;
    __typeof__(ncclCommGetAsyncError) *comm_state;
    __typeof__(ncclCommFinalize) *comm_finalize;
    __typeof__(ncclCommDestroy) *comm_destroy;
    __typeof__(ncclCommAbort) *comm_abort;
    __typeof__(ncclGetErrorString) *error_string;
    __typeof__(ncclGetLastError) *last_error;
    __typeof__(ncclCommUserRank) *comm_user_rank;
    __typeof__(ncclCommCount) *comm_count;
    __typeof__(ncclCommCuDevice) *comm_device;
    __typeof__(ncclGroupStart) *group_start;
    __typeof__(ncclGroupEnd) *group_end;
    __typeof__(ncclSend) *send;
    __typeof__(ncclRecv) *recv;
    __typeof__(ncclAllGather) *all_gather;
    __typeof__(ncclBroadcast) *broadcast;
    __typeof__(ncclAllReduce) *all_reduce;
    __typeof__(ncclReduceScatter) *reduce_scatter;
} library;

/* Opened once a process, constant afterwards. */
static pthread_once_t open_once = PTHREAD_ONCE_INIT;
static library lib;
static bool usable;
static char about[512];

/* ---- results ------------------------------------------------------------------------------ */

static xp_nccl_state state_of(const char *what, ncclResult_t result, ncclComm_t comm) {
    if (result == ncclSuccess)
        return XP_NCCL_OK;
    if (result == ncclInProgress)
        return XP_NCCL_BUSY;
    const char *more = lib.last_error(comm);
    xp_error(XP_ECOMM, "%s: %s%s%s (NCCL_DEBUG=WARN tells more)", what, lib.error_string(result),
             more && more[0] ? ": " : "", more ? more : "");
    return XP_NCCL_FAILED;
}

static ncclDataType_t type_of(xp_dtype dtype) {
    switch (dtype) {
    case XP_F32:
        return ncclFloat32;
    case XP_BF16:
        return ncclBfloat16;
    case XP_F64:
        return ncclFloat64;
    case XP_I32:
        return ncclInt32;
    case XP_I64:
        return ncclInt64;
    default:
        return ncclUint8;
    }
}

static ncclRedOp_t op_of(xp_reduce_op op) {
    return op == XP_MAX ? ncclMax : op == XP_MIN ? ncclMin : ncclSum;
}

/* ---- communicators ------------------------------------------------------------------------ */

static xp_nccl_state get_unique_id(xp_nccl_id *id) {
    ncclUniqueId made;
    const xp_nccl_state state = state_of("ncclGetUniqueId", lib.get_unique_id(&made), NULL);
    if (state == XP_NCCL_OK)
        memcpy(id->bytes, made.internal, sizeof id->bytes);
    return state;
}

static xp_nccl_state comm_init(xp_device *device, int n_ranks, const xp_nccl_id *id, int rank,
                               int max_ctas, void **nccl) {
    ncclUniqueId name;
    ncclComm_t comm = NULL;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (max_ctas > 0)
        config.maxCTAs = max_ctas;
    memcpy(name.internal, id->bytes, sizeof name.internal);
    *nccl = NULL;
    const xp_cuda_device *cuda = (const xp_cuda_device *)device;
    if (xp_cuda_check(cudaSetDevice(cuda->index), cuda->base.name) != XP_OK)
        return XP_NCCL_FAILED;
    const ncclResult_t result = lib.comm_init(&comm, n_ranks, name, rank, &config);
    *nccl = comm;
    return state_of("ncclCommInitRankConfig", result, NULL);
}

static xp_nccl_state comm_state(void *nccl) {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t result = lib.comm_state(nccl, &state);
    return state_of("NCCL", result == ncclSuccess ? state : result, nccl);
}

static xp_nccl_state comm_finalize(void *nccl) {
    return state_of("ncclCommFinalize", lib.comm_finalize(nccl), nccl);
}

static xp_nccl_state comm_destroy(void *nccl) {
    return state_of("ncclCommDestroy", lib.comm_destroy(nccl), NULL);
}

static xp_nccl_state comm_abort(void *nccl) {
    return state_of("ncclCommAbort", lib.comm_abort(nccl), NULL);
}

static xp_nccl_state comm_describe(void *nccl, xp_device *device, int *rank, int *size,
                                   bool *on_device) {
    int index = -1;
    ncclResult_t result = lib.comm_user_rank(nccl, rank);
    if (result == ncclSuccess)
        result = lib.comm_count(nccl, size);
    if (result == ncclSuccess)
        result = lib.comm_device(nccl, &index);
    *on_device = index == ((const xp_cuda_device *)device)->index;
    return state_of("ncclCommUserRank", result, nccl);
}

/* ---- what is queued ----------------------------------------------------------------------- */

static xp_nccl_state group_start(void) {
    return state_of("ncclGroupStart", lib.group_start(), NULL);
}

static xp_nccl_state group_end(void) {
    return state_of("ncclGroupEnd", lib.group_end(), NULL);
}

static xp_nccl_state send(void *nccl, const void *data, size_t n_bytes, int peer,
                          xp_stream *stream) {
    cudaStream_t s;
    if (xp_cuda_enter(stream, &s) != XP_OK)
        return XP_NCCL_FAILED;
    return state_of("ncclSend", lib.send(data, n_bytes, ncclUint8, peer, nccl, s), nccl);
}

static xp_nccl_state recv(void *nccl, void *data, size_t n_bytes, int peer, xp_stream *stream) {
    cudaStream_t s;
    if (xp_cuda_enter(stream, &s) != XP_OK)
        return XP_NCCL_FAILED;
    return state_of("ncclRecv", lib.recv(data, n_bytes, ncclUint8, peer, nccl, s), nccl);
}

static xp_nccl_state all_gather(void *nccl, const void *from, void *to, size_t n_bytes_each,
                                xp_stream *stream) {
    cudaStream_t s;
    if (xp_cuda_enter(stream, &s) != XP_OK)
        return XP_NCCL_FAILED;
    return state_of("ncclAllGather", lib.all_gather(from, to, n_bytes_each, ncclUint8, nccl, s),
                    nccl);
}

static xp_nccl_state broadcast(void *nccl, void *data, size_t n_bytes, int root,
                               xp_stream *stream) {
    cudaStream_t s;
    if (xp_cuda_enter(stream, &s) != XP_OK)
        return XP_NCCL_FAILED;
    return state_of("ncclBroadcast", lib.broadcast(data, data, n_bytes, ncclUint8, root, nccl, s),
                    nccl);
}

static xp_nccl_state all_reduce(void *nccl, const void *from, void *to, int64_t n, xp_dtype dtype,
                                xp_reduce_op op, xp_stream *stream) {
    cudaStream_t s;
    if (xp_cuda_enter(stream, &s) != XP_OK)
        return XP_NCCL_FAILED;
    return state_of("ncclAllReduce",
                    lib.all_reduce(from, to, (size_t)n, type_of(dtype), op_of(op), nccl, s), nccl);
}

static xp_nccl_state reduce_scatter(void *nccl, const void *from, void *to, int64_t n_each,
                                    xp_dtype dtype, xp_stream *stream) {
    cudaStream_t s;
    if (xp_cuda_enter(stream, &s) != XP_OK)
        return XP_NCCL_FAILED;
    return state_of("ncclReduceScatter",
                    lib.reduce_scatter(from, to, (size_t)n_each, type_of(dtype), ncclSum, nccl, s),
                    nccl);
}

static const xp_nccl_calls calls = {
    .get_unique_id = get_unique_id,
    .comm_init = comm_init,
    .comm_state = comm_state,
    .comm_finalize = comm_finalize,
    .comm_destroy = comm_destroy,
    .comm_abort = comm_abort,
    .comm_describe = comm_describe,
    .group_start = group_start,
    .group_end = group_end,
    .send = send,
    .recv = recv,
    .all_gather = all_gather,
    .broadcast = broadcast,
    .all_reduce = all_reduce,
    .reduce_scatter = reduce_scatter,
};

/* ---- opening ------------------------------------------------------------------------------ */

static bool find_all(void *handle) {
    const struct {
        const char *name;
        void *to;
    } symbols[] = {
        {"ncclGetVersion", &lib.get_version},
        {"ncclGetUniqueId", &lib.get_unique_id},
        {"ncclCommInitRankConfig", &lib.comm_init},
        {"ncclCommGetAsyncError", &lib.comm_state},
        {"ncclCommFinalize", &lib.comm_finalize},
        {"ncclCommDestroy", &lib.comm_destroy},
        {"ncclCommAbort", &lib.comm_abort},
        {"ncclCommUserRank", &lib.comm_user_rank},
        {"ncclCommCount", &lib.comm_count},
        {"ncclCommCuDevice", &lib.comm_device},
        {"ncclGetErrorString", &lib.error_string},
        {"ncclGetLastError", &lib.last_error},
        {"ncclGroupStart", &lib.group_start},
        {"ncclGroupEnd", &lib.group_end},
        {"ncclSend", &lib.send},
        {"ncclRecv", &lib.recv},
        {"ncclAllGather", &lib.all_gather},
        {"ncclBroadcast", &lib.broadcast},
        {"ncclAllReduce", &lib.all_reduce},
        {"ncclReduceScatter", &lib.reduce_scatter},
    };
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *symbol = dlsym(handle, symbols[i].name);
        if (symbol == NULL)
            return false;
        memcpy(symbols[i].to, &symbol, sizeof symbol);
    }
    return true;
}

/* One that the program has loaded already, or that it is linked with. NULL: none */
static void *find_loaded(void) {
    void *handle = dlopen(FILE_NAME, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (handle == NULL && dlsym(RTLD_DEFAULT, "ncclGetVersion") != NULL)
        handle = dlopen(NULL, RTLD_NOW);
    return handle;
}

static void open_library(void) {
    static const char advice[] = "several GPUs need it: install libnccl2 2.28 or newer, or put its "
                                 "folder on LD_LIBRARY_PATH";
    void *handle = find_loaded();
    if (handle == NULL)
        handle = dlopen(FILE_NAME, RTLD_NOW | RTLD_LOCAL);
    int version = 0;
    if (handle == NULL) {
        snprintf(about, sizeof about, "%s; %s", dlerror(), advice);
        return;
    }
    if (!find_all(handle) || lib.get_version(&version) != ncclSuccess || version < LEAST_VERSION) {
        snprintf(about, sizeof about, "%s is version %d.%d.%d%s; %s", FILE_NAME, version / 10000,
                 version / 100 % 100, version % 100, version == 0 ? " or none at all" : "", advice);
        return;
    }
    snprintf(about, sizeof about, "NCCL %d.%d.%d", version / 10000, version / 100 % 100,
             version % 100);
    usable = true;
}

const void *xp_nccl_open(char *text, size_t n_bytes) {
    pthread_once(&open_once, open_library);
    snprintf(text, n_bytes, "%s", about);
    return usable ? &calls : NULL;
}

const void *xp_nccl_open_loaded(char *text, size_t n_bytes) {
    void *handle = find_loaded();
    if (handle == NULL) {
        snprintf(text, n_bytes, "this process has loaded no NCCL (%s)", FILE_NAME);
        return NULL;
    }
    dlclose(handle);
    return xp_nccl_open(text, n_bytes);
}
