/* The ranks of a group write into each other's buffers: all of them lay these out from the same numbers. */
#include <stdlib.h>
#include <string.h>
#include "ep/internal.h"

enum { N_NUMBERS = 10 };

static const char *const names[N_NUMBERS] = {
    "max_tokens", "dim",     "top_k",       "n_experts",         "dtype",
    "transport",  "n_slots", "send_copies", "host_synchronized", "capacity_factor"};

static int64_t at_least_one(int64_t n) {
    return n > 0 ? n : 1;
}

static void list(const xp_ep_config *c, int64_t numbers[N_NUMBERS]) {
    const int64_t all[N_NUMBERS] = {c->max_tokens,
                                    c->dim,
                                    c->top_k,
                                    c->n_experts,
                                    (int64_t)c->dtype,
                                    (int64_t)c->transport,
                                    at_least_one(c->n_slots),
                                    at_least_one(c->send_copies),
                                    c->host_synchronized};
    memcpy(numbers, all, sizeof all);
    memcpy(&numbers[N_NUMBERS - 1], &c->capacity_factor, sizeof c->capacity_factor);
}

static double shown(int i, int64_t number) {
    double value = (double)number;
    if (i == N_NUMBERS - 1)
        memcpy(&value, &number, sizeof value);
    return value;
}

static xp_status compare(const int64_t *all, int n_ranks) {
    for (int r = 1; r < n_ranks; r++)
        for (int i = 0; i < N_NUMBERS; i++) {
            const int64_t first = all[i], other = all[r * N_NUMBERS + i];
            if (first == other)
                continue;
            return xp_error(XP_EINVAL,
                            "xp_ep_group_create: %s is %.10g on rank 0 and %.10g on rank %d; all "
                            "ranks of a group give the same config",
                            names[i], shown(i, first), shown(i, other), r);
        }
    return XP_OK;
}

xp_status xp_ep_check_same_config(xp_comm *comm, const xp_ep_config *config) {
    const int n_ranks = comm ? xp_comm_size(comm) : 1;
    if (n_ranks == 1)
        return XP_OK;
    int64_t own[N_NUMBERS], *all = calloc((size_t)n_ranks, sizeof own);
    if (!all)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel group");
    list(config, own);
    xp_status status = xp_comm_all_gather(comm, own, all, N_NUMBERS, XP_I64, NULL);
    if (status == XP_OK)
        status = compare(all, n_ranks);
    free(all);
    return status;
}
