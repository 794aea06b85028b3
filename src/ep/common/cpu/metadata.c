#include "ep/common/cpu/metadata.h"

#include <string.h>
#include "comm/provider.h"
#include "core/file.h"
#include "ep/common/cpu/combine.h"
#include "ep/common/cpu/kernels.h"
#include "ep/common/cpu/plan.h"

static xp_status exchange_counts(const xp_ep_call *call, const xp_ep_metadata *metadata,
                                 const int32_t *own_counts) {
    const double started = xp_time_s();
    xp_comm_set_phase(metadata->comm, call->phase);
    const xp_status status = xp_comm_all_gather(metadata->comm, own_counts, call->plan->rank_counts,
                                                call->group->shape.counts_ints, XP_I32, NULL);
    xp_ep_add(&call->group->totals.wait_ns, (int64_t)((xp_time_s() - started) * 1e9));
    return status;
}

static xp_status exchange_assignments(const xp_ep_call *call, const xp_ep_metadata *metadata) {
    const xp_ep_plan *plan = call->plan;
    const xp_ep_shape *s = &call->group->shape;
    const int64_t size = sizeof(xp_ep_assignment);
    int64_t arrived = 0;
    for (int r = 0; r < s->n_ranks; r++) {
        const int32_t *out = plan->send_assignment_base + r;
        const int64_t in =
            xp_ep_counts_assignments(s, plan->rank_counts, r, call->group->rank) * size;
        xp_ep_exchange_set(&metadata->exchange, r, (out[1] - out[0]) * size, out[0] * size, in,
                           arrived);
        arrived += in;
    }
    return xp_ep_exchange_run(call, &metadata->exchange, metadata->comm, metadata->assignments_out,
                              metadata->assignments_in, NULL);
}

xp_ep_assignment *xp_ep_cpu_metadata_target(const xp_ep_call *call, const xp_ep_metadata *metadata,
                                            int dest) {
    const xp_ep_shape *s = &call->group->shape;
    if (s->metadata_bytes > 0)
        return (xp_ep_assignment *)(metadata->at_once_out + (size_t)dest * s->metadata_bytes +
                                    xp_ep_metadata_counts_bytes(s));
    return (xp_ep_assignment *)metadata->assignments_out + call->plan->send_assignment_base[dest];
}

/* Counts and assignments in one exchange of fixed size. */
static xp_status exchange_at_once(const xp_ep_call *call, const xp_ep_metadata *metadata,
                                  const int32_t *own_counts) {
    const xp_ep_shape *s = &call->group->shape;
    const int64_t each = (int64_t)s->metadata_bytes;
    const size_t n_counts = (size_t)s->counts_ints;
    int32_t *rank_counts = call->plan->rank_counts;
    for (int r = 0; r < s->n_ranks; r++) {
        memcpy(metadata->at_once_out + r * each, own_counts, n_counts * sizeof *own_counts);
        xp_ep_exchange_set(&metadata->exchange, r, each, r * each, each, r * each);
    }
    XP_TRY(xp_ep_exchange_run(call, &metadata->exchange, metadata->comm, metadata->at_once_out,
                              metadata->at_once_in, NULL));
    for (int r = 0; r < s->n_ranks; r++)
        memcpy(rank_counts + (size_t)r * n_counts, metadata->at_once_in + r * each,
               n_counts * sizeof *rank_counts);
    XP_TRY(xp_ep_counts_check(call->group, rank_counts));
    xp_ep_assignment *to = metadata->assignments_in;
    for (int r = 0; r < s->n_ranks; r++) {
        const int32_t n = xp_ep_counts_assignments(s, rank_counts, r, call->group->rank);
        memcpy(to, metadata->at_once_in + r * each + xp_ep_metadata_counts_bytes(s),
               (size_t)n * sizeof *to);
        to += n;
    }
    return XP_OK;
}

xp_status xp_ep_cpu_metadata_exchange(const xp_ep_call *call, const xp_ep_metadata *metadata,
                                      const int32_t *own_counts,
                                      const xp_ep_assignment **assignments) {
    *assignments = metadata->assignments_in;
    if (call->group->shape.metadata_bytes > 0)
        return exchange_at_once(call, metadata, own_counts);
    XP_TRY(exchange_counts(call, metadata, own_counts));
    XP_TRY(xp_ep_counts_check(call->group, call->plan->rank_counts));
    return exchange_assignments(call, metadata);
}

xp_status xp_ep_cpu_metadata_weights(const xp_ep_call *call, const xp_ep_metadata *metadata,
                                     const xp_ep_combine_args *args) {
    const xp_ep_plan *plan = call->plan;
    const int64_t size = sizeof(float);
    if (!args->d_weight)
        return XP_OK;
    const int32_t first = plan->recv_assignment[plan->round_row[call->round]];
    const int32_t end = plan->recv_assignment[plan->round_row[call->round + 1]];
    xp_ep_cpu_copy_floats(call->stream,
                          &(xp_ep_copy_floats_args){.n = end - first,
                                                    .dst = metadata->weights_out,
                                                    .src = args->d_weight,
                                                    .src_index = plan->assignment_pos + first});
    for (int r = 0; r < call->group->shape.n_ranks; r++) {
        const xp_ep_span out = xp_ep_plan_recv_assignments(plan, r, call->round),
                         in = xp_ep_plan_send_assignments(plan, r, call->round);
        xp_ep_exchange_set(&metadata->exchange, r, out.n * size, (out.first - first) * size,
                           in.n * size, in.first * size);
    }
    XP_TRY(xp_ep_exchange_run(call, &metadata->exchange, metadata->comm, metadata->weights_out,
                              metadata->weights_in, NULL));
    xp_ep_cpu_scatter_weights(call, metadata->weights_in, args->d_topk_weight);
    return XP_OK;
}
