/* The jobs of a pass in order, on one stream or two. */
#include "ep/internal.h"
#include "model/moe_job.h"

/* Of a GPU, for an exchange beside GEMMs: enough for it to end before they do. */
static const int default_overlap_sms = 16;

/* SMs that an exchange beside GEMMs takes and they leave; 0: as usual. Many SMs for an exchange that has
 * the GPU to itself would leave none to the GEMMs. */
static int overlap_sms(const xp_moe_core *core) {
    const xp_moe_core_args *args = &core->args;
    const int asked = args->ep.num_sms;
    const int chosen = asked > 0 && asked < default_overlap_sms ? asked : default_overlap_sms;
    if (args->overlap != XP_OVERLAP_GEMMS)
        return 0;
    return args->overlap_sms > 0 ? args->overlap_sms : chosen;
}

/* Of combine_send, which adds rows up as well and has a shorter GEMM beside it. */
static int send_sms(const xp_moe_core *core) {
    const int n_sms = overlap_sms(core);
    return core->args.overlap_sms > 0 ? n_sms : n_sms + n_sms / 2;
}

/* Job i of the pass, counting the parts' rounds through; false past the last. */
static bool job_at(xp_moe_core *core, const xp_moe_pass *pass, int64_t i, xp_stream *compute,
                   xp_stream *comm, xp_moe_job *j) {
    int64_t index = i;
    for (int p = 0; p < core->n_parts; p++) {
        xp_moe_part *part = &pass->saved->parts[p];
        if (index >= part->n_rounds) {
            index -= part->n_rounds;
            continue;
        }
        int64_t begin = xp_moe_part_begin(core, pass->n_tokens, p);
        *j = (xp_moe_job){.core = core,
                          .pass = pass,
                          .part = part,
                          .slot = &core->slots[i % core->n_slots],
                          .compute = compute,
                          .comm = comm,
                          .begin = begin,
                          .n_tokens = xp_moe_part_begin(core, pass->n_tokens, p + 1) - begin,
                          .index = i,
                          .round = index,
                          .turn = core->turn,
                          .spare_sms = compute != comm ? overlap_sms(core) : 0,
                          .send_sms = compute != comm ? send_sms(core) : 0,
                          .first = i == 0,
                          .last = p + 1 == core->n_parts && index + 1 == part->n_rounds};
        return true;
    }
    return false;
}

/* With an exchange stream the exchange is queued first, so that it takes its SMs before the weight
 * gradients take all that are left. */
static xp_status finish(const xp_moe_job *j, const xp_moe_phases *phase) {
    const bool first = j->compute == j->comm;
    if (phase->weights && first)
        XP_TRY(phase->weights(j));
    XP_TRY(phase->leave(j));
    return phase->weights && !first ? phase->weights(j) : XP_OK;
}

/* Where its phases do not say otherwise, a later round has the compute stream alone. */
static void choose_streams(const xp_moe_phases *phase, xp_moe_job *j) {
    if (j->round == 0 || j->core->n_parts > 1 || phase->all_rounds_beside)
        return;
    j->comm = j->compute;
    j->spare_sms = j->send_sms = 0;
}

static xp_status run_jobs(xp_moe_core *core, const xp_moe_pass *pass, const xp_moe_phases *phase,
                          xp_stream *compute, xp_stream *comm) {
    xp_moe_job now, next;
    bool more = job_at(core, pass, 0, compute, comm, &now);
    if (more)
        XP_TRY(phase->arrive(&now));
    for (int64_t i = 1; more; i++, now = next) {
        more = job_at(core, pass, i, compute, comm, &next);
        if (more)
            choose_streams(phase, &next);
        /* With two sets of buffers the next job is dispatched while this one computes. */
        if (more && core->n_slots > 1)
            XP_TRY(phase->arrive(&next));
        XP_TRY(phase->experts(&now));
        XP_TRY(finish(&now, phase));
        if (more && core->n_slots == 1)
            XP_TRY(phase->arrive(&next));
    }
    return XP_OK;
}

/* Later work of `to` starts after what is queued on `from`. */
static xp_status join(const xp_moe_core *core, xp_stream *from, xp_stream *to) {
    if (from == to)
        return XP_OK;
    XP_TRY(xp_event_record(core->routed, from));
    return xp_event_wait(core->routed, to);
}

/* Rows of the arena; NULL when the step has used it up. */
static void *arena_rows(xp_moe_arena *arena, int64_t n_rows) {
    if (!arena->base || arena->n_rows - arena->used < n_rows)
        return NULL;
    void *rows = arena->base + arena->used * arena->row_bytes;
    arena->used += n_rows;
    return rows;
}

/* How many rounds are run, and how many rows are kept of them: all of the routing's where the host may
 * look at them. On a GPU it never waits for counts: it runs as many rounds as some transports know
 * anyway, else as many as there can be, and keeps room for a whole round. */
static xp_status read_rounds(const xp_moe_core *core, xp_moe_part *part, int64_t *n_kept) {
    part->saves_all = xp_device_host_accessible(core->args.device);
    if (part->saves_all) {
        xp_ep_counts counts;
        XP_TRY(xp_ep_plan_wait(part->plan, &counts));
        part->n_rounds = counts.n_rounds;
        part->rounds_known = true;
        *n_kept = counts.n_assignments;
        return XP_OK;
    }
    part->rounds_known = xp_ep_plan_known_rounds(part->plan, &part->n_rounds);
    *n_kept = core->sizes.assignment_capacity;
    return XP_OK;
}

/* Routing of a part -> plan, number of rounds, and where its rows are kept for backward. */
static xp_status plan_part(xp_moe_core *core, const xp_moe_pass *pass, int p, xp_stream *comm) {
    xp_moe_part *part = &pass->saved->parts[p];
    int64_t begin = xp_moe_part_begin(core, pass->n_tokens, p);
    int64_t n = xp_moe_part_begin(core, pass->n_tokens, p + 1) - begin;
    int top_k = core->args.top_k;
    int64_t n_assignments;
    XP_TRY(xp_ep_plan_build(core->group, pass->saved->topk_idx + begin * top_k,
                            pass->saved->topk_weight + begin * top_k, n, comm, part->plan));
    XP_TRY(read_rounds(core, part, &n_assignments));
    part->gate_up = arena_rows(&core->gate_up_arena, n_assignments);
    part->recv = arena_rows(&core->recv_arena, core->sizes.recv_capacity);
    return XP_OK;
}

xp_status xp_moe_core_forward(xp_moe_core *core, const xp_moe_pass *pass, xp_stream *stream) {
    xp_stream *comm = core->comm_stream ? core->comm_stream : stream;
    /* With one part the experts wait for its plan anyway. */
    xp_stream *planner = core->n_parts > 1 ? comm : stream;
    XP_TRY(xp_moe_route(core, pass, stream));
    XP_TRY(join(core, stream, planner));
    for (int p = 0; p < core->n_parts; p++)
        XP_TRY(plan_part(core, pass, p, planner));
    if (planner != comm)
        XP_TRY(join(core, stream, comm));
    XP_TRY(run_jobs(core, pass, &xp_moe_forward_phases, stream, comm));
    return join(core, comm, stream);
}

xp_status xp_moe_core_backward_begin(xp_moe_core *core, const xp_moe_pass *pass,
                                     xp_stream *stream) {
    xp_moe_job j;
    if (!core->comm_stream || !job_at(core, pass, 0, stream, core->comm_stream, &j))
        return XP_OK;
    core->begun = pass->saved;
    XP_TRY(join(core, stream, core->comm_stream));
    xp_ep_group_set_sms(core->group, overlap_sms(core));
    return xp_moe_send_d_out(&j);
}

/* Whether the exchange of the backward pass sends x again. */
static bool sends_x(const xp_moe_core *core, const xp_moe_pass *pass) {
    for (int p = 0; p < core->n_parts; p++)
        if (!pass->saved->parts[p].recv || pass->saved->parts[p].n_rounds > 1)
            return true;
    return false;
}

xp_status xp_moe_core_backward(xp_moe_core *core, const xp_moe_pass *pass, xp_stream *stream) {
    xp_stream *comm = core->comm_stream ? core->comm_stream : stream;
    XP_TRY(xp_moe_core_backward_end(core, stream));
    /* What began early has waited for d_out, not for x. */
    if (core->begun != pass->saved || sends_x(core, pass))
        XP_TRY(join(core, stream, comm));
    xp_ep_group_set_sms(core->group, overlap_sms(core));
    XP_TRY(run_jobs(core, pass, &xp_moe_backward_phases, stream, comm));
    core->begun = NULL;
    core->turn ^= core->deferred.pending;
    XP_TRY(join(core, comm, stream));
    return xp_moe_route_backward(core, pass, stream);
}

bool xp_moe_core_is_deferred(const xp_moe_core *core) {
    return core->deferred.pending;
}

xp_status xp_moe_core_backward_end(xp_moe_core *core, xp_stream *stream) {
    xp_moe_deferred *deferred = &core->deferred;
    xp_moe_job j;
    if (!deferred->pending)
        return XP_OK;
    deferred->pending = false;
    if (!job_at(core, &deferred->pass, deferred->job, stream, core->comm_stream, &j))
        return xp_error(XP_EINTERNAL, "MoE layer: the deferred job is gone");
    j.turn = deferred->turn;
    return xp_moe_w2_gradient(&j);
}
