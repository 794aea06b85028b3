/*
 * Ranks that are threads of one process and have a GPU each: a library's first use takes the
 * driver's lock and waits for its GPU, whose kernel waits for a peer that needs the lock to queue its
 * own. The GPUs here are worker streams of CPU devices, the driver and the collective stand-ins.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>
#include "comm/device/backend.h"
#include "core/file.h"
#include "device/cpu/cpu_stream.h"
#include "device/device_internal.h"
#include "ranks.h"

#define N_RANKS 4
#define N_CALLS 20

/** What the ranks of one process have in common. */
typedef struct driver {
    pthread_mutex_t lock;
    _Atomic int n_started[N_CALLS]; /* ranks whose kernel of a collective runs */
} driver;

static driver shared;

typedef struct stand_in {
    xp_comm_backend base;
    int n_calls;
} stand_in;

typedef struct kernel {
    const xp_comm *comm;
    int call;
} kernel;

/* Waits for all peers' kernels, as NCCL's do; a world that has failed ends it, as an abort does. */
static xp_status run_kernel(xp_stream *stream, void *args) {
    const kernel *k = args;
    (void)stream;
    atomic_fetch_add(&shared.n_started[k->call], 1);
    while (atomic_load(&shared.n_started[k->call]) < N_RANKS) {
        xp_failure failure;
        if (xp_comm_get_failure(k->comm, &failure))
            return XP_OK;
        usleep(100);
    }
    return XP_OK;
}

/* Queueing a kernel needs the driver. */
static xp_status run(xp_comm_backend *backend, const xp_comm_call *call, xp_stream *stream) {
    stand_in *s = (stand_in *)backend;
    (void)call;
    const kernel k = {backend->comm, s->n_calls++};
    pthread_mutex_lock(&shared.lock);
    const xp_status status = xp_cpu_submit(stream, run_kernel, &k, sizeof k);
    pthread_mutex_unlock(&shared.lock);
    return status;
}

static void destroy(xp_comm_backend *backend) {
    (void)backend; /* the body's */
}

static const xp_comm_backend_ops ops = {.name = "stand-in", .run = run, .destroy = destroy};

/* Loads a module: under the driver's lock, when the GPU has come to rest. */
static void use_for_the_first_time(xp_stream *stream) {
    pthread_mutex_lock(&shared.lock);
    if (xp_stream_sync(stream) != XP_OK)
        xp_error_clear();
    pthread_mutex_unlock(&shared.lock);
}

static bool synchronized_pass;

/* Each rank's libraries are used first at other times. */
static void body(rank_job *job) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    xp_device *device;
    xp_stream *stream;
    RANK_CHECK(job, xp_device_create(&args, &device) == XP_OK);
    RANK_CHECK(job, xp_stream_create(device, XP_STREAM_WORKER, &stream) == XP_OK);
    device->kind = XP_DEVICE_CUDA; /* collectives take the way of GPUs */
    stand_in backend = {.base = {.ops = &ops, .comm = job->comm, .device = device}};
    job->comm->backend = &backend.base;
    xp_device_set_host_synchronized(device, synchronized_pass);
    const double began = xp_time_s();
    xp_status status = XP_OK;
    for (int i = 0; i < N_CALLS && status == XP_OK; i++) {
        if (i % N_RANKS == job->rank)
            use_for_the_first_time(stream);
        status = xp_comm_barrier(job->comm, stream);
        /* A rank that is far behind the others has lost nothing but time. */
        if ((i + job->rank) % 7 == 0)
            usleep(2000);
    }
    if (xp_stream_sync(stream) != XP_OK)
        xp_error_clear();
    job->status = status != XP_OK ? status : xp_comm_async_error(job->comm);
    job->seconds = xp_time_s() - began;
    job->comm->backend = NULL;
    device->kind = XP_DEVICE_CPU;
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

/* Ends a world that does not get on by itself, so that the test does. */
static void *end_after_a_second(void *context) {
    for (int i = 0; i < 100; i++) {
        usleep(10000);
        if (atomic_load(&shared.n_started[N_CALLS - 1]) == N_RANKS)
            return NULL;
    }
    xp_thread_world_abort(context, 0, "the ranks hang");
    return NULL;
}

static void watched_body(rank_job *job) {
    pthread_t thread;
    const bool watches = job->rank == 0;
    if (watches && pthread_create(&thread, NULL, end_after_a_second, job->world) != 0)
        job->n_wrong++;
    body(job);
    if (watches)
        pthread_join(thread, NULL);
}

static rank_job *run_all(bool synchronized) {
    pthread_mutex_init(&shared.lock, NULL);
    for (int i = 0; i < N_CALLS; i++)
        atomic_store(&shared.n_started[i], 0);
    synchronized_pass = synchronized;
    return run_ranks(N_RANKS, 30, NULL, watched_body);
}

/* The stand-ins do hang as GPUs do: or the next test would prove nothing. */
static void test_hangs_without(void **state) {
    (void)state;
    rank_job *jobs = run_all(false);
    int n_failed = 0;
    for (int r = 0; r < N_RANKS; r++)
        n_failed += jobs[r].status == XP_ECOMM;
    free(jobs);
    assert_int_equal(n_failed, N_RANKS);
}

static void test_passes_host_synchronized(void **state) {
    (void)state;
    rank_job *jobs = run_all(true);
    for (int r = 0; r < N_RANKS; r++) {
        if (jobs[r].n_wrong)
            fail_msg("%s", jobs[r].first);
        assert_int_equal(jobs[r].status, XP_OK);
    }
    free(jobs);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hangs_without),
        cmocka_unit_test(test_passes_host_synchronized),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
