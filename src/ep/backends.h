/** All backends, and how a group finds its own. */
#ifndef XP_EP_BACKENDS_H
#define XP_EP_BACKENDS_H

#include "ep/backend.h"

extern const xp_ep_backend xp_ep_cpu_local, xp_ep_cpu_p2p, xp_ep_cpu_a2a, xp_ep_cpu_hierarchical;
extern const xp_ep_backend xp_ep_null_local, xp_ep_null_p2p, xp_ep_null_a2a,
    xp_ep_null_hierarchical;

/** A device's backends; libexpar_cuda.so brings the GPU's. */
typedef struct xp_ep_backend_set {
    const xp_ep_backend *local; /* one rank, whatever the transport */
    const xp_ep_backend *p2p, *a2a, *hierarchical;
} xp_ep_backend_set;

/** @return XP_OK; XP_ENOTSUP: there are no kernels for this device */
XP_NODISCARD xp_status xp_ep_backend_find(xp_device_kind device, xp_ep_transport transport,
                                          int n_ranks, const xp_ep_backend **backend);
/** The backend that knows the sizes; works on every machine. AUTO counts as p2p. */
const xp_ep_backend *xp_ep_backend_for_sizes(xp_ep_transport transport, int n_ranks);

#endif
