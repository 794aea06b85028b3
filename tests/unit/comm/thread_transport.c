#include "thread_transport.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include "comm/callbacks/transport.h"

static _Atomic int n_strangers;

typedef struct threads_context {
    xp_comm *threads;
    pthread_t owner;
} threads_context;

static xp_comm *threads_of(void *context) {
    const threads_context *c = context;
    if (!pthread_equal(pthread_self(), c->owner))
        atomic_fetch_add(&n_strangers, 1);
    return c->threads;
}

int thread_transport_n_strangers(void) {
    return atomic_load(&n_strangers);
}

static int all_gather(void *context, const void *send, void *recv, size_t n_bytes) {
    return xp_comm_all_gather(threads_of(context), send, recv, (int64_t)n_bytes, XP_U8, NULL);
}

static int barrier(void *context) {
    return xp_comm_barrier(threads_of(context), NULL);
}

static int all_to_allv(void *context, const void *send, const int64_t *send_bytes,
                       const int64_t *send_offsets, void *recv, const int64_t *recv_bytes,
                       const int64_t *recv_offsets) {
    const xp_alltoallv_args args = {send, send_bytes, send_offsets, recv, recv_bytes, recv_offsets};
    return xp_comm_all_to_allv(threads_of(context), &args, NULL);
}

static void destroy(void *context, bool healthy) {
    (void)healthy;
    xp_comm_destroy(((threads_context *)context)->threads);
    free(context);
}

static xp_status split(void *context, int color, xp_callback_transport *sub);

static xp_callback_transport transport_over(xp_comm *threads, bool gather_only, bool no_split) {
    threads_context *c = malloc(sizeof *c);
    if (!c)
        abort();
    *c = (threads_context){.threads = threads, .owner = pthread_self()};
    return (xp_callback_transport){.rank = xp_comm_rank(threads),
                                   .size = xp_comm_size(threads),
                                   .context = c,
                                   .all_gather = all_gather,
                                   .barrier = barrier,
                                   .all_to_allv = gather_only ? NULL : all_to_allv,
                                   .split = no_split ? NULL : split,
                                   .destroy = destroy};
}

static xp_status split(void *context, int color, xp_callback_transport *sub) {
    xp_comm *made = NULL;
    XP_TRY(xp_comm_split(threads_of(context), color, &made));
    if (made)
        *sub = transport_over(made, false, false);
    return XP_OK;
}

xp_status thread_transport_comm(xp_comm *threads, const thread_transport_args *args,
                                xp_comm **comm) {
    const xp_callback_args all = {.transport =
                                      transport_over(threads, args->gather_only, args->no_split),
                                  .timeout_s = args->timeout_s,
                                  .simulated_nodes = args->nodes};
    return xp_callback_world_create(&all, comm);
}
