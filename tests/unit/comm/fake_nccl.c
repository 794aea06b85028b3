#include "fake_nccl.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device/cpu/cpu_stream.h"

typedef struct message {
    struct message *next;
    size_t n_bytes;
    char data[];
} message;

/** A communicator of NCCL: ranks with the same id exchange messages. */
typedef struct fake_comm {
    int id, rank, n_ranks;
    int n_busy; /* times that it will still say it is busy */
} fake_comm;

#define MAX_IDS 16
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static message *mail[MAX_IDS][FAKE_MAX_RANKS][FAKE_MAX_RANKS]; /* from, to; oldest first */
static fake_call calls[FAKE_MAX_RANKS][FAKE_MAX_CALLS];
static int n_calls[FAKE_MAX_RANKS], n_ids, failing_rank;
static _Atomic fake_mode mode;
static bool describes_device;
static bool aborted[FAKE_MAX_RANKS]; /* the rank has aborted a communicator */

typedef struct pending {
    fake_comm *comm;
    const void *send;
    void *recv;
    size_t n_bytes;
    int peer;
} pending;

/* The calling rank, and its open group. */
static _Thread_local int me = -1;
static _Thread_local pending group[2 * FAKE_MAX_RANKS];
static _Thread_local int n_group;
static _Thread_local bool in_group;
static _Thread_local xp_stream *group_stream;

void fake_enter(int rank) {
    me = rank;
}

/* The watcher's thread is no rank: its communicator says whose call it is. */
static void record(int rank, fake_call call) {
    pthread_mutex_lock(&lock);
    if (n_calls[rank] < FAKE_MAX_CALLS)
        calls[rank][n_calls[rank]++] = call;
    pthread_mutex_unlock(&lock);
}

void fake_reset(void) {
    for (int i = 0; i < MAX_IDS; i++)
        for (int from = 0; from < FAKE_MAX_RANKS; from++)
            for (int to = 0; to < FAKE_MAX_RANKS; to++)
                while (mail[i][from][to]) {
                    message *m = mail[i][from][to];
                    mail[i][from][to] = m->next;
                    free(m);
                }
    memset(n_calls, 0, sizeof n_calls);
    memset(aborted, 0, sizeof aborted);
    n_ids = 0;
    failing_rank = -1;
    describes_device = true;
    mode = FAKE_WORKS;
}

void fake_set_mode(fake_mode next) {
    mode = next;
}

void fake_set_on_device(bool on_device) {
    describes_device = on_device;
}

void fake_fail_init(int rank) {
    failing_rank = rank;
}

int fake_n_calls(int rank) {
    return n_calls[rank];
}

const fake_call *fake_calls(int rank) {
    return calls[rank];
}

int fake_count(int rank, fake_fn fn) {
    int n = 0;
    for (int i = 0; i < n_calls[rank]; i++)
        n += calls[rank][i].fn == fn;
    return n;
}

int fake_n_left(void) {
    int n = 0;
    for (int i = 0; i < MAX_IDS; i++)
        for (int from = 0; from < FAKE_MAX_RANKS; from++)
            for (int to = 0; to < FAKE_MAX_RANKS; to++)
                for (const message *m = mail[i][from][to]; m; m = m->next)
                    n++;
    return n;
}

/* ---- moving data -------------------------------------------------------------------------- */

static void post(const fake_comm *comm, int to, const void *data, size_t n_bytes) {
    message *m = malloc(sizeof *m + n_bytes);
    if (!m)
        abort();
    m->next = NULL;
    m->n_bytes = n_bytes;
    memcpy(m->data, data, n_bytes);
    pthread_mutex_lock(&lock);
    message **last = &mail[comm->id][comm->rank][to];
    while (*last)
        last = &(*last)->next;
    *last = m;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* Real ranks would wait for ever when lengths differ: here the program ends. */
static void fetch(const fake_comm *comm, int from, void *data, size_t n_bytes) {
    pthread_mutex_lock(&lock);
    message **first = &mail[comm->id][from][comm->rank];
    while (!*first)
        pthread_cond_wait(&changed, &lock);
    message *m = *first;
    *first = m->next;
    pthread_mutex_unlock(&lock);
    if (m->n_bytes != n_bytes) {
        fprintf(stderr, "fake NCCL: rank %d expects %zu bytes of rank %d, which sends %zu\n",
                comm->rank, n_bytes, from, m->n_bytes);
        abort();
    }
    memcpy(data, m->data, n_bytes);
    free(m);
}

static xp_status wait_for_abort(xp_stream *stream, void *args) {
    (void)stream;
    const int rank = *(const int *)args;
    pthread_mutex_lock(&lock);
    while (!aborted[rank])
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return XP_OK;
}

/* @return true: nothing is to be moved */
static bool stands_still(fake_comm *comm, xp_stream *stream) {
    comm->n_busy = 2;
    if (mode == FAKE_HANGS && xp_cpu_submit(stream, wait_for_abort, &me, sizeof me) != XP_OK)
        abort();
    return mode != FAKE_WORKS;
}

/* ---- the table ---------------------------------------------------------------------------- */

static xp_nccl_state get_unique_id(xp_nccl_id *id) {
    pthread_mutex_lock(&lock);
    const int made = n_ids++;
    pthread_mutex_unlock(&lock);
    memset(id->bytes, 0x5a, sizeof id->bytes);
    memcpy(id->bytes, &made, sizeof made);
    record(me, (fake_call){.fn = FAKE_GET_ID, .id = made});
    return XP_NCCL_OK;
}

static xp_nccl_state comm_init(xp_device *device, int n_ranks, const xp_nccl_id *id, int rank,
                               int max_ctas, void **nccl) {
    (void)device;
    fake_comm *comm = calloc(1, sizeof *comm);
    if (!comm || id->bytes[XP_NCCL_ID_BYTES - 1] != 0x5a)
        abort();
    memcpy(&comm->id, id->bytes, sizeof comm->id);
    comm->rank = rank;
    comm->n_ranks = n_ranks;
    comm->n_busy = 3;
    record(me, (fake_call){.fn = FAKE_INIT,
                           .nccl = comm,
                           .n_ranks = n_ranks,
                           .rank = rank,
                           .id = comm->id,
                           .max_ctas = max_ctas});
    *nccl = NULL;
    if (rank == failing_rank) {
        free(comm);
        xp_error(XP_ECOMM, "ncclCommInitRankConfig: made to fail");
        return XP_NCCL_FAILED;
    }
    *nccl = comm;
    return XP_NCCL_BUSY;
}

static xp_nccl_state comm_state(void *nccl) {
    fake_comm *comm = nccl;
    if (mode == FAKE_NEVER_TAKEN)
        return XP_NCCL_BUSY;
    return comm->n_busy > 0 && comm->n_busy-- > 0 ? XP_NCCL_BUSY : XP_NCCL_OK;
}

static xp_nccl_state comm_finalize(void *nccl) {
    fake_comm *comm = nccl;
    record(me, (fake_call){.fn = FAKE_FINALIZE, .nccl = nccl});
    comm->n_busy = 2;
    return XP_NCCL_BUSY;
}

static xp_nccl_state comm_destroy(void *nccl) {
    record(me, (fake_call){.fn = FAKE_DESTROY, .nccl = nccl});
    free(nccl);
    return XP_NCCL_OK;
}

static xp_nccl_state comm_abort(void *nccl) {
    const fake_comm *comm = nccl;
    record(comm->rank, (fake_call){.fn = FAKE_ABORT, .nccl = nccl});
    pthread_mutex_lock(&lock);
    aborted[comm->rank] = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    free(nccl);
    return XP_NCCL_OK;
}

/* Of any device: all ranks of the fake are on the CPU. */
static xp_nccl_state comm_describe(void *nccl, xp_device *device, int *rank, int *size,
                                   bool *on_device) {
    const fake_comm *comm = nccl;
    (void)device;
    *rank = comm->rank;
    *size = comm->n_ranks;
    *on_device = describes_device;
    return XP_NCCL_OK;
}

static xp_nccl_state group_start(void) {
    record(me, (fake_call){.fn = FAKE_GROUP_START});
    in_group = true;
    n_group = 0;
    return XP_NCCL_OK;
}

static xp_nccl_state group_end(void) {
    record(me, (fake_call){.fn = FAKE_GROUP_END});
    in_group = false;
    if (n_group == 0)
        return XP_NCCL_OK;
    if (stands_still(group[0].comm, group_stream))
        return XP_NCCL_BUSY;
    for (int i = 0; i < n_group; i++)
        if (group[i].send)
            post(group[i].comm, group[i].peer, group[i].send, group[i].n_bytes);
    for (int i = 0; i < n_group; i++)
        if (group[i].recv)
            fetch(group[i].comm, group[i].peer, group[i].recv, group[i].n_bytes);
    return XP_NCCL_BUSY;
}

static xp_nccl_state add(pending p, fake_fn fn, xp_stream *stream) {
    record(
        me,
        (fake_call){
            .fn = fn, .nccl = p.comm, .peer = p.peer, .n = (int64_t)p.n_bytes, .stream = stream});
    if (!in_group || n_group == 2 * FAKE_MAX_RANKS)
        abort();
    group_stream = stream;
    group[n_group++] = p;
    return XP_NCCL_OK;
}

static xp_nccl_state send(void *nccl, const void *data, size_t n_bytes, int peer,
                          xp_stream *stream) {
    return add((pending){.comm = nccl, .send = data, .n_bytes = n_bytes, .peer = peer}, FAKE_SEND,
               stream);
}

static xp_nccl_state recv(void *nccl, void *data, size_t n_bytes, int peer, xp_stream *stream) {
    return add((pending){.comm = nccl, .recv = data, .n_bytes = n_bytes, .peer = peer}, FAKE_RECV,
               stream);
}

/* Everybody's bytes in rank order. */
static void gather(fake_comm *comm, const void *from, char *all, size_t n_bytes) {
    for (int r = 0; r < comm->n_ranks; r++)
        post(comm, r, from, n_bytes);
    for (int r = 0; r < comm->n_ranks; r++)
        fetch(comm, r, all + (size_t)r * n_bytes, n_bytes);
}

static xp_nccl_state all_gather(void *nccl, const void *from, void *to, size_t n_bytes_each,
                                xp_stream *stream) {
    record(me,
           (fake_call){
               .fn = FAKE_ALL_GATHER, .nccl = nccl, .n = (int64_t)n_bytes_each, .stream = stream});
    if (!stands_still(nccl, stream))
        gather(nccl, from, to, n_bytes_each);
    return XP_NCCL_BUSY;
}

static xp_nccl_state broadcast(void *nccl, void *data, size_t n_bytes, int root,
                               xp_stream *stream) {
    fake_comm *comm = nccl;
    record(me, (fake_call){.fn = FAKE_BROADCAST,
                           .nccl = nccl,
                           .peer = root,
                           .n = (int64_t)n_bytes,
                           .stream = stream});
    if (stands_still(comm, stream))
        return XP_NCCL_BUSY;
    for (int r = 0; r < comm->n_ranks && comm->rank == root; r++)
        post(comm, r, data, n_bytes);
    fetch(comm, root, data, n_bytes);
    return XP_NCCL_BUSY;
}

/* @param first  element from which on this rank takes n sums */
static void sum(fake_comm *comm, const void *from, void *to, int64_t n_all, int64_t first,
                int64_t n, xp_dtype dtype, xp_reduce_op op) {
    const size_t size = xp_dtype_bytes(dtype);
    const void *sources[FAKE_MAX_RANKS];
    char *all = malloc((size_t)n_all * size * (size_t)comm->n_ranks + 1);
    if (!all)
        abort();
    gather(comm, from, all, (size_t)n_all * size);
    for (int r = 0; r < comm->n_ranks; r++)
        sources[r] = all + (size_t)(r * n_all + first) * size;
    xp_reduce_run(&(xp_reduce_args){sources, comm->n_ranks, (void *const[]){to}, 1, n, dtype, op});
    free(all);
}

static xp_nccl_state all_reduce(void *nccl, const void *from, void *to, int64_t n, xp_dtype dtype,
                                xp_reduce_op op, xp_stream *stream) {
    record(me, (fake_call){.fn = FAKE_ALL_REDUCE,
                           .nccl = nccl,
                           .n = n,
                           .dtype = dtype,
                           .op = op,
                           .stream = stream});
    if (!stands_still(nccl, stream))
        sum(nccl, from, to, n, 0, n, dtype, op);
    return XP_NCCL_BUSY;
}

static xp_nccl_state reduce_scatter(void *nccl, const void *from, void *to, int64_t n_each,
                                    xp_dtype dtype, xp_stream *stream) {
    fake_comm *comm = nccl;
    record(me, (fake_call){.fn = FAKE_REDUCE_SCATTER,
                           .nccl = nccl,
                           .n = n_each,
                           .dtype = dtype,
                           .stream = stream});
    if (!stands_still(comm, stream))
        sum(comm, from, to, n_each * comm->n_ranks, n_each * comm->rank, n_each, dtype, XP_SUM);
    return XP_NCCL_BUSY;
}

const xp_nccl_calls fake_nccl = {
    .get_unique_id = get_unique_id,
    .comm_init = comm_init,
    .comm_state = comm_state,
    .comm_finalize = comm_finalize,
    .comm_destroy = comm_destroy,
    .comm_abort = comm_abort,
    .comm_describe = comm_describe,
    .group_start = group_start,
    .group_end = group_end,
    .send = send,
    .recv = recv,
    .all_gather = all_gather,
    .broadcast = broadcast,
    .all_reduce = all_reduce,
    .reduce_scatter = reduce_scatter,
};

xp_status fake_reduce(xp_stream *stream, const void *args) {
    (void)stream;
    xp_reduce_run(args);
    return XP_OK;
}
