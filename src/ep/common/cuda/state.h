/** What a group has on a GPU, whatever its transport: the status block, row blocks, placement. */
#ifndef XP_EP_COMMON_CUDA_STATE_H
#define XP_EP_COMMON_CUDA_STATE_H

#include "ep/common/call.h"
#include "ep/common/cuda/kernels.h"
#include "ep/common/exchange.h"

/** First member of a transport's device state. */
typedef struct xp_ep_cuda_state {
    xp_ep_cuda_status *status,
        *device_status; /* one block, as the host and as kernels address it */
    xp_ep_cuda_status at_reset;
    int n_row_blocks, n_local_blocks; /* of the row kernels: see xp_ep_cuda_rows */
    bool bulk;                        /* likewise */
    int n_waiting_blocks;
    bool ready; /* group_create succeeded */
    /* Several ranks: */
    int *gpus;               /* [R] each rank's GPU as its process numbers it */
    bool gpus_shared;        /* some ranks are on the same GPU, or other groups use these GPUs */
    int64_t *bytes;          /* [4, R] memory of `exchange` */
    xp_ep_exchange exchange; /* of assignments or their rows, the one being made */
} xp_ep_cuda_state;

static inline xp_ep_cuda_state *xp_ep_cuda_state_of(const xp_ep_group *group) {
    return group->device_state;
}
xp_cuda_device *xp_ep_cuda_device(const xp_ep_group *group);

/**
 * Make group->device_state, and with several ranks find out which GPU each rank uses. Collective.
 *
 * Loads the plan kernels; a transport loads its own in group_create. Nothing of a group may be loaded,
 * reserved or connected at its first use: such a call waits for the kernels that run on the GPU, and one
 * of them may be a barrier that waits for the rank that makes the call. So a group_create ends with
 * xp_ep_cuda_ready(), and no rank's kernels wait for a rank that is not ready.
 * @param n_bytes  of the transport's state, which begins with xp_ep_cuda_state
 */
XP_NODISCARD xp_status xp_ep_cuda_state_create(xp_ep_group *group, size_t n_bytes);
/** End of group_create, all kernels loaded: a barrier of the hosts. */
XP_NODISCARD xp_status xp_ep_cuda_ready(xp_ep_group *group);
/** NULL state is accepted. */
void xp_ep_cuda_state_destroy(xp_ep_group *group);
/**
 * Before memory that peers use is freed: wait for the GPU and, while the group is healthy, for the
 * other ranks. @return the group's failure, XP_OK without
 */
xp_status xp_ep_cuda_stop(const xp_ep_group *group, xp_status status);

/** The call's CUDA stream; XP_ECOMM when the communicator has failed: nothing may be queued. */
XP_NODISCARD xp_status xp_ep_cuda_enter(const xp_ep_call *call, cudaStream_t *stream);
xp_ep_cuda_rows xp_ep_cuda_rows_of(const xp_ep_call *call);
/** Zeros for entries without an assignment, in round 0. */
XP_NODISCARD xp_status xp_ep_cuda_clear_weights(const xp_ep_call *call, cudaStream_t stream,
                                                const xp_ep_combine_args *args);

/* Entries of xp_ep_backend. */

xp_status xp_ep_cuda_routing_error(const xp_ep_group *group);
void xp_ep_cuda_abort_flags_of(const xp_ep_group *group, const int32_t *flags[2]);
void xp_ep_cuda_add_stats(const xp_ep_group *group, xp_ep_stats *stats);
void xp_ep_cuda_reset_stats(xp_ep_group *group);

#endif
