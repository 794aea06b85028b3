/*
 * equal_bits [--huge]: the same random calls over processes and, in each process again, over rank
 * threads: the results must have the same bits. With --huge also one call of more than 2^31 bytes.
 * Calls go through two communicators from two threads at once, which get to them in an order that
 * differs from rank to rank.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "world.h"

#define N_CALLS 60

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15U;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31);
}

typedef struct call {
    int kind; /* 0 all-reduce, 1 reduce-scatter, 2 all-gather, 3 all-to-all, 4 broadcast */
    xp_dtype dtype;
    xp_reduce_op op;
    int64_t n;
    int root;
    bool in_place;
    uint64_t seed;
} call;

static call call_of(uint64_t stream, int i, int n_ranks) {
    const xp_dtype dtypes[] = {XP_F32, XP_BF16, XP_F64, XP_I32, XP_I64};
    const int64_t sizes[] = {1, 5, 200, 3000, 4097, 70000, 1000001};
    uint64_t h = mix(stream * 1000003 + (uint64_t)i);
    call c = {.kind = (int)(h % 5),
              .dtype = dtypes[(h >> 8) % 5],
              .op = (xp_reduce_op)((h >> 16) % 3),
              .n = sizes[(h >> 24) % 7],
              .root = (int)((h >> 32) % (uint64_t)n_ranks),
              .in_place = (h >> 40) % 2,
              .seed = h};
    if (c.kind != 0 && c.kind != 4 && c.n > 70000)
        c.n = 70000; /* these take so many for each rank */
    return c;
}

static void fill(const call *c, int rank, void *data, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint64_t h = mix(c->seed + (uint64_t)rank * 7919 + (uint64_t)i * 104729);
        double value = ((double)(h >> 11) / 9007199254740992.0 - 0.5) * (double)(rank + 1);
        if (c->dtype == XP_F32)
            ((float *)data)[i] = (float)value;
        else if (c->dtype == XP_BF16)
            ((uint16_t *)data)[i] = xp_bf16_from_f32((float)value);
        else if (c->dtype == XP_F64)
            ((double *)data)[i] = value;
        else if (c->dtype == XP_I32)
            ((int32_t *)data)[i] = (int32_t)h;
        else
            ((int64_t *)data)[i] = (int64_t)h;
    }
}

/* @return a hash of this rank's whole result, 0 after an error */
static uint64_t run_call(xp_comm *comm, const call *c, xp_stream *stream) {
    int n_ranks = xp_comm_size(comm), rank = xp_comm_rank(comm);
    int64_t size = (int64_t)xp_dtype_bytes(c->dtype);
    int64_t n_in = c->kind == 1 || c->kind == 3 ? c->n * n_ranks : c->n;
    int64_t n_out = c->kind == 2 || c->kind == 3 ? c->n * n_ranks : c->n;
    char *in = malloc((size_t)(n_in * size)), *out = calloc(1, (size_t)(n_out * size));
    if (!in || !out)
        abort();
    fill(c, rank, in, n_in);
    char *send = in, *recv = out;
    if (c->in_place && c->kind == 0) {
        recv = in;
    } else if (c->in_place && c->kind == 1) {
        recv = in + rank * c->n * size;
    } else if (c->in_place && c->kind == 2) {
        send = out + rank * c->n * size;
        memcpy(send, in, (size_t)(c->n * size));
    }
    xp_status status = XP_OK;
    if (c->kind == 0)
        status = xp_comm_all_reduce(comm, send, recv, c->n, c->dtype, c->op, stream);
    else if (c->kind == 1)
        status = xp_comm_reduce_scatter(comm, send, recv, c->n, c->dtype, stream);
    else if (c->kind == 2)
        status = xp_comm_all_gather(comm, send, recv, c->n, c->dtype, stream);
    else if (c->kind == 3)
        status = xp_comm_all_to_all(comm, send, recv, c->n * size, stream);
    else
        status = xp_comm_broadcast(comm, recv = in, c->n * size, c->root, stream);
    uint64_t hash = 1469598103934665603U;
    for (int64_t i = 0; i < n_out * size; i++)
        hash = (hash ^ (unsigned char)recv[i]) * 1099511628211U;
    if (status != XP_OK)
        fprintf(stderr, "rank %d: %s\n", rank, xp_last_error());
    free(in);
    free(out);
    return status == XP_OK ? hash : 0;
}

typedef struct caller {
    xp_comm *comm;
    uint64_t stream;
    uint64_t hashes[N_CALLS];
    pthread_t thread;
} caller;

static void *call_all(void *context) {
    caller *c = context;
    for (int i = 0; i < N_CALLS; i++) {
        call one = call_of(c->stream, i, xp_comm_size(c->comm));
        c->hashes[i] = run_call(c->comm, &one, NULL);
    }
    return NULL;
}

/* Both communicators at once, each from a thread of its own. */
static bool call_both(xp_comm *comm, caller callers[2]) {
    xp_comm *other = NULL;
    if (xp_comm_split(comm, 0, &other) != XP_OK)
        return false;
    int rank = xp_comm_rank(comm);
    for (int i = 0; i < 2; i++) {
        int k = (i + rank) % 2; /* the order differs from rank to rank */
        callers[k].comm = k ? other : comm;
        callers[k].stream = (uint64_t)k + 1;
        if (pthread_create(&callers[k].thread, NULL, call_all, &callers[k]) != 0)
            abort();
    }
    for (int k = 0; k < 2; k++)
        pthread_join(callers[k].thread, NULL);
    xp_comm_destroy(other);
    return true;
}

typedef struct rank_thread {
    xp_thread_world *world;
    int rank;
    bool ok;
    caller callers[2];
    pthread_t thread;
} rank_thread;

static void *rank_main(void *context) {
    rank_thread *r = context;
    xp_comm *comm = NULL;
    r->ok = xp_thread_world_comm(r->world, r->rank, &comm) == XP_OK && call_both(comm, r->callers);
    xp_comm_destroy(comm);
    return NULL;
}

/* What rank `rank` gets when all ranks are threads. */
static bool run_threads(int n_ranks, int rank, caller callers[2]) {
    xp_thread_world *world = NULL;
    rank_thread *ranks = calloc((size_t)n_ranks, sizeof *ranks);
    if (!ranks || xp_thread_world_create(n_ranks, 60, &world) != XP_OK)
        return false;
    for (int r = 0; r < n_ranks; r++) {
        ranks[r].world = world;
        ranks[r].rank = r;
        if (pthread_create(&ranks[r].thread, NULL, rank_main, &ranks[r]) != 0)
            abort();
    }
    bool ok = true;
    for (int r = 0; r < n_ranks; r++) {
        pthread_join(ranks[r].thread, NULL);
        ok = ok && ranks[r].ok;
    }
    memcpy(callers, ranks[rank].callers, sizeof ranks[rank].callers);
    xp_thread_world_destroy(world);
    free(ranks);
    return ok;
}

static int compare(const caller *mpi, const caller *threads, int n_ranks, int rank) {
    int n_wrong = 0;
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < N_CALLS; i++) {
            if (mpi[k].hashes[i] == threads[k].hashes[i] && mpi[k].hashes[i] != 0)
                continue;
            call c = call_of((uint64_t)k + 1, i, n_ranks);
            fprintf(stderr, "FAILED rank %d call %d: kind %d of %lld x %s, op %d: other bits\n",
                    rank, i, c.kind, (long long)c.n, xp_dtype_name(c.dtype), (int)c.op);
            n_wrong++;
        }
    }
    return n_wrong;
}

/* More bytes than an int counts, and than a message carries. */
static int broadcast_huge(xp_comm *comm) {
    int64_t n = ((int64_t)1 << 31) + 12345;
    unsigned char *data = malloc((size_t)n);
    int root = xp_comm_size(comm) - 1, n_wrong = 0;
    if (!data)
        return 1;
    bool sends = xp_comm_rank(comm) == root;
    for (int64_t i = 0; i < n; i++)
        data[i] = sends ? (unsigned char)(i * 31 >> 3) : 0;
    if (xp_comm_broadcast(comm, data, n, root, NULL) != XP_OK) {
        fprintf(stderr, "huge broadcast: %s\n", xp_last_error());
        n_wrong = 1;
    }
    for (int64_t i = 0; i < n && n_wrong == 0; i++)
        n_wrong += data[i] != (unsigned char)(i * 31 >> 3);
    free(data);
    return n_wrong;
}

int main(int argc, char **argv) {
    xp_comm *comm = NULL;
    if (test_world_create(60, &comm) != XP_OK) {
        fprintf(stderr, "%s\n", xp_last_error());
        return 1;
    }
    int n_ranks = xp_comm_size(comm), rank = xp_comm_rank(comm), n_wrong = 0;
    caller mpi[2] = {0}, threads[2] = {0};
    if (!call_both(comm, mpi) || !run_threads(n_ranks, rank, threads))
        n_wrong++;
    n_wrong += compare(mpi, threads, n_ranks, rank);
    if (argc > 1 && strcmp(argv[1], "--huge") == 0)
        n_wrong += broadcast_huge(comm);
    if (rank == 0)
        printf("%d calls through each of 2 communicators on %d ranks: rank 0 has %d wrong\n",
               N_CALLS, n_ranks, n_wrong);
    test_world_destroy(comm);
    return n_wrong > 0;
}
