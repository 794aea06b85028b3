/** The rate at which one rank's memory is copied into another's, through a window: the limit of what dispatch and combine can
 * reach between GPUs. */
#ifndef XP_BENCH_LINK_H
#define XP_BENCH_LINK_H

#include "device/plugin.h"
#include "ranks.h"
#include "samples.h"

typedef struct xp_bench_link {
    xp_bench_rank *rank;
    xp_stream *stream;
    const xp_cuda_backend *backend; /* NULL on the CPU */
    const char *from;
    size_t n_bytes;
    int n_copies;      /* of a sample, one after the other */
    xp_window *window; /* NULL: one rank, several nodes, or GPUs that cannot reach each other */
    /* Bytes a second that a rank sends: all ranks at once, each to the next, so that every rank sends and receives; and every
     * other rank alone. Of the slowest sender. */
    xp_bench_samples both, one;
} xp_bench_link;

/**
 * Collective.
 * @param gpu   of this rank, as its process counts; -1 on the CPU
 * @param from  [n_bytes] memory of the device; borrowed
 */
XP_NODISCARD xp_status xp_bench_link_open(xp_bench_link *link, xp_bench_rank *rank,
                                          xp_stream *stream, int gpu, const char *from,
                                          size_t n_bytes);
/** Collective: one more sample of each rate. */
XP_NODISCARD xp_status xp_bench_link_sample(xp_bench_link *link);
/** Collective. */
void xp_bench_link_close(xp_bench_link *link);

#endif
