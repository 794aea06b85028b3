#include "core/arena.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)64 << 10)
#define ALIGNMENT   ((size_t)16)

typedef struct block {
    struct block *next;
    size_t used, n_bytes;
    _Alignas(16) char data[];
} block;

struct xp_arena {
    block *blocks;
};

xp_status xp_arena_create(xp_arena **arena) {
    xp_arena *made = calloc(1, sizeof *made);
    if (made == NULL)
        return xp_error(XP_ENOMEM, "arena: out of memory");
    *arena = made;
    return XP_OK;
}

void xp_arena_destroy(xp_arena *arena) {
    if (arena == NULL)
        return;
    for (block *b = arena->blocks; b != NULL;) {
        block *next = b->next;
        free(b);
        b = next;
    }
    free(arena);
}

void *xp_arena_alloc(xp_arena *arena, size_t n_bytes) {
    if (n_bytes > SIZE_MAX / 2)
        return NULL;
    size_t need = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (need == 0)
        need = ALIGNMENT;
    block *b = arena->blocks;
    if (b == NULL || b->n_bytes - b->used < need) {
        size_t size = need > BLOCK_BYTES ? need : BLOCK_BYTES;
        block *fresh = calloc(1, sizeof *fresh + size);
        if (fresh == NULL)
            return NULL;
        fresh->n_bytes = size;
        /* A large piece goes behind the head, so the head's free space stays in use. */
        if (b != NULL && need > BLOCK_BYTES / 4) {
            fresh->next = b->next;
            b->next = fresh;
        } else {
            fresh->next = b;
            arena->blocks = fresh;
        }
        b = fresh;
    }
    void *data = b->data + b->used;
    b->used += need;
    return data;
}

char *xp_arena_strndup(xp_arena *arena, const char *text, size_t n) {
    char *copy = xp_arena_alloc(arena, n + 1);
    if (copy != NULL)
        memcpy(copy, text, n);
    return copy;
}

char *xp_arena_strdup(xp_arena *arena, const char *text) {
    return xp_arena_strndup(arena, text, strlen(text));
}

char *xp_arena_printf(xp_arena *arena, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = n < 0 ? NULL : xp_arena_alloc(arena, (size_t)n + 1);
    if (text != NULL)
        vsnprintf(text, (size_t)n + 1, format, again);
    va_end(again);
    return text;
}

void *xp_slab_take(xp_slab *slab, size_t n_bytes) {
    size_t need = (n_bytes + 255) / 256 * 256;
    size_t at = slab->used;
    if (slab->base != NULL && slab->n_bytes - at < need)
        return NULL;
    slab->used = at + need;
    return slab->base == NULL ? NULL : slab->base + at;
}
