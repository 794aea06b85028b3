/* One call: what this rank believes it takes part in, and which way it goes. */
#include "comm/callbacks/collectives.h"

#include <stdio.h>
#include "comm/callbacks/failure.h"

static int64_t longest_part(const xp_callback_comm *comm, const xp_comm_call *call) {
    int64_t longest = 0;
    for (int r = 0; r < comm->base.size && call->kind == XP_COMM_ALL_TO_ALLV; r++) {
        longest = call->v.send_bytes[r] > longest ? call->v.send_bytes[r] : longest;
        longest = call->v.recv_bytes[r] > longest ? call->v.recv_bytes[r] : longest;
    }
    return longest;
}

static xp_callback_head begin(xp_callback_comm *comm, const xp_comm_call *call) {
    xp_callback_head head = {.n_call = ++comm->n_calls,
                             .n = call->n,
                             .longest = longest_part(comm, call),
                             .kind = (int32_t)call->kind,
                             .dtype = (int32_t)call->dtype,
                             .op = (int32_t)call->op,
                             .root = call->root};
    snprintf(head.phase, sizeof head.phase, "%s", call->phase ? call->phase : "");
    xp_liveness_set_activity(&comm->world->liveness,
                             call->phase ? call->phase : xp_comm_kind_name(call->kind));
    return head;
}

xp_status xp_callback_run(xp_comm *base, const xp_comm_call *call) {
    xp_callback_comm *comm = (xp_callback_comm *)base;
    pthread_mutex_lock(&comm->lock);
    xp_status status = xp_callback_world_status(comm->world);
    if (status == XP_OK) {
        xp_callback_head head = begin(comm, call);
        status = comm->transport ? xp_callback_run_between_nodes(comm, call, &head)
                                 : xp_callback_run_on_node(comm, call, &head);
    }
    pthread_mutex_unlock(&comm->lock);
    return status;
}
