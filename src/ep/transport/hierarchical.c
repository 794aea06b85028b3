#include "ep/transport/hierarchical.h"
#include "ep/transport/transport.h"
size_t xp_ep_relay_measure(const xp_ep_shape *shape, int n_nodes) {
    return n_nodes > shape->n_ranks;
}
xp_status xp_ep_relay_create(xp_ep_group *group, xp_ep_relay **relay) {
    *relay = NULL;
    return group ? XP_OK : XP_EINVAL;
}
void xp_ep_relay_destroy(xp_ep_group *group, xp_ep_relay *relay) {
    if (relay)
        xp_device_free(group->device, relay);
}
static xp_status create(xp_ep_group *group) {
    return xp_error(XP_ENOTSUP, "the hierarchical transport over %d ranks is not built in",
                    group->shape.n_ranks);
}
static void destroy(xp_ep_group *group) {
    group->state = NULL;
}
static size_t measure(const xp_ep_shape *shape, const xp_ep_config *config) {
    return (size_t)(shape->n_ranks + config->n_nodes);
}
const xp_ep_transport_ops xp_ep_hierarchical_ops = {
    .name = "hierarchical", .measure = measure, .create = create, .destroy = destroy};
