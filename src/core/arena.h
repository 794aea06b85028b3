/**
 * Bump allocator over host memory it grows in blocks: for things that live and die together (a
 * config, a table of names). Device memory has xp_slab below: one reserved region handed out in
 * pieces, or, with a NULL base, only counted.
 */
#ifndef XP_CORE_ARENA_H
#define XP_CORE_ARENA_H

#include <stddef.h>
#include "expar/status.h"

typedef struct xp_arena xp_arena;

XP_NODISCARD xp_status xp_arena_create(xp_arena **arena);
void xp_arena_destroy(xp_arena *arena);
/** 16-byte aligned, zeroed; NULL when memory is out. Valid until the arena is destroyed. */
void *xp_arena_alloc(xp_arena *arena, size_t n_bytes);
/** A copy of `text`; NULL when memory is out. */
char *xp_arena_strdup(xp_arena *arena, const char *text);
char *xp_arena_strndup(xp_arena *arena, const char *text, size_t n);
char *xp_arena_printf(xp_arena *arena, const char *format, ...) XP_PRINTF(2, 3);

/** A region handed out front to back in 256-byte aligned pieces. */
typedef struct xp_slab {
    char *base; /* NULL: count only; xp_slab_take() then returns NULL and still advances */
    size_t n_bytes, used;
} xp_slab;
/** NULL when the piece does not fit, and always in counting mode. */
void *xp_slab_take(xp_slab *slab, size_t n_bytes);

#endif
