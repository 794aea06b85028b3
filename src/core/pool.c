#include "core/pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPINS 2000 /* about 20 us: a step has thousands of short runs back to back */

typedef struct worker {
    xp_pool *pool;
    int index;
    pthread_t thread;
} worker;

struct xp_pool {
    int n_threads;
    xp_tile_fn fn;
    void *context;
    int64_t n_tiles;
    _Atomic int64_t next_tile;
    _Atomic uint32_t generation; /* a new run, or the end, for the workers to see */
    _Atomic uint32_t n_busy;     /* workers that have not finished this generation */
    atomic_bool stop;
    worker workers[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Wait until *word differs from `seen`: first by looking, then asleep. */
static uint32_t wait_for_change(_Atomic uint32_t *word, uint32_t seen) {
    for (int i = 0; i < SPINS; i++) {
        uint32_t now = atomic_load_explicit(word, memory_order_acquire);
        if (now != seen)
            return now;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    for (;;) {
        uint32_t now = atomic_load_explicit(word, memory_order_acquire);
        if (now != seen)
            return now;
        futex_wait(word, seen);
    }
}

static void work(xp_pool *pool, int index) {
    for (;;) {
        int64_t tile = atomic_fetch_add_explicit(&pool->next_tile, 1, memory_order_relaxed);
        if (tile >= pool->n_tiles)
            return;
        pool->fn(pool->context, tile, index);
    }
}

static void *worker_main(void *arg) {
    worker *w = arg;
    xp_pool *pool = w->pool;
    uint32_t seen = 0;
    for (;;) {
        seen = wait_for_change(&pool->generation, seen);
        if (atomic_load_explicit(&pool->stop, memory_order_acquire))
            return NULL;
        work(pool, w->index);
        if (atomic_fetch_sub_explicit(&pool->n_busy, 1, memory_order_acq_rel) == 1)
            futex_wake_all(&pool->n_busy);
    }
}

xp_status xp_pool_create(int n_threads, xp_pool **pool) {
    if (n_threads < 1 || n_threads > 4096)
        return xp_error(XP_EINVAL, "pool: %d threads; 1 to 4096 are possible", n_threads);
    xp_pool *made = calloc(1, sizeof *made + (size_t)n_threads * sizeof made->workers[0]);
    if (made == NULL)
        return xp_error(XP_ENOMEM, "pool: out of memory");
    made->n_threads = 1;
    for (int i = 1; i < n_threads; i++) {
        worker *w = &made->workers[i];
        *w = (worker){.pool = made, .index = i};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            xp_pool_destroy(made);
            return xp_error(XP_ENOMEM, "pool: cannot start thread %d of %d", i, n_threads);
        }
        made->n_threads++;
    }
    *pool = made;
    return XP_OK;
}

void xp_pool_destroy(xp_pool *pool) {
    if (pool == NULL)
        return;
    atomic_store(&pool->stop, true);
    atomic_fetch_add(&pool->generation, 1);
    futex_wake_all(&pool->generation);
    for (int i = 1; i < pool->n_threads; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool);
}

int xp_pool_n_threads(const xp_pool *pool) {
    return pool->n_threads;
}

void xp_pool_run(xp_pool *pool, xp_tile_fn fn, void *context, int64_t n_tiles) {
    if (pool->n_threads == 1 || n_tiles <= 1) {
        for (int64_t tile = 0; tile < n_tiles; tile++)
            fn(context, tile, 0);
        return;
    }
    pool->fn = fn;
    pool->context = context;
    pool->n_tiles = n_tiles;
    atomic_store_explicit(&pool->next_tile, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->n_busy, (uint32_t)(pool->n_threads - 1), memory_order_relaxed);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    futex_wake_all(&pool->generation);
    work(pool, 0);
    for (;;) {
        uint32_t busy = atomic_load_explicit(&pool->n_busy, memory_order_acquire);
        if (busy == 0)
            return;
        wait_for_change(&pool->n_busy, busy);
    }
}
