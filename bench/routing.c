/* Assignments to time expert parallelism with. */
#include <stdlib.h>
#include "core/rng.h"
#include "ep.h"
#include "ops/ops.h"

const char *xp_bench_routing_name(xp_bench_routing routing) {
    static const char *const names[XP_BENCH_N_ROUTINGS] = {"random", "skewed", "modulo", "spread"};
    return names[routing];
}

static bool holds(const int32_t *assignments, int n, int32_t id) {
    for (int i = 0; i < n; i++)
        if (assignments[i] == id)
            return true;
    return false;
}

/* An expert by its share of the total weight. */
static int32_t draw(const double *cumulative, int n, double u) {
    int low = 0, high = n - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (cumulative[middle] > u * cumulative[n - 1])
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static xp_status fill_drawn(const xp_bench_ep_case *c, int rank, int32_t *ids) {
    double *cumulative = malloc((size_t)c->n_experts * sizeof *cumulative);
    if (!cumulative)
        return xp_error(XP_ENOMEM, "no memory for the routing");
    double sum = 0;
    for (int e = 0; e < c->n_experts; e++)
        cumulative[e] = sum += c->routing == XP_BENCH_SKEWED ? 1.0 / (e + 1) : 1.0;
    uint64_t n_drawn = 0;
    for (int64_t t = 0; t < c->n_tokens; t++) {
        int32_t *assignments = ids + t * c->top_k;
        for (int k = 0; k < c->top_k;) {
            const double u = xp_rng_uniform(7, (uint64_t)rank, n_drawn++);
            assignments[k] = draw(cumulative, c->n_experts, u);
            k += !holds(assignments, k, assignments[k]);
        }
    }
    free(cumulative);
    return XP_OK;
}

xp_status xp_bench_fill_routing(const xp_bench_ep_case *c, int rank, int32_t *ids) {
    if (c->routing == XP_BENCH_RANDOM || c->routing == XP_BENCH_SKEWED)
        return fill_drawn(c, rank, ids);
    xp_forced_balance_fill(c->routing == XP_BENCH_MODULO ? XP_FORCED_MODULO : XP_FORCED_SPREAD,
                           c->n_tokens, c->top_k, c->n_experts, c->n_ranks, ids);
    return XP_OK;
}
