/** Scratch for tiles: reserved for all workers of the stream's pool before the tiles run. */
#ifndef XP_OPS_CPU_POOL_SCRATCH_H
#define XP_OPS_CPU_POOL_SCRATCH_H

#include "device/cpu/cpu_device.h"

/**
 * Make every worker's scratch at least n_bytes large, so that xp_cpu_stream_scratch() of that size
 * cannot fail in a tile.
 * @return XP_OK; XP_ENOMEM
 */
xp_status xp_cpu_reserve_scratch(xp_stream *stream, size_t n_bytes);

#endif
