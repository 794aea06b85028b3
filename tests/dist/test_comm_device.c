/*
 * test_comm_device [--device cpu|cuda] [--ranks N] [--mpi] [--nodes N] [--fault late|gone]
 *
 * Every collective and windows on device memory against brute force. Ranks are threads, rank r on
 * GPU r % n_gpus, or with --mpi processes (start it with mpirun), the r-th of a node on GPU
 * r % n_gpus. --nodes: threads pretend to be on so many nodes, so that NCCL adds; fp32 sums are
 * then compared with a tolerance. --fault late: the last rank does not come to an all-reduce, gone:
 * it ends; all others must say so in time.
 *
 * Needs libexpar.so and no test library: it is meant to be carried to machines with GPUs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "device/gpu_environment.h"
#include "comm/thread/simulate_nodes.h"
#include "core/file.h"
#include "device/plugin.h"
#include "device_cases.h"

#define TIMEOUT_S 60.0
#define FAULT_S   5.0

static void fault(worker *r) {
    float *data = reserve(r, 1000 * sizeof *data);
    check(r, xp_zero(r->stream, data, 1000 * sizeof *data) == XP_OK, "zero", 0);
    check(r, xp_comm_prepare(r->comm, r->device, 0) == XP_OK, "prepare", 0);
    check(r, xp_comm_barrier(r->comm, NULL) == XP_OK, "barrier", 0);
    xp_comm_set_phase(r->comm, "fault test");
    const double began = xp_time_s();
    xp_status status = XP_OK;
    if (r->me == r->n - 1) {
        if (strcmp(r->o->fault, "gone") == 0)
            _exit(3);
        while (status == XP_OK && xp_time_s() - began < 4 * FAULT_S) {
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
            status = xp_comm_async_error(r->comm);
        }
    } else {
        status = xp_comm_all_reduce(r->comm, data, data, 1000, XP_F32, XP_SUM, r->stream);
        if (status == XP_OK)
            check(r, xp_stream_sync(r->stream) == XP_OK, "the wait ends", 0);
        if (status == XP_OK)
            status = xp_comm_async_error(r->comm);
    }
    const double seconds = xp_time_s() - began;
    printf("rank %d after %.2f s: %s\n", r->me, seconds, xp_last_error());
    fflush(stdout);
    check(r, status == XP_ECOMM, "the failure is known", 0);
    check(r, seconds < 2 * FAULT_S + 2, "in time", 0);
    xp_device_free(r->device, data);
}

static int local_rank(const xp_comm *comm, int me) {
    int n = 0;
    for (int k = 0; k < me; k++)
        n += xp_comm_node(comm, k) == xp_comm_node(comm, me);
    return n;
}

static void run(worker *r) {
    xp_device_args args = {.kind = r->o->cuda ? XP_DEVICE_CUDA : XP_DEVICE_CPU, .n_threads = 1};
    const xp_cuda_backend *cuda;
    int n_devices = 1;
    if (r->o->cuda)
        check(r, xp_cuda_backend_get(&cuda) == XP_OK && cuda->device_count(&n_devices) == XP_OK,
              "CUDA", 0);
    args.index = (r->o->mpi ? local_rank(r->comm, r->me) : r->me) % n_devices;
    if (!r->o->cuda)
        args.caps = "test_protect"; /* memory that only queued work may touch */
    check(r, xp_device_create(&args, &r->device) == XP_OK, "device", 0);
    if (!r->device)
        return;
    check(r, xp_stream_create(r->device, XP_STREAM_COMPUTE, &r->stream) == XP_OK, "stream", 0);
    check(r,
          (xp_stream_native(r->stream) != NULL) ==
              (xp_device_get_kind(r->device) == XP_DEVICE_CUDA),
          "native stream", 0);
    if (r->o->fault) {
        fault(r);
    } else {
        check(r, xp_comm_prepare(r->comm, r->device, 1 << 20) == XP_OK, "prepare", 0);
        all_cases(r);
        windows(r);
        halves(r);
    }
    r->carrier = r->comm->backend ? r->comm->backend->ops->name : "the host";
    xp_stream_destroy(r->stream);
}

/* Communicators go before devices. */
static void end(worker *r) {
    xp_comm_destroy(r->comm);
    if (r->device && !r->o->fault)
        check(r, xp_device_bytes(r->device, NULL) == 0, "all memory is given back",
              xp_device_bytes(r->device, NULL));
    xp_device_destroy(r->device);
}

static void *thread_main(void *context) {
    worker *r = context;
    if (xp_thread_world_comm(r->world, r->me, &r->comm) != XP_OK) {
        check(r, false, "communicator", 0);
        return NULL;
    }
    run(r);
    end(r);
    return NULL;
}

static void say(const worker *r, int n_failed) {
    printf("%s: %d ranks (%s) through %s: %d checks on rank %d, %d failed%s\n",
           n_failed == 0 ? "ok" : "FAILED", r->n, r->o->mpi ? "processes" : "threads", r->carrier,
           r->n_checks, r->me, n_failed, r->o->mpi ? " here" : " on all");
    fflush(stdout);
}

static int run_threads(const options *o, int n) {
    worker ranks[MAX_RANKS];
    xp_thread_world *world = NULL;
    int nodes[MAX_RANKS], n_failed = 0;
    if (xp_thread_world_create(n, o->fault ? FAULT_S : TIMEOUT_S, &world) != XP_OK)
        return 1;
    for (int k = 0; k < n; k++)
        nodes[k] = o->n_nodes > 1 ? k % o->n_nodes : 0;
    if (xp_thread_world_simulate_nodes(world, nodes) != XP_OK)
        return 1;
    for (int k = 0; k < n; k++) {
        ranks[k] = (worker){.o = o, .world = world, .me = k, .n = n, .carrier = "nothing"};
        if (pthread_create(&ranks[k].thread, NULL, thread_main, &ranks[k]) != 0)
            abort();
    }
    for (int k = 0; k < n; k++)
        pthread_join(ranks[k].thread, NULL);
    for (int k = 0; k < n; k++)
        n_failed += ranks[k].n_failed;
    say(&ranks[0], n_failed);
    xp_thread_world_destroy(world);
    return n_failed;
}

static int run_process(const options *o) {
    worker r = {.o = o, .carrier = "nothing"};
    if (xp_mpi_world_comm(60, o->fault ? FAULT_S : TIMEOUT_S, &r.comm) != XP_OK) {
        fprintf(stderr, "%s\n", xp_last_error());
        _exit(1);
    }
    r.me = xp_comm_rank(r.comm);
    r.n = xp_comm_size(r.comm);
    run(&r);
    if (o->fault) { /* MPI cannot be left in good order */
        say(&r, r.n_failed);
        _exit(r.n_failed > 0);
    }
    const int n_failed = r.n_failed;
    if (r.me == 0 || n_failed > 0)
        say(&r, n_failed);
    end(&r);
    return r.n_failed;
}

static bool parse(int argc, char **argv, options *o) {
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--mpi") == 0) {
            o->mpi = true;
            continue;
        }
        if (strcmp(argv[i], "--device") == 0)
            o->cuda = strcmp(value, "cuda") == 0;
        else if (strcmp(argv[i], "--ranks") == 0)
            o->ranks = atoi(value);
        else if (strcmp(argv[i], "--nodes") == 0)
            o->n_nodes = atoi(value);
        else if (strcmp(argv[i], "--fault") == 0)
            o->fault = value;
        else
            return false;
        i++;
    }
    return o->ranks >= 0 && o->ranks <= MAX_RANKS;
}

int main(int argc, char **argv) {
    xp_gpu_environment_set();
    options o = {0};
    const int ranks[] = {1, 2, 3, 4, 8};
    int n_failed = 0;
    if (!parse(argc, argv, &o)) {
        fprintf(stderr,
                "usage: %s [--device cpu|cuda] [--ranks N] [--mpi] [--nodes N] [--fault "
                "late|gone]\n",
                argv[0]);
        return 2;
    }
    if (o.mpi)
        return run_process(&o) > 0;
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0] && o.ranks == 0; i++)
        n_failed += run_threads(&o, ranks[i]);
    if (o.ranks > 0)
        n_failed += run_threads(&o, o.ranks);
    return n_failed > 0;
}
