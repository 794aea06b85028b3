/**
 * A rank's threads. Work is cut into tiles with fixed borders, so results never depend on which
 * thread took a tile. The calling thread works too; a pool of 1 runs everything inline.
 */
#ifndef XP_CORE_POOL_H
#define XP_CORE_POOL_H

#include <stdint.h>
#include "expar/status.h"

typedef struct xp_pool xp_pool;
/** @param worker 0 .. n_threads - 1, for scratch that each thread owns */
typedef void (*xp_tile_fn)(void *context, int64_t tile, int worker);

XP_NODISCARD xp_status xp_pool_create(int n_threads, xp_pool **pool);
void xp_pool_destroy(xp_pool *pool);
int xp_pool_n_threads(const xp_pool *pool);
/** Run fn(context, 0 .. n_tiles - 1); returns when all are done. Not reentrant; one caller at a
 * time. */
void xp_pool_run(xp_pool *pool, xp_tile_fn fn, void *context, int64_t n_tiles);

#endif
