/** The GPU's table for expert parallelism (see ep/device_ops.h), and what its files share. */
#ifndef XP_EP_CUDA_CUDA_GROUP_H
#define XP_EP_CUDA_CUDA_GROUP_H

#include "ep/cuda/ep_cuda.h"
#include "ep/cuda/gates.h"
#include "ep/device_ops.h"
#include "ep/transport/exchange.h"
#include "ep/transport/transport.h"

extern const xp_ep_device_ops xp_ep_cuda_ops;

/** How ranks meet over p2p. */
typedef enum xp_ep_cuda_meeting {
    /* A kernel waits for the peers' flags: each rank on a GPU of its own. The host is not needed.
     */
    XP_EP_MEET_ON_GPU = 0,
    /* Streams wait for marks on the peers' streams, which the hosts show each other: threads that
     * share a GPU. Kernels that wait for each other there may never run side by side: CUDA does not
     * promise that streams do. Marks are waited for only when what they wait for is queued. */
    XP_EP_MEET_BY_MARKS,
    /* The host waits for its stream and then for the other hosts: processes that share a GPU, and
     * tools that run one kernel at a time. */
    XP_EP_MEET_ON_HOST,
} xp_ep_cuda_meeting;

/** Which meeting a host has come to: all must have come to the same. */
typedef struct xp_ep_cuda_note {
    int32_t slot, point;
    uint32_t epoch;
    int64_t round;
} xp_ep_cuda_note;

typedef struct xp_ep_cuda_state {
    xp_ep_cuda_news *news, *news_on_device;
    xp_ep_cuda_news at_reset;
    int n_row_blocks; /* of kernels that move rows */
    bool ready;       /* create came to its end */
    xp_ep_cuda_meeting meets;
    int *devices; /* [R] each rank's GPU, as this process numbers it; threads */
    xp_ep_gates *gates;
    int64_t *bytes;          /* [4, R] memory of `exchange` */
    xp_ep_exchange exchange; /* of assignments or their rows, the one being made */
    /* Where hosts meet: a communicator that nobody else uses, and what each says of its meeting. */
    xp_comm *hosts;
    xp_ep_cuda_note *notes; /* [R] */
    /* Two marks in turn: when a rank sets one again, all have met since and queued their waits. */
    cudaEvent_t marks[2], *all_marks; /* [R, 2]; meetings by marks */
    int64_t n_meetings;
} xp_ep_cuda_state;

static inline xp_ep_cuda_state *xp_ep_cuda_state_of(const xp_ep_step *step) {
    return step->group->device_state;
}

/** Before anything of a call is queued; XP_ECOMM, and nothing to end, when the group has failed. */
XP_NODISCARD xp_status xp_ep_cuda_begin(const xp_ep_step *step, cudaStream_t *stream);
/** After a call; passes `status` on. */
xp_status xp_ep_cuda_end(const xp_ep_step *step, xp_status status);
/** After a failure, between threads: until no rank's kernels can use this one's memory any more.
 * Not inside a call. */
void xp_ep_cuda_wait_out(const xp_ep_group *group);
/** An index for `phase` that kernels can carry. */
int xp_ep_cuda_phase(const char *phase);
/** XP_ECOMM on this rank, and soon on all, when a meeting has failed. Never waits. */
xp_status xp_ep_cuda_check_group(const xp_ep_group *group);

/** The table's entries in calls.c. */
xp_status xp_ep_cuda_build(const xp_ep_step *step, const int32_t *topk_idx,
                           const float *topk_weight, int64_t n_tokens);
xp_status xp_ep_cuda_dispatch(const xp_ep_step *step, const void *x, void *recv);
xp_status xp_ep_cuda_bring_home(const xp_ep_step *step, const xp_ep_home *home);
void xp_ep_cuda_miss(const xp_ep_step *step);
xp_status xp_ep_cuda_wait(xp_ep_plan *plan, xp_ep_counts *counts);

/** The kernels' view of a plan, and how rows are moved. */
xp_ep_cuda_plan xp_ep_cuda_view(const xp_ep_step *step);
xp_ep_cuda_rows xp_ep_cuda_rows_of(const xp_ep_step *step);
/** Copies from the plan to page-locked memory, and a wait of the host for them. */
typedef struct xp_ep_cuda_fetch {
    void *to;
    const void *from;
    size_t n_bytes;
} xp_ep_cuda_fetch;
XP_NODISCARD xp_status xp_ep_cuda_fetch_all(const xp_ep_step *step, const xp_ep_cuda_fetch *all,
                                            int n);

/** One transport over several ranks. `view` has routing and tokens filled in; plan->n_rounds is
 * max_rounds, or what `build` has found out. Between begin and end. */
typedef struct xp_ep_cuda_exchange {
    xp_status (*build)(const xp_ep_step *step, cudaStream_t stream, xp_ep_cuda_plan *view);
    xp_status (*dispatch)(const xp_ep_step *step, cudaStream_t stream, const void *x, void *recv);
    xp_status (*bring_home)(const xp_ep_step *step, cudaStream_t stream, const xp_ep_home *home);
} xp_ep_cuda_exchange;
extern const xp_ep_cuda_exchange xp_ep_cuda_p2p, xp_ep_cuda_a2a, xp_ep_cuda_hierarchical;
/** The meetings by marks of a dispatch or combine over p2p, and nothing else. */
XP_NODISCARD xp_status xp_ep_cuda_attend(const xp_ep_step *step, cudaStream_t stream);

#endif
