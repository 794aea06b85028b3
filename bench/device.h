/** The device of a bench's rank, chosen as for training. */
#ifndef XP_BENCH_DEVICE_H
#define XP_BENCH_DEVICE_H

#include "device/plugin.h"
#include "ranks.h"

typedef struct xp_bench_device {
    xp_device *device;
    xp_stream *stream;
    const xp_cuda_backend *backend; /* NULL on the CPU */
    int gpu;                        /* -1 on the CPU */
    bool shares_gpu;                /* some of the ranks do */
} xp_bench_device;

/** Device and stream, and who shares a GPU. Collective. After an error xp_bench_device_close() it too. */
XP_NODISCARD xp_status xp_bench_device_open(const xp_bench_rank *rank, bool cuda,
                                            xp_bench_device *d);
void xp_bench_device_close(xp_bench_device *d);

#endif
