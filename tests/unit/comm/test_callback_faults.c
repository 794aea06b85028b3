/* Callback communicators of processes when something goes wrong: every rank hears of it in time and
 * by name, nothing is left behind, and other worlds of the process go on. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "comm/on_failure.h"
#include "comm/provider.h"
#include "sockets.h"
#include "thread_transport.h"

#define N         4
#define N_RUNS    20
#define SOON_S    5.0 /* far below the time limit of 60 s, far above what it takes */
#define TIMEOUT_S 60.0

typedef struct result {
    xp_status status;
    char text[1024];
    double heard_s;
    int n_wrong;
    char first[256];
} result;

typedef struct shared {
    int run, victim;
    _Atomic double failed_s; /* when the victim failed */
    result ranks[N];
} shared;

#define CHECK(r, condition)                                                                        \
    do {                                                                                           \
        if (!(condition) && (r)->n_wrong++ == 0)                                                   \
            snprintf((r)->first, sizeof(r)->first, "line %d: %s [%s]", __LINE__, #condition,       \
                     xp_last_error());                                                             \
    } while (0)

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void keep(shared *s, int rank, xp_status status) {
    result *r = &s->ranks[rank];
    r->heard_s = now();
    r->status = status;
    snprintf(r->text, sizeof r->text, "%s", xp_last_error());
}

static void check_ranks(const shared *s) {
    for (int r = 0; r < N; r++)
        if (s->ranks[r].n_wrong > 0)
            fail_msg("rank %d %s", r, s->ranks[r].first);
}

static int count_entries(const char *folder) {
    DIR *d = opendir(folder);
    int n = 0;
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

/* ---- a rank is killed, or gives up ---------------------------------------------------------- */

/* What the others do meanwhile: barriers, long reductions, or a wait of their own that asks. */
static xp_status until_failure(xp_comm *comm, int way) {
    static float data[200000];
    xp_status status = XP_OK;
    const double began = now();
    while (status == XP_OK && now() - began < 20) {
        if (way == 0)
            status = xp_comm_barrier(comm, NULL);
        else if (way == 1)
            status = xp_comm_all_reduce(comm, data, data, 200000, XP_F32, XP_SUM, NULL);
        else
            status = xp_comm_async_error(comm);
        if (way == 2)
            usleep(500);
    }
    return status;
}

static void set_flag(void *context) {
    atomic_store((_Atomic int *)context, 1);
}

static void lost_body(xp_comm *comm, void *context, int rank) {
    shared *s = context;
    _Atomic int told = 0;
    xp_failure_hook hook = {.call = set_flag, .context = &told};
    xp_comm_on_failure(comm, &hook);
    xp_comm_set_phase(comm, "gradients");
    CHECK(&s->ranks[rank], xp_comm_barrier(comm, NULL) == XP_OK);
    if (rank == s->victim) {
        const double until = now() + 0.001 * (s->run * 7 % 40);
        while (s->run % 3 == 0 && now() < until)
            CHECK(&s->ranks[rank], xp_comm_barrier(comm, NULL) == XP_OK);
        usleep((unsigned)(s->run * 1300));
        atomic_store(&s->failed_s, now());
        raise(SIGKILL);
    }
    keep(s, rank, until_failure(comm, s->run % 3));
    const double began = now();
    while (!atomic_load(&told) && now() - began < SOON_S)
        usleep(500);
    CHECK(&s->ranks[rank], atomic_load(&told) == 1);
    CHECK(&s->ranks[rank], xp_comm_barrier(comm, NULL) == XP_ECOMM);
    xp_comm_remove_on_failure(comm, &hook);
}

static void run_one(const sockets_run *run, const shared *s, int killed) {
    pid_t pids[N];
    sockets_start(run, pids);
    for (int r = 0; r < N; r++)
        assert_int_equal(sockets_wait(pids[r]), r == killed ? 128 + SIGKILL : 0);
    check_ranks(s);
}

static void test_killed(void **state) {
    (void)state;
    shared *s = shared_memory(sizeof *s);
    const sockets_run run = {.n_ranks = N, .timeout_s = TIMEOUT_S, .body = lost_body, .context = s};
    const int n_shm = count_entries("/dev/shm");
    for (int i = 0; i < N_RUNS; i++) {
        char name[32];
        memset(s, 0, sizeof *s);
        s->run = i;
        s->victim = i % N;
        snprintf(name, sizeof name, "rank %d is gone", s->victim);
        run_one(&run, s, s->victim);
        for (int r = 0; r < N; r++) {
            if (r == s->victim)
                continue;
            assert_int_equal(s->ranks[r].status, XP_ECOMM);
            assert_non_null(strstr(s->ranks[r].text, name));
            assert_true(s->ranks[r].heard_s - atomic_load(&s->failed_s) < SOON_S);
        }
    }
    assert_int_equal(count_entries("/dev/shm"), n_shm);
    shared_memory_free(s, sizeof *s);
}

static void abort_body(xp_comm *comm, void *context, int rank) {
    shared *s = context;
    CHECK(&s->ranks[rank], xp_comm_barrier(comm, NULL) == XP_OK);
    if (rank == s->victim) {
        usleep((unsigned)(s->run * 1700));
        xp_comm_set_phase(comm, "checkpoint");
        atomic_store(&s->failed_s, now());
        xp_comm_abort(comm, "the disk is full");
        keep(s, rank, xp_comm_async_error(comm));
        return;
    }
    /* The victim comes to no collective, so the others wait for it. */
    keep(s, rank, s->run % 3 == 2 ? until_failure(comm, 2) : xp_comm_barrier(comm, NULL));
    xp_comm_abort(comm, "a later reason");
    CHECK(&s->ranks[rank], xp_comm_async_error(comm) == XP_ECOMM);
    CHECK(&s->ranks[rank], strcmp(xp_last_error(), s->ranks[rank].text) == 0);
}

static void test_abort(void **state) {
    (void)state;
    shared *s = shared_memory(sizeof *s);
    const sockets_run run = {
        .n_ranks = N, .timeout_s = TIMEOUT_S, .body = abort_body, .context = s};
    for (int i = 0; i < N_RUNS; i++) {
        char text[64];
        memset(s, 0, sizeof *s);
        s->run = i;
        s->victim = i % N;
        snprintf(text, sizeof text, "rank %d gave up in checkpoint: the disk is full", s->victim);
        run_one(&run, s, -1);
        for (int r = 0; r < N; r++) {
            assert_int_equal(s->ranks[r].status, XP_ECOMM);
            assert_string_equal(s->ranks[r].text, text);
            assert_true(s->ranks[r].heard_s - atomic_load(&s->failed_s) < SOON_S);
        }
    }
    shared_memory_free(s, sizeof *s);
}

/* ---- late, in a chain, other calls, gone in good order --------------------------------------- */

static void late_body(xp_comm *comm, void *context, int rank) {
    shared *s = context;
    xp_comm_set_phase(comm, "gradients");
    CHECK(&s->ranks[rank], xp_comm_barrier(comm, NULL) == XP_OK);
    if (rank == 2)
        usleep(1500000);
    keep(s, rank, xp_comm_barrier(comm, NULL));
}

/* Rank 0 waits for rank 1, which waits for rank 3 in another communicator. */
static void chain_body(xp_comm *comm, void *context, int rank) {
    shared *s = context;
    xp_comm *pair = NULL;
    CHECK(&s->ranks[rank], xp_comm_split(comm, rank / 2, &pair) == XP_OK);
    if (rank == 3)
        usleep(2000000);
    keep(s, rank, xp_comm_barrier(rank == 1 || rank == 3 ? comm : pair, NULL));
    xp_comm_destroy(pair);
}

static void mismatch_body(xp_comm *comm, void *context, int rank) {
    float x[8] = {0};
    keep(context, rank, xp_comm_all_reduce(comm, x, x, rank == 2 ? 7 : 8, XP_F32, XP_SUM, NULL));
}

static void wrong_bytes_body(xp_comm *comm, void *context, int rank) {
    const int64_t bytes[N] = {1, 1, 1, 1}, offsets[N] = {0, 1, 2, 3};
    const int64_t expected[N] = {1, 1, rank == 1 ? 2 : 1, 1};
    char out[N] = {0}, in[2 * N];
    const xp_alltoallv_args args = {out, bytes, offsets, in, expected, offsets};
    keep(context, rank, xp_comm_all_to_allv(comm, &args, NULL));
}

static void leave_body(xp_comm *comm, void *context, int rank) {
    CHECK(&((shared *)context)->ranks[rank], xp_comm_barrier(comm, NULL) == XP_OK);
    if (rank != 1) /* rank 1 destroys its communicator and lives on for a while */
        keep(context, rank, xp_comm_barrier(comm, NULL));
}

static void expect_text(void (*body)(xp_comm *, void *, int), double timeout_s, const char *text,
                        int except) {
    shared *s = shared_memory(sizeof *s);
    const sockets_run run = {.n_ranks = N, .timeout_s = timeout_s, .body = body, .context = s};
    const double began = now();
    run_one(&run, s, -1);
    assert_true(now() - began < 20);
    for (int r = 0; r < N; r++) {
        if (r == except)
            continue;
        assert_int_equal(s->ranks[r].status, XP_ECOMM);
        if (!strstr(s->ranks[r].text, text))
            fail_msg("rank %d: \"%s\" does not say \"%s\"", r, s->ranks[r].text, text);
    }
    shared_memory_free(s, sizeof *s);
}

static void test_text(void **state) {
    (void)state;
    expect_text(late_body, 0.4, "in barrier (gradients) for rank 2", -1);
    expect_text(chain_body, 0.4, "for rank 3", -1);
    expect_text(mismatch_body, TIMEOUT_S, "do not make the same call", -1);
    expect_text(wrong_bytes_body, TIMEOUT_S, "rank 2 sends 1 bytes to rank 1, which expects 2", -1);
    expect_text(leave_body, TIMEOUT_S, "rank 1, which has destroyed its communicators", 1);
}

/* ---- several worlds in one process ----------------------------------------------------------- */

static void several_raw(sockets *sock, void *context) {
    shared *s = context;
    result *r = &s->ranks[sock->rank];
    const xp_comm_callbacks callbacks = sockets_callbacks(sock, TIMEOUT_S);
    xp_comm *worlds[2], *groups[2];
    const int n_files = count_entries("/proc/self/fd"),
              n_threads = count_entries("/proc/self/task");
    for (int w = 0; w < 2; w++) {
        CHECK(r, xp_comm_from_callbacks(&callbacks, &worlds[w]) == XP_OK);
        CHECK(r,
              xp_comm_split(worlds[w], w ? sock->rank / 2 : sock->rank % 2, &groups[w]) == XP_OK);
    }
    const int n_calls = sock->n_calls;
    for (int i = 0; i < 100; i++) {
        int64_t sums[2] = {sock->rank, 10 * sock->rank};
        for (int w = 0; w < 2; w++)
            CHECK(r, xp_comm_all_reduce(groups[w], &sums[w], &sums[w], 1, XP_I64, XP_SUM, NULL) ==
                         XP_OK);
        CHECK(r, sums[0] == (sock->rank % 2 ? 4 : 2) && sums[1] == (sock->rank < 2 ? 10 : 50));
    }
    CHECK(r, sock->n_calls == n_calls); /* ranks of one node need the table no more */
    if (sock->rank == 3)
        xp_comm_abort(worlds[0], "enough");
    while (xp_comm_async_error(worlds[0]) == XP_OK)
        usleep(1000);
    CHECK(r, xp_comm_barrier(groups[0], NULL) == XP_ECOMM);
    CHECK(r, xp_comm_async_error(worlds[1]) == XP_OK); /* the other world goes on */
    CHECK(r, xp_comm_barrier(groups[1], NULL) == XP_OK);
    CHECK(r, xp_comm_barrier(worlds[1], NULL) == XP_OK);
    for (int w = 0; w < 2; w++) {
        xp_comm_destroy(worlds[w]); /* in any order */
        xp_comm_destroy(groups[w]);
    }
    CHECK(r, count_entries("/proc/self/fd") == n_files);
    CHECK(r, count_entries("/proc/self/task") == n_threads);
}

static void test_several(void **state) {
    (void)state;
    shared *s = shared_memory(sizeof *s);
    const sockets_run run = {.n_ranks = N, .raw = several_raw, .context = s};
    run_one(&run, s, -1);
    shared_memory_free(s, sizeof *s);
}

/* ---- tables that do not work ----------------------------------------------------------------- */

static int fails(void *context, const void *send, void *recv, size_t n_bytes) {
    (void)context;
    (void)send;
    (void)recv;
    (void)n_bytes;
    return 7;
}

/* Everybody seems to be rank 0. */
static int mixes_up(void *context, const void *send, void *recv, size_t n_bytes) {
    (void)context;
    memcpy(recv, send, n_bytes);
    memcpy((char *)recv + n_bytes, send, n_bytes);
    return 0;
}

static void test_tables(void **state) {
    (void)state;
    xp_comm *comm = NULL;
    xp_comm_callbacks table = {.rank = 0, .size = 2, .all_gather = fails};
    assert_int_equal(xp_comm_from_callbacks(&table, &comm), XP_ECOMM);
    assert_non_null(strstr(xp_last_error(), "all_gather returned 7"));
    table.all_gather = mixes_up;
    assert_int_equal(xp_comm_from_callbacks(&table, &comm), XP_EINVAL);
    assert_non_null(strstr(xp_last_error(), "not in rank order"));
    table.all_gather = NULL;
    assert_int_equal(xp_comm_from_callbacks(&table, &comm), XP_EINVAL);
    table.rank = 2;
    assert_int_equal(xp_comm_from_callbacks(&table, &comm), XP_EINVAL);
    assert_int_equal(xp_comm_from_callbacks(NULL, &comm), XP_EINVAL);
    table = (xp_comm_callbacks){.size = 1, .timeout_s = -1};
    assert_int_equal(xp_comm_from_callbacks(&table, &comm), XP_EINVAL);
    table.timeout_s = 0; /* one rank needs no functions */
    assert_int_equal(xp_comm_from_callbacks(&table, &comm), XP_OK);
    assert_int_equal(xp_comm_barrier(comm, NULL), XP_OK);
    assert_true(xp_comm_is_one_node(comm) && xp_comm_size(comm) == 1);
    xp_comm_destroy(comm);
}

/* ---- between nodes --------------------------------------------------------------------------- */

typedef struct far_rank {
    xp_thread_world *world;
    int rank;
    result result;
    pthread_t thread;
} far_rank;

static void check_far(far_rank *f, xp_comm *comm) {
    const xp_device_args args = {.n_threads = 1};
    xp_comm *sub = NULL, *node = NULL;
    xp_device *device = NULL;
    xp_stream *worker = NULL;
    result *r = &f->result;
    /* Some ranks of both nodes: the public table has no way; all ranks, or those of a node, work. */
    CHECK(r, xp_comm_split(comm, f->rank == 3 ? 1 : 0, &sub) == XP_ENOTSUP);
    CHECK(r, strstr(xp_last_error(), "a transport of its own") != NULL);
    CHECK(r, xp_comm_async_error(comm) == XP_OK);
    CHECK(r, xp_comm_split(comm, 0, &sub) == XP_OK);
    CHECK(r, xp_comm_split(comm, xp_comm_node(comm, f->rank), &node) == XP_OK);
    CHECK(r, xp_comm_size(sub) == N && xp_comm_size(node) == N / 2);
    CHECK(r, xp_comm_barrier(sub, NULL) == XP_OK && xp_comm_barrier(node, NULL) == XP_OK);
    /* The transport is called on this thread, whatever the stream. */
    int64_t sum = f->rank;
    CHECK(r, xp_device_create(&args, &device) == XP_OK);
    CHECK(r, xp_stream_create(device, XP_STREAM_WORKER, &worker) == XP_OK);
    CHECK(r, xp_comm_all_reduce(sub, &sum, &sum, 1, XP_I64, XP_SUM, worker) == XP_OK);
    CHECK(r, sum == 6);
    CHECK(r, thread_transport_n_strangers() == 0);
    xp_stream_destroy(worker);
    xp_device_destroy(device);
    xp_comm_destroy(node);
    xp_comm_destroy(sub);
    /* A rank that gives up is heard on its node, and by the others through their transport. */
    if (f->rank == 0)
        xp_comm_abort(comm, "enough");
    CHECK(r, xp_comm_barrier(comm, NULL) == XP_ECOMM);
}

static void *far_thread(void *context) {
    static const int nodes[N] = {0, 1, 0, 1};
    const thread_transport_args args = {.timeout_s = 5, .no_split = true, .nodes = nodes};
    far_rank *f = context;
    xp_comm *threads = NULL, *comm = NULL;
    CHECK(&f->result, xp_thread_world_comm(f->world, f->rank, &threads) == XP_OK);
    CHECK(&f->result, thread_transport_comm(threads, &args, &comm) == XP_OK);
    if (comm)
        check_far(f, comm);
    xp_comm_destroy(comm);
    return NULL;
}

static void test_between_nodes(void **state) {
    (void)state;
    far_rank ranks[N] = {0};
    xp_thread_world *world = NULL;
    assert_int_equal(xp_thread_world_create(N, 1, &world), XP_OK);
    for (int r = 0; r < N; r++) {
        ranks[r].world = world;
        ranks[r].rank = r;
        assert_int_equal(pthread_create(&ranks[r].thread, NULL, far_thread, &ranks[r]), 0);
    }
    for (int r = 0; r < N; r++)
        pthread_join(ranks[r].thread, NULL);
    for (int r = 0; r < N; r++)
        if (ranks[r].result.n_wrong > 0)
            fail_msg("rank %d %s", r, ranks[r].result.first);
    xp_thread_world_destroy(world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed), cmocka_unit_test(test_abort),
        cmocka_unit_test(test_text),   cmocka_unit_test(test_several),
        cmocka_unit_test(test_tables), cmocka_unit_test(test_between_nodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
