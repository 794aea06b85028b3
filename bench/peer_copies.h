/** Copies between all GPUs of this process, a pair at a time. */
#ifndef XP_BENCH_PEER_COPIES_H
#define XP_BENCH_PEER_COPIES_H

#include "expar/status.h"

#define XP_PEER_COPIES_MAX 16

/** Bytes a second, [from][to]; 0: `from` cannot use memory of `to`; on the diagonal the GPU's own copy. */
typedef struct xp_peer_copies {
    int n;
    double bytes_per_s[XP_PEER_COPIES_MAX][XP_PEER_COPIES_MAX];
} xp_peer_copies;

/** Of the first n GPUs, at most XP_PEER_COPIES_MAX; takes 64 MiB of each. @return XP_OK; XP_ENOMEM and others */
XP_NODISCARD xp_status xp_measure_peer_copies(int n, xp_peer_copies *copies);

#endif
