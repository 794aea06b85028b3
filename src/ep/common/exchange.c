#include "ep/common/exchange.h"

#include "core/file.h"

void xp_ep_exchange_carve(xp_ep_carver *c, int n_ranks, xp_ep_exchange *exchange) {
    const size_t n_bytes = (size_t)n_ranks * sizeof(int64_t);
    exchange->send_bytes = xp_ep_carve(c, n_bytes);
    exchange->send_offsets = xp_ep_carve(c, n_bytes);
    exchange->recv_bytes = xp_ep_carve(c, n_bytes);
    exchange->recv_offsets = xp_ep_carve(c, n_bytes);
}

void xp_ep_exchange_set(const xp_ep_exchange *exchange, int i, int64_t out, int64_t out_at,
                        int64_t in, int64_t in_at) {
    exchange->send_bytes[i] = out;
    exchange->send_offsets[i] = out_at;
    exchange->recv_bytes[i] = in;
    exchange->recv_offsets[i] = in_at;
}

xp_status xp_ep_exchange_run(const xp_ep_call *call, const xp_ep_exchange *exchange, xp_comm *comm,
                             const void *send, void *recv, xp_stream *stream) {
    const xp_alltoallv_args args = {.send = send,
                                    .send_bytes = exchange->send_bytes,
                                    .send_offsets = exchange->send_offsets,
                                    .recv = recv,
                                    .recv_bytes = exchange->recv_bytes,
                                    .recv_offsets = exchange->recv_offsets};
    const double started = xp_time_s();
    xp_comm_set_phase(comm, call->phase);
    const xp_status status = xp_comm_all_to_allv(comm, &args, stream);
    if (!stream)
        xp_ep_add(&call->group->totals.wait_ns, (int64_t)((xp_time_s() - started) * 1e9));
    return status;
}

xp_status xp_ep_exchange_copies(const xp_ep_call *call, const xp_ep_exchange_copy *copy,
                                xp_stream *stream) {
    if (call->group->shape.send_copies > 1)
        xp_ep_exchange_set(copy->exchange, copy->own, 0, 0, 0, 0);
    for (int i = 1; i < call->group->shape.send_copies; i++)
        XP_TRY(
            xp_ep_exchange_run(call, copy->exchange, copy->comm, copy->send, copy->copies, stream));
    return XP_OK;
}
