/* The ranks of a group write into each other's buffers: all of them lay these out from the same numbers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "ep/internal.h"

enum {
    DTYPE,
    TRANSPORT,
    CAPACITY_FACTOR,
    MAX_TOKENS,
    DIM,
    TOP_K,
    EXPERTS,
    SLOTS,
    COPIES,
    HOSTS,
    N_NUMBERS
};

static const char *const names[N_NUMBERS] = {
    "dtype", "transport", "capacity_factor", "max_tokens",  "dim",
    "top_k", "n_experts", "n_slots",         "send_copies", "host_synchronized"};

static int64_t at_least_one(int64_t n) {
    return n > 0 ? n : 1;
}

static void list(const xp_ep_config *c, int64_t numbers[N_NUMBERS]) {
    numbers[DTYPE] = (int64_t)c->dtype;
    numbers[TRANSPORT] = (int64_t)c->transport;
    memcpy(&numbers[CAPACITY_FACTOR], &c->capacity_factor, sizeof c->capacity_factor);
    numbers[MAX_TOKENS] = c->max_tokens;
    numbers[DIM] = c->dim;
    numbers[TOP_K] = c->top_k;
    numbers[EXPERTS] = c->n_experts;
    numbers[SLOTS] = at_least_one(c->n_slots);
    numbers[COPIES] = at_least_one(c->send_copies);
    numbers[HOSTS] = c->host_synchronized;
}

static const char *print(int i, int64_t number, char text[32]) {
    static const char *const transports[] = {[XP_EP_AUTO] = "auto",
                                             [XP_EP_P2P] = "p2p",
                                             [XP_EP_A2A] = "a2a",
                                             [XP_EP_HIERARCHICAL] = "hierarchical"};
    double value;
    memcpy(&value, &number, sizeof value);
    if (i == DTYPE)
        return xp_dtype_name((xp_dtype)number);
    if (i == TRANSPORT)
        return transports[number];
    if (i == CAPACITY_FACTOR)
        snprintf(text, 32, "%.10g", value);
    else
        snprintf(text, 32, "%lld", (long long)number);
    return text;
}

static xp_status compare(const int64_t *all, int n_ranks) {
    for (int r = 1; r < n_ranks; r++)
        for (int i = 0; i < N_NUMBERS; i++) {
            const int64_t first = all[i], other = all[r * N_NUMBERS + i];
            if (first == other)
                continue;
            char here[32], there[32];
            return xp_error(XP_EINVAL,
                            "xp_ep_group_create: %s is %s on rank 0 and %s on rank %d; all ranks "
                            "of a group give the same config",
                            names[i], print(i, first, here), print(i, other, there), r);
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
