/** How fast a folder's disk takes what a run writes. */
#ifndef XP_BENCH_DISK_RATE_H
#define XP_BENCH_DISK_RATE_H

#include <stdint.h>
#include "expar/status.h"

typedef struct xp_disk_rate {
    double bytes_per_s; /* written and synced */
    double free_bytes;  /* for this user */
    int64_t n_bytes;    /* written for it */
} xp_disk_rate;

/**
 * Write a file in pieces, each synced, for about half a second and at most 1 GiB, and remove it.
 * @return XP_OK; XP_EIO: it cannot be written, the error says why; XP_ENOMEM
 */
XP_NODISCARD xp_status xp_measure_disk(const char *folder, xp_disk_rate *rate);

#endif
