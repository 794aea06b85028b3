/** Entries of xp_ep_backend for devices that have nothing to add to what the host knows. */
#ifndef XP_EP_COMMON_DEFAULTS_H
#define XP_EP_COMMON_DEFAULTS_H

#include "ep/common/call.h"

/** 0: the backend exchanges nothing through collectives. */
size_t xp_ep_no_comm_bytes(const xp_ep_config *config, int n_ranks);
/** Combine is not cut in two: nothing is sent early. */
xp_status xp_ep_no_combine_send(const xp_ep_call *call, const void *y, bool *sent);
xp_status xp_ep_no_device_error(const xp_ep_group *group);
/** NULLs. */
void xp_ep_no_abort_flags(const xp_ep_group *group, const int32_t *flags[2]);
void xp_ep_no_device_stats(const xp_ep_group *group, xp_ep_stats *stats);
void xp_ep_no_device_stats_reset(xp_ep_group *group);

#endif
