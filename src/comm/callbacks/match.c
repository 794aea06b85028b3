/* Calls that do not match are an error, not garbage in a tensor. */
#include <stdio.h>
#include <string.h>
#include "comm/callbacks/collectives.h"
#include "comm/callbacks/failure.h"

void xp_callback_copy(void *dst, const void *src, int64_t n_bytes) {
    if (n_bytes > 0 && dst != src)
        memmove(dst, src, (size_t)n_bytes);
}

int64_t xp_callback_piece(int64_t total, int64_t at, int64_t most) {
    const int64_t left = total > at ? total - at : 0;
    return left < most ? left : most;
}

static void describe(char text[160], const xp_callback_head *head) {
    snprintf(text, 160, "%s of %lld x %s (%s)", xp_comm_kind_name((xp_comm_kind)head->kind),
             (long long)head->n, xp_dtype_name((xp_dtype)head->dtype),
             head->phase[0] ? head->phase : "no phase");
}

xp_status xp_callback_check_head(xp_callback_comm *comm, const xp_callback_head *mine,
                                 const xp_callback_head *theirs, int peer) {
    if (mine->kind == theirs->kind && mine->n == theirs->n && mine->dtype == theirs->dtype &&
        mine->op == theirs->op && mine->root == theirs->root && mine->n_call == theirs->n_call)
        return XP_OK;
    char text[600], a[160], b[160];
    describe(a, mine);
    describe(b, theirs);
    snprintf(text, sizeof text,
             "ranks do not make the same call: rank %d %s, rank %d %s (calls %llu and %llu)",
             comm->world->rank, a, comm->ranks[peer], b, (unsigned long long)mine->n_call,
             (unsigned long long)theirs->n_call);
    xp_callback_fail(comm->world, XP_FAILURE_MISMATCH, -1, text);
    return xp_callback_world_status(comm->world);
}

xp_status xp_callback_check_bytes(xp_callback_comm *comm, const xp_comm_call *call, int peer,
                                  int64_t sent) {
    if (sent == call->v.recv_bytes[peer])
        return XP_OK;
    char text[400];
    snprintf(text, sizeof text,
             "all-to-allv (%s): rank %d sends %lld bytes to rank %d, which expects %lld",
             call->phase ? call->phase : "no phase", comm->ranks[peer], (long long)sent,
             comm->world->rank, (long long)call->v.recv_bytes[peer]);
    xp_callback_fail(comm->world, XP_FAILURE_MISMATCH, -1, text);
    return xp_callback_world_status(comm->world);
}
