#include "ep/common/call.h"

int32_t *xp_ep_call_tile_counts(const xp_ep_call *call) {
    const xp_ep_group *group = call->group;
    return (int32_t *)((char *)group->scratch +
                       xp_ep_scratch_bytes(&group->shape) * (size_t)call->plan->slot);
}

int32_t *xp_ep_call_own_counts(const xp_ep_call *call) {
    const xp_ep_shape *s = &call->group->shape;
    return xp_ep_call_tile_counts(call) + s->n_tiles * xp_ep_tile_ints(s);
}

xp_status xp_ep_call_check_plan(const xp_ep_call *call) {
    if (xp_ep_call_fits_plan(call))
        return XP_OK;
    if (!call->plan->valid)
        return xp_error(XP_EINVAL, "%s: the plan was never built, or its last build failed",
                        call->phase);
    return xp_error(XP_EINVAL, "%s: a tensor of %lld tokens, but the plan was built for %lld",
                    call->phase, (long long)call->n_tokens, (long long)call->plan->n_tokens);
}

xp_status xp_ep_call_check_order(const xp_ep_call *call) {
    xp_ep_open_sum *sum = &call->group->sums[call->plan->slot];
    if (call->round > 0 &&
        (sum->plan != call->plan || sum->phase != call->phase || sum->next_round != call->round))
        return xp_error(XP_EINVAL,
                        "%s: round %lld does not follow round %lld of the same sum; finish the "
                        "rounds of one combine before "
                        "another starts in its slot",
                        call->phase, (long long)call->round, (long long)call->round - 1);
    *sum =
        (xp_ep_open_sum){.plan = call->plan, .phase = call->phase, .next_round = call->round + 1};
    return XP_OK;
}
