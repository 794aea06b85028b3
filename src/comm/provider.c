/* What the communicators of all providers have in common. */
#include "comm/provider.h"

#include <stdio.h>
#include <string.h>
#include "core/error.h"

static const char *const kind_names[XP_COMM_N_KINDS] = {
    [XP_COMM_BARRIER] = "barrier",
    [XP_COMM_ALL_REDUCE] = "all-reduce",
    [XP_COMM_REDUCE_SCATTER] = "reduce-scatter",
    [XP_COMM_ALL_GATHER] = "all-gather",
    [XP_COMM_ALL_TO_ALLV] = "all-to-allv",
    [XP_COMM_ALL_TO_ALL] = "all-to-all",
    [XP_COMM_BROADCAST] = "broadcast",
    [XP_COMM_SPLIT] = "split",
    [XP_COMM_WINDOW] = "window",
};

const char *xp_comm_kind_name(xp_comm_kind kind) {
    return (unsigned)kind < XP_COMM_N_KINDS ? kind_names[kind] : "?";
}

int xp_comm_rank(const xp_comm *comm) {
    return comm->rank;
}

int xp_comm_size(const xp_comm *comm) {
    return comm->size;
}

bool xp_comm_is_one_node(const xp_comm *comm) {
    return comm->one_node;
}

bool xp_comm_same_process(const xp_comm *comm) {
    return comm->same_process;
}

bool xp_comm_calls_back(const xp_comm *comm) {
    return comm->calls_back;
}

int xp_comm_node(const xp_comm *comm, int rank) {
    return rank >= 0 && rank < comm->size ? comm->nodes[rank] : -1;
}

int xp_comm_n_nodes(const xp_comm *comm) {
    return comm->n_nodes;
}

int xp_comm_world_rank(const xp_comm *comm, int rank) {
    return rank >= 0 && rank < comm->size ? comm->world_ranks[rank] : -1;
}

double xp_comm_timeout(const xp_comm *comm) {
    return comm->timeout_s;
}

int xp_comm_number_nodes(const int *world_nodes, const int *ranks, int n, int *nodes) {
    int n_nodes = 0;
    for (int i = 0; i < n; i++) {
        int first = 0;
        while (world_nodes[ranks[first]] != world_nodes[ranks[i]])
            first++;
        nodes[i] = first == i ? n_nodes++ : nodes[first];
    }
    return n_nodes;
}

xp_status xp_comm_gather_bytes(xp_comm *comm, const char *phase, const void *mine, void *all,
                               int64_t n_bytes) {
    const xp_comm_call call = {.kind = XP_COMM_ALL_GATHER,
                               .dtype = XP_U8,
                               .n = n_bytes,
                               .send = mine,
                               .recv = all,
                               .phase = phase};
    return comm->provider->run(comm, &call);
}

void xp_comm_set_phase(xp_comm *comm, const char *phase) {
    atomic_store(&comm->phase, phase);
    xp_comm_show_phase(comm, phase);
}

void xp_comm_show_phase(xp_comm *comm, const char *phase) {
    if (comm->provider->set_phase)
        comm->provider->set_phase(comm, phase);
}

xp_status xp_comm_final_error(xp_comm *comm, xp_status status) {
    return comm->provider->final_error ? comm->provider->final_error(comm, status) : status;
}

void xp_comm_mark_waiting(xp_comm *comm, int change) {
    if (comm->provider->mark_waiting)
        comm->provider->mark_waiting(comm, change);
}

xp_wait_state xp_comm_wait_state(const xp_comm *comm, int rank) {
    return comm->provider->wait_state ? comm->provider->wait_state(comm, rank) : XP_WAIT_UNKNOWN;
}

int xp_comm_count_in_state(const xp_comm *comm, xp_wait_state state) {
    int n = 0;
    for (int r = 0; r < comm->size; r++)
        n += r != comm->rank && xp_comm_wait_state(comm, r) == state;
    return n;
}

bool xp_comm_is_waiting(const xp_comm *comm, int rank) {
    return xp_comm_wait_state(comm, rank) == XP_WAIT_WAITING;
}

/* ---- failures ---------------------------------------------------------------------------- */

xp_status xp_comm_fail_with(xp_comm *comm, const xp_failure *failure) {
    comm->provider->fail(comm, failure);
    return xp_comm_async_error(comm);
}

static xp_status fail(xp_comm *comm, xp_failure_reason reason, int culprit, const char *text) {
    const xp_failure failure =
        xp_failure_make(reason, xp_comm_world_rank(comm, comm->rank), culprit, text);
    return xp_comm_fail_with(comm, &failure);
}

xp_status xp_comm_fail(xp_comm *comm, const char *text) {
    return fail(comm, XP_FAILURE_LIBRARY, xp_comm_world_rank(comm, comm->rank), text);
}

xp_status xp_comm_fail_timeout(xp_comm *comm, int peer, const char *text) {
    return fail(comm, XP_FAILURE_TIMEOUT, xp_comm_world_rank(comm, peer), text);
}

xp_status xp_comm_fail_mismatch(xp_comm *comm, const char *text) {
    return fail(comm, XP_FAILURE_MISMATCH, -1, text);
}

/* The text behind the name of its rank, which the sentence around it says already. */
static const char *without_rank(const char *text, int rank) {
    char name[32];
    const int n = snprintf(name, sizeof name, "rank %d: ", rank);
    return strncmp(text, name, (size_t)n) == 0 ? text + n : text;
}

void xp_comm_abort(xp_comm *comm, const char *reason) {
    char text[XP_FAILURE_TEXT];
    const char *phase = atomic_load(&comm->phase);
    int rank = -1;
    if (!reason) {
        /* A failure that all ranks have agreed on is its rank's, whoever comes here first. */
        rank = xp_last_error_rank();
        reason = xp_last_error();
    }
    if (rank < 0)
        rank = xp_comm_world_rank(comm, comm->rank);
    snprintf(text, sizeof text, "rank %d gave up in %s: %s", rank, phase ? phase : "the run",
             reason[0] ? without_rank(reason, rank) : "no reason given");
    const xp_failure failure =
        xp_failure_make(XP_FAILURE_ABORT, xp_comm_world_rank(comm, comm->rank), rank, text);
    comm->provider->fail(comm, &failure); /* the caller's last error stays */
}

bool xp_comm_get_failure(const xp_comm *comm, xp_failure *failure) {
    const xp_failure *first = comm->provider->failure(comm);
    if (first)
        *failure = *first;
    return first != NULL;
}

xp_status xp_comm_async_error(const xp_comm *comm) {
    const xp_failure *failure = comm->provider->failure(comm);
    return failure ? xp_error(XP_ECOMM, "%s", failure->text) : XP_OK;
}
