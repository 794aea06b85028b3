/* Plans as callers see them. */
#include <stdlib.h>
#include "ep/backend.h"
#include "ep/internal.h"
#include "device/scope.h"

xp_status xp_ep_plan_create(xp_ep_group *group, xp_ep_plan **plan) {
    XP_DEVICE_SCOPE(group ? group->device : NULL);
    if (!group || !plan)
        return xp_error(XP_EINVAL, "xp_ep_plan_create: group and plan must not be NULL");
    xp_ep_plan *p = calloc(1, sizeof *p);
    if (!p)
        return xp_error(XP_ENOMEM, "no memory for an expert parallel plan");
    p->group = group;
    const xp_status status = group->backend->plan_create(p);
    if (status != XP_OK) {
        xp_ep_plan_destroy(p);
        return status;
    }
    *plan = p;
    return XP_OK;
}

void xp_ep_plan_destroy(xp_ep_plan *plan) {
    XP_DEVICE_SCOPE(plan ? plan->group->device : NULL);
    if (!plan)
        return;
    xp_ep_open_combine *open = &plan->group->combines[plan->slot];
    if (open->plan == plan) /* nobody can receive it any more */
        open->plan = NULL;
    plan->group->backend->plan_destroy(plan);
    free(plan);
}

xp_status xp_ep_plan_set_slot(xp_ep_plan *plan, int slot) {
    if (!plan || slot < 0 || slot >= plan->group->shape.n_slots)
        return xp_error(
            XP_EINVAL,
            "xp_ep_plan_set_slot: no slot %d; xp_ep_config.n_slots says how many there are", slot);
    plan->slot = slot;
    return XP_OK;
}

xp_status xp_ep_plan_wait(xp_ep_plan *plan, xp_ep_counts *counts) {
    XP_DEVICE_SCOPE(plan ? plan->group->device : NULL);
    if (!plan || !counts || !plan->stream)
        return xp_error(XP_EINVAL,
                        "xp_ep_plan_wait: no plan, no counts, or the plan was never built");
    return plan->group->backend->plan_wait(plan, counts);
}

bool xp_ep_plan_known_rounds(const xp_ep_plan *plan, int64_t *n_rounds) {
    *n_rounds = plan->host_knows_rounds ? plan->n_rounds : plan->group->shape.max_rounds;
    return plan->host_knows_rounds || *n_rounds == 1;
}

xp_status xp_ep_plan_view(const xp_ep_plan *plan, int64_t round, xp_ep_view *view) {
    if (!plan || !view || round < 0 || round >= plan->group->shape.max_rounds)
        return xp_error(XP_EINVAL, "xp_ep_plan_view: no round %lld; the group has at most %lld",
                        (long long)round, plan ? (long long)plan->group->shape.max_rounds : 0LL);
    const xp_ep_shape *s = &plan->group->shape;
    *view = (xp_ep_view){0};
    if (plan->group->backend->counts_only)
        return XP_OK;
    view->offsets = plan->offsets + round * (s->n_local + 1);
    view->gather = plan->gather + round * s->assignment_capacity;
    view->weight = plan->weight + round * s->assignment_capacity;
    view->n_recv = plan->n_recv + round;
    view->own_rows = plan->own_rows + round * s->n_local * 2;
    view->own_token = plan->own_token + round * s->assignment_capacity;
    return XP_OK;
}
