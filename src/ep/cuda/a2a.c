/*
 * a2a on GPUs: kernels pack one row an assignment, the communicator exchanges device memory, kernels
 * unpack and add. How many bytes go where the host must know: it waits for the plan once a layer,
 * and once more when the plan has several rounds.
 */
#include "ep/transport/a2a.h"

#include "ep/cuda/mailbox.h"

static xp_status build(const xp_ep_step *step, cudaStream_t stream, xp_ep_cuda_plan *v) {
    const xp_ep_cuda_more nothing = {0};
    return xp_ep_cuda_mailbox_build(step, stream, v, &xp_ep_a2a_slot(step)->box, &nothing);
}

static void count_bytes(const xp_ep_step *step, bool home) {
    xp_ep_group *group = step->group;
    for (int r = 0; r < group->shape.n_ranks; r++)
        xp_ep_add(r == group->rank ? &group->totals.bytes_kept : &group->totals.bytes_sent_remote,
                  (home ? xp_ep_cuda_recv_assignments(step, r).n
                        : xp_ep_cuda_send_assignments(step, r).n) *
                      (int64_t)group->shape.row_bytes);
}

static xp_status dispatch(const xp_ep_step *step, cudaStream_t stream, const void *x, void *recv) {
    const xp_ep_cuda_plan v = xp_ep_cuda_view(step);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    const a2a_slot *slot = xp_ep_a2a_slot(step);
    XP_TRY(xp_ep_cuda_pack_rows(stream, &v, &rows, x, slot->out));
    count_bytes(step, false);
    XP_TRY(xp_ep_cuda_exchange_assignments(step, &slot->box, false, (int64_t)rows.row_bytes,
                                           slot->out, slot->in));
    return xp_ep_cuda_unpack_rows(stream, &v, &rows, slot->in, recv);
}

static xp_status bring_home(const xp_ep_step *step, cudaStream_t stream, const xp_ep_home *home) {
    const xp_ep_cuda_plan v = xp_ep_cuda_view(step);
    const xp_ep_cuda_rows rows = xp_ep_cuda_rows_of(step);
    const a2a_slot *slot = xp_ep_a2a_slot(step);
    XP_TRY(xp_ep_cuda_pack_assignments(stream, &v, &rows, home->y, slot->in));
    count_bytes(step, true);
    /* Rows of earlier rounds lie at other places of `out` and are still there for the sum. */
    XP_TRY(xp_ep_cuda_exchange_assignments(step, &slot->box, true, (int64_t)rows.row_bytes,
                                           slot->in, slot->out));
    XP_TRY(xp_ep_cuda_sum_assignments(stream, &v, &rows, slot->out, home->out));
    return xp_ep_cuda_mailbox_weights(step, &slot->box, home);
}

const xp_ep_cuda_exchange xp_ep_cuda_a2a = {
    .build = build, .dispatch = dispatch, .bring_home = bring_home};
