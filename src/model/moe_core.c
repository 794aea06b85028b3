#include "model/moe_core_internal.h"

#include <math.h>
#include <stdlib.h>
#include "device/device_internal.h"
#include "ep/internal.h"

xp_overlap xp_overlap_choose(int64_t asked, int n_ranks, bool on_gpu, bool shares_gpus) {
    if (asked > 0)
        return XP_OVERLAP_HALVES;
    return asked < 0 && n_ranks > 1 && on_gpu && !shares_gpus ? XP_OVERLAP_GEMMS : XP_OVERLAP_NONE;
}

int64_t xp_moe_part_begin(const xp_moe_core *core, int64_t n_tokens, int part) {
    if (part == 0)
        return 0;
    if (part == core->n_parts)
        return n_tokens;
    return (int64_t)llround(core->args.overlap_split * (double)n_tokens);
}

static int64_t largest_part(const xp_moe_core *core) {
    int64_t max = 0;
    for (int p = 0; p < core->n_parts; p++) {
        int64_t begin = xp_moe_part_begin(core, core->args.max_tokens, p);
        int64_t end = xp_moe_part_begin(core, core->args.max_tokens, p + 1);
        /* Rounding of a shorter microbatch may fall one token to either side. */
        int64_t n = end - begin + (core->n_parts > 1 ? 1 : 0);
        max = n > max ? n : max;
    }
    return max < core->args.max_tokens ? max : core->args.max_tokens;
}

/* n_bytes: at least, and at least what the rows take. */
static void carve_arena(xp_moe_arena *arena, int64_t row_bytes, int64_t n_rows, int64_t n_bytes,
                        xp_slab *slab) {
    *arena = (xp_moe_arena){.row_bytes = row_bytes, .n_rows = n_rows};
    n_bytes = n_rows * row_bytes > n_bytes ? n_rows * row_bytes : n_bytes;
    if (n_bytes > 0)
        arena->base = xp_slab_take(slab, (size_t)n_bytes);
}

/* Rows that a layer may save before the first GEMM: what their capacity holds, so that a
 * step whose rounds fit recomputes nothing, or fewer when the caller says so. A rank without room
 * runs the GEMM again on its own. */
static int64_t gate_up_layer_rows(const xp_moe_core *core) {
    const xp_moe_core_args *args = &core->args;
    if (!args->save_gate_up || args->inference)
        return 0;
    const int64_t balanced = args->max_tokens * args->top_k;
    const double asked = ceil(args->saved_rows_factor * (double)balanced);
    int64_t layer = core->sizes.assignment_capacity * core->n_parts;
    if (args->n_ranks == 1)
        layer = balanced; /* exact, also over several rounds */
    else if (args->saved_rows_factor > 0.0 && asked < (double)layer)
        layer = (int64_t)asked;
    return layer;
}

/* The same for all layers together. */
static int64_t gate_up_rows(const xp_moe_core *core) {
    return core->args.n_layers * gate_up_layer_rows(core);
}

/* Where gradients lie on rows of layers whose backward is done: only where every layer finds room for all
 * its rows, so that they are the layer's own n-th part of the arena, or before it. */
static int64_t place_grads(const xp_moe_core *core, int64_t row_bytes) {
    const int64_t rows = gate_up_layer_rows(core);
    if (!core->args.grads || rows < core->n_parts * core->sizes.assignment_capacity)
        return -1;
    return xp_spent_rows_offset(core->args.grads, rows * row_bytes);
}

/* Dispatching again is collective, so either every rank has room or none: the most a round can
 * hold, for each layer. */
static int64_t recv_rows(const xp_moe_core *core) {
    const xp_moe_core_args *args = &core->args;
    if (!args->save_recv || args->inference || args->n_ranks == 1)
        return 0;
    return args->n_layers * core->n_parts * core->sizes.recv_capacity;
}

static void carve_activations(xp_moe_core *core, xp_slab *slab) {
    const int64_t element = (int64_t)xp_dtype_bytes(core->args.dtype);
    const int64_t gate_up = 2 * core->args.moe_dim * element;
    core->grads_at = place_grads(core, gate_up);
    carve_arena(&core->gate_up_arena, gate_up, gate_up_rows(core),
                core->grads_at < 0 ? 0 : core->grads_at + core->args.grads->n_bytes, slab);
    carve_arena(&core->recv_arena, core->args.dim * element, recv_rows(core), 0, slab);
}

static void carve_slot(const xp_moe_core *core, xp_moe_slot *slot, xp_slab *slab) {
    const xp_moe_core_args *args = &core->args;
    size_t row = (size_t)args->dim * xp_dtype_bytes(args->dtype);
    size_t recv = (size_t)core->sizes.recv_capacity * row;
    size_t assignments = (size_t)core->sizes.assignment_capacity;
    slot->rows = xp_slab_take(slab, assignments * row);
    if (!args->inference)
        slot->dp = xp_slab_take(slab, assignments * sizeof(float));
    /* One rank with room for every assignment never dispatches. */
    if (args->n_ranks == 1 && core->sizes.max_rounds == 1)
        return;
    slot->received[1] = xp_slab_take(slab, recv);
    if (!args->inference)
        slot->received[0] = xp_slab_take(slab, recv);
}

/* The arena holds whatever a routing sends to every layer, so no layer ever needs rows to itself. */
static bool always_saved(const xp_moe_core *core) {
    const int64_t most = core->args.n_layers * core->n_parts * core->sizes.assignment_capacity;
    return core->sizes.max_rounds == 1 && gate_up_rows(core) >= most;
}

static void carve_workspace(xp_moe_core *core, xp_slab *slab) {
    const xp_moe_core_args *args = &core->args;
    size_t element = xp_dtype_bytes(args->dtype), f32 = sizeof(float);
    size_t assignments = (size_t)core->sizes.assignment_capacity, tokens = (size_t)args->max_tokens;
    size_t experts = (size_t)args->n_experts;
    for (int i = 0; i < core->n_slots; i++)
        carve_slot(core, &core->slots[i], slab);
    if (!always_saved(core))
        core->gate_up = xp_slab_take(slab, assignments * 2 * (size_t)args->moe_dim * element);
    core->h = xp_slab_take(slab, assignments * (size_t)args->moe_dim * element);
    if (args->forced != XP_FORCED_NONE)
        core->forced = xp_slab_take(slab, tokens * (size_t)args->top_k * sizeof(int32_t));
    if (args->inference)
        return;
    core->d_topk_weight = xp_slab_take(slab, tokens * (size_t)args->top_k * f32);
    core->d_logits = xp_slab_take(slab, tokens * experts * f32);
    if (args->dtype != XP_F32)
        core->router_scratch = xp_slab_take(
            slab, xp_router_linear_scratch(args->max_tokens, args->n_experts, args->dim));
}

/* Count, reserve, hand out. */
static xp_status reserve(xp_moe_core *core) {
    xp_device *device = core->args.device;
    xp_slab count = {0};
    carve_activations(core, &count);
    XP_TRY(xp_device_alloc(device, count.used, "activations", &core->activations));
    xp_slab slab = {.base = core->activations, .n_bytes = count.used};
    carve_activations(core, &slab);
    count = (xp_slab){0};
    carve_workspace(core, &count);
    XP_TRY(xp_device_alloc(device, count.used, "workspace", &core->workspace));
    slab = (xp_slab){.base = core->workspace, .n_bytes = count.used};
    carve_workspace(core, &slab);
    return XP_OK;
}

static xp_status create_group(xp_moe_core *core) {
    xp_moe_core_args *args = &core->args;
    core->n_parts = args->overlap == XP_OVERLAP_HALVES && args->n_ranks > 1 ? 2 : 1;
    core->n_slots = core->n_parts;
    core->n_local = args->n_experts / args->n_ranks;
    args->ep.max_tokens = largest_part(core);
    args->ep.dim = args->dim;
    args->ep.top_k = args->top_k;
    args->ep.n_experts = args->n_experts;
    args->ep.dtype = args->dtype;
    args->ep.n_slots = core->n_parts;
    if (core->is_null) /* the group chooses by itself where there is one */
        XP_TRY(xp_ep_choose_transport(&args->ep, args->ep.n_nodes <= 1));
    XP_TRY(xp_ep_query_sizes(&args->ep, args->n_ranks, &core->sizes));
    if (core->is_null) {
        const size_t comm_bytes = xp_ep_comm_bytes(&args->ep, args->n_ranks);
        if (comm_bytes > 0 && !args->shares_gpus)
            XP_TRY(xp_device_alloc(args->device, comm_bytes, "communication", &core->comm_bytes));
        /* No communicator and no peers: what a group and its plans would hold is counted only. */
        size_t plans = (size_t)(core->n_parts * (args->inference ? 1 : args->n_layers));
        return xp_device_alloc(args->device,
                               core->sizes.group_bytes + plans * core->sizes.plan_bytes, "ep",
                               &core->plan_bytes);
    }
    return xp_ep_group_create(args->comm, args->device, &args->ep, &core->group);
}

static xp_status create_events(xp_moe_core *core) {
    if (core->args.overlap == XP_OVERLAP_NONE || core->args.n_ranks == 1)
        return XP_OK;
    xp_device *device = core->args.device;
    XP_TRY(xp_stream_create(device, XP_STREAM_WORKER, &core->comm_stream));
    XP_TRY(xp_event_create(device, &core->routed));
    for (int i = 0; i < core->n_slots; i++) {
        xp_moe_slot *slot = &core->slots[i];
        XP_TRY(xp_event_create(device, &slot->arrived));
        XP_TRY(xp_event_create(device, &slot->ready));
        XP_TRY(xp_event_create(device, &slot->spent));
        XP_TRY(xp_event_create(device, &slot->sent));
    }
    return XP_OK;
}

/* The forced assignments are the same in every pass: filled once. */
static xp_status fill_forced(xp_moe_core *core) {
    const xp_moe_core_args *args = &core->args;
    if (args->forced == XP_FORCED_NONE || core->is_null)
        return XP_OK;
    size_t bytes = (size_t)(args->max_tokens * args->top_k) * sizeof(int32_t);
    int32_t *ids = malloc(bytes);
    if (!ids)
        return xp_error(XP_ENOMEM, "forced balance: out of memory");
    xp_forced_balance_fill(args->forced, args->max_tokens, args->top_k, args->n_experts,
                           args->n_ranks, ids);
    xp_status status = xp_device_move(args->device, core->forced, ids, bytes);
    free(ids);
    return status;
}

/* The parts of dp lie in the room of a job's bf16 rows of D. */
static bool fuses_silu(const xp_moe_core *core) {
    const xp_moe_core_args *args = &core->args;
    const xp_silu_sizes sizes = {
        .n_experts = core->n_local, .dim = args->dim, .width = args->moe_dim, .dtype = args->dtype};
    return 2 * XP_SILU_PARTS(args->moe_dim) <= args->dim &&
           core->ops->fuses_silu(args->device, &sizes);
}

xp_status xp_moe_core_create(const xp_moe_core_args *args, xp_moe_core **core) {
    if (args->n_ranks < 1 || args->n_experts % args->n_ranks != 0)
        return xp_error(XP_EINVAL, "MoE layer: %d experts cannot be divided over %d ranks",
                        args->n_experts, args->n_ranks);
    if (args->overlap == XP_OVERLAP_HALVES &&
        !(args->overlap_split > 0.0 && args->overlap_split < 1.0))
        return xp_error(XP_EINVAL, "MoE layer: overlap_split = %g must lie between 0 and 1",
                        args->overlap_split);
    xp_moe_core *made = calloc(1, sizeof(*made));
    if (!made)
        return xp_error(XP_ENOMEM, "MoE layer: out of memory");
    made->args = *args;
    made->is_null = xp_device_get_kind(args->device) == XP_DEVICE_NULL;
    xp_status status = XP_OK;
    XP_TRY_GOTO(status, xp_ops_get(args->device, &made->ops), fail);
    XP_TRY_GOTO(status, create_group(made), fail);
    made->fuses_silu = fuses_silu(made);
    XP_TRY_GOTO(status, reserve(made), fail);
    XP_TRY_GOTO(status, create_events(made), fail);
    XP_TRY_GOTO(status, fill_forced(made), fail);
    made->args.grads = NULL;
    *core = made;
    return XP_OK;
fail:
    xp_moe_core_destroy(made);
    return status;
}

void xp_moe_core_destroy(xp_moe_core *core) {
    if (!core)
        return;
    xp_stream_destroy(core->comm_stream);
    xp_event_destroy(core->routed);
    for (int i = 0; i < core->n_slots; i++) {
        xp_event_destroy(core->slots[i].arrived);
        xp_event_destroy(core->slots[i].ready);
        xp_event_destroy(core->slots[i].spent);
        xp_event_destroy(core->slots[i].sent);
    }
    xp_ep_group_destroy(core->group);
    xp_device_free(core->args.device, core->comm_bytes);
    xp_device_free(core->args.device, core->plan_bytes);
    xp_device_free(core->args.device, core->activations);
    xp_device_free(core->args.device, core->workspace);
    free(core);
}

xp_status xp_moe_core_layer_create(xp_moe_core *core, xp_moe_saved *saved) {
    for (int p = 0; p < core->n_parts && !core->is_null; p++) {
        XP_TRY(xp_ep_plan_create(core->group, &saved->parts[p].plan));
        XP_TRY(xp_ep_plan_set_slot(saved->parts[p].plan, p));
    }
    return XP_OK;
}

void xp_moe_core_layer_destroy(xp_moe_saved *saved) {
    for (int p = 0; p < XP_MOE_MAX_PARTS; p++) {
        xp_ep_plan_destroy(saved->parts[p].plan);
        saved->parts[p].plan = NULL;
    }
}

xp_moe_recomputed xp_moe_core_recomputed(const xp_moe_core *core) {
    return core->recomputed;
}

void xp_moe_core_set_recomputed(xp_moe_core *core, xp_moe_recomputed recomputed) {
    core->recomputed = recomputed;
}

void xp_moe_core_begin(xp_moe_core *core) {
    core->gate_up_arena.used = 0;
    core->recv_arena.used = 0;
    core->begun = NULL;
    core->deferred.pending = false;
}

void *xp_moe_core_grads(const xp_moe_core *core) {
    return core->grads_at < 0 ? NULL : core->gate_up_arena.base + core->grads_at;
}

bool xp_moe_core_has_one_job(const xp_moe_core *core) {
    return core->args.n_ranks == 1 && core->sizes.max_rounds == 1 && core->n_parts == 1 &&
           !core->gate_up;
}

xp_ep_group *xp_moe_core_group(const xp_moe_core *core) {
    return core->group;
}
