#include "peer_copies.h"

#include <string.h>
#include "device/plugin.h"

#define N_BYTES  ((size_t)32 << 20)
#define N_COPIES 4

typedef struct gpu {
    xp_device *device;
    xp_stream *stream;
    void *from, *to;
} gpu;

typedef struct gpu_pair {
    const gpu *from, *to;
} gpu_pair;

static xp_status queue_copies(void *context) {
    const gpu_pair *c = context;
    for (int i = 0; i < N_COPIES; i++)
        XP_TRY(xp_copy(c->from->stream, c->to->to, c->from->from, N_BYTES));
    return XP_OK;
}

static xp_status open_gpu(int index, gpu *g) {
    const xp_device_args args = {.kind = XP_DEVICE_CUDA, .index = index, .n_threads = 1};
    XP_TRY(xp_device_create(&args, &g->device));
    XP_TRY(xp_stream_create(g->device, XP_STREAM_COMPUTE, &g->stream));
    XP_TRY(xp_device_alloc(g->device, N_BYTES, "copy", &g->from));
    XP_TRY(xp_device_alloc(g->device, N_BYTES, "copy", &g->to));
    XP_TRY(xp_zero(g->stream, g->from, N_BYTES));
    XP_TRY(xp_zero(g->stream, g->to, N_BYTES));
    return xp_stream_sync(g->stream);
}

/* The second time counts: the first makes the connection. */
static xp_status measure(const xp_cuda_backend *cuda, const gpu *from, const gpu *to,
                         double *rate) {
    gpu_pair c = {from, to};
    double seconds = 0;
    if (from != to)
        XP_TRY(cuda->peer_access->enable_peer(from->device, to->device));
    for (int i = 0; i < 2; i++)
        XP_TRY(cuda->time_call(from->stream, queue_copies, &c, &seconds));
    *rate = (double)N_BYTES * N_COPIES / (seconds + 1e-12);
    return XP_OK;
}

static xp_status measure_all(const xp_cuda_backend *cuda, gpu *gpus, xp_peer_copies *copies) {
    for (int i = 0; i < copies->n; i++)
        XP_TRY(open_gpu(i, &gpus[i]));
    for (int from = 0; from < copies->n; from++)
        for (int to = 0; to < copies->n; to++) {
            bool reaches = from == to;
            if (from != to)
                XP_TRY(cuda->peer_access->can_reach(from, to, &reaches));
            if (reaches)
                XP_TRY(measure(cuda, &gpus[from], &gpus[to], &copies->bytes_per_s[from][to]));
        }
    return XP_OK;
}

xp_status xp_measure_peer_copies(int n, xp_peer_copies *copies) {
    const xp_cuda_backend *cuda;
    gpu gpus[XP_PEER_COPIES_MAX];
    memset(gpus, 0, sizeof gpus);
    memset(copies, 0, sizeof *copies);
    XP_TRY(xp_cuda_backend_get(&cuda));
    copies->n = n < XP_PEER_COPIES_MAX ? n : XP_PEER_COPIES_MAX;
    const xp_status status = measure_all(cuda, gpus, copies);
    for (int i = 0; i < copies->n; i++) {
        if (gpus[i].device) {
            xp_device_free(gpus[i].device, gpus[i].from);
            xp_device_free(gpus[i].device, gpus[i].to);
        }
        xp_stream_destroy(gpus[i].stream);
        xp_device_destroy(gpus[i].device);
    }
    return status;
}
