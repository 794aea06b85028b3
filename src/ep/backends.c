#include "ep/backends.h"

#include "device/plugin.h"

static const xp_ep_backend_set cpu_backends = {.local = &xp_ep_cpu_local,
                                               .p2p = &xp_ep_cpu_p2p,
                                               .a2a = &xp_ep_cpu_a2a,
                                               .hierarchical = &xp_ep_cpu_hierarchical};
static const xp_ep_backend_set null_backends = {.local = &xp_ep_null_local,
                                                .p2p = &xp_ep_null_p2p,
                                                .a2a = &xp_ep_null_a2a,
                                                .hierarchical = &xp_ep_null_hierarchical};

static const xp_ep_backend *choose(const xp_ep_backend_set *set, xp_ep_transport transport,
                                   int n_ranks) {
    if (n_ranks == 1)
        return set->local;
    switch (transport) {
    case XP_EP_A2A:
        return set->a2a;
    case XP_EP_HIERARCHICAL:
        return set->hierarchical;
    default:
        return set->p2p;
    }
}

static xp_status set_of(xp_device_kind device, const xp_ep_backend_set **set) {
    const xp_cuda_backend *cuda;
    *set = device == XP_DEVICE_NULL ? &null_backends : &cpu_backends;
    if (device != XP_DEVICE_CUDA)
        return XP_OK;
    XP_TRY(xp_cuda_backend_get(&cuda));
    *set = cuda->ep_backends;
    return *set ? XP_OK
                : xp_error(XP_ENOTSUP, "expert parallelism on GPUs: this build has no kernels for "
                                       "it; build with CUDA");
}

xp_status xp_ep_backend_find(xp_device_kind device, xp_ep_transport transport, int n_ranks,
                             const xp_ep_backend **backend) {
    const xp_ep_backend_set *set;
    XP_TRY(set_of(device, &set));
    *backend = choose(set, transport, n_ranks);
    return XP_OK;
}

const xp_ep_backend *xp_ep_backend_for_sizes(xp_ep_transport transport, int n_ranks) {
    return choose(&null_backends, transport, n_ranks);
}
