#include "device/gpu_placement.h"

#include <string.h>

int xp_gpu_choose(int local_rank, int n_visible) {
    return local_rank % n_visible;
}

bool xp_same_gpu(const xp_rank_gpu *a, const xp_rank_gpu *b) {
    return a->on_gpu && b->on_gpu && memcmp(a->id, b->id, sizeof a->id) == 0;
}

/* The first rank on that rank's GPU. */
static int first_on(const xp_rank_gpu *ranks, int rank) {
    int first = 0;
    while (first < rank && !xp_same_gpu(&ranks[first], &ranks[rank]))
        first++;
    return first;
}

xp_gpu_placement xp_gpu_placement_of(const xp_rank_gpu *ranks, int n_ranks, int rank) {
    xp_gpu_placement p = {.n_on_mine = 1};
    bool all = true, own = true;
    for (int r = 0; r < n_ranks; r++) {
        const bool is_first = first_on(ranks, r) == r;
        all = all && ranks[r].on_gpu;
        own = own && is_first && !ranks[r].used_by_others;
        p.n_gpus += ranks[r].on_gpu && is_first;
        p.any_shared |= !is_first;
        p.n_on_mine += r != rank && xp_same_gpu(&ranks[r], &ranks[rank]);
    }
    p.layout = !all            ? XP_GPUS_MIXED
               : p.n_gpus == 1 ? XP_GPUS_ONE
               : own           ? XP_GPUS_OWN
                               : XP_GPUS_MIXED;
    return p;
}

void xp_gpu_placement_print(const xp_rank_gpu *ranks, int n_ranks, bool names_nodes,
                            xp_text *line) {
    for (int first = 0; first < n_ranks; first++) {
        int n = 0;
        for (int r = 0; r < n_ranks; r++)
            n += xp_same_gpu(&ranks[r], &ranks[first]);
        if (n < 2 || first_on(ranks, first) != first)
            continue;
        xp_text_printf(line, "%sranks %d", line->length > 0 ? "; " : "", first);
        for (int r = first + 1; r < n_ranks; r++)
            if (xp_same_gpu(&ranks[r], &ranks[first]))
                xp_text_printf(line, ", %d", r);
        xp_text_printf(line, " share %s", ranks[first].name);
        if (names_nodes)
            xp_text_printf(line, " of node %d", ranks[first].node);
    }
}
