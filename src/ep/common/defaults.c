#include "ep/common/defaults.h"

size_t xp_ep_no_comm_bytes(const xp_ep_config *config, int n_ranks) {
    (void)config;
    (void)n_ranks;
    return 0;
}

xp_status xp_ep_no_combine_send(const xp_ep_call *call, const void *y, bool *sent) {
    (void)call;
    (void)y;
    *sent = false;
    return XP_OK;
}

xp_status xp_ep_no_device_error(const xp_ep_group *group) {
    (void)group;
    return XP_OK;
}

void xp_ep_no_abort_flags(const xp_ep_group *group, const int32_t *flags[2]) {
    (void)group;
    flags[0] = flags[1] = NULL;
}

void xp_ep_no_device_stats(const xp_ep_group *group, xp_ep_stats *stats) {
    (void)group;
    (void)stats;
}

void xp_ep_no_device_stats_reset(xp_ep_group *group) {
    (void)group;
}
