/*
 * test_ep [--ranks N] [--transport p2p|a2a|hierarchical] [--case NAME] [--dtype f32|bf16] [--mpi]
 *         [--guest threads|processes] [--device cpu|cuda] [--gpus N] [--host-synchronized] [--quick]
 *         [--timeout SECONDS] [--verbose]
 *
 * Without --mpi the ranks are threads, and everything that is not chosen runs in turn. With --mpi
 * this process is one rank (start it with mpirun) and the number of ranks is the launcher's. On
 * GPUs rank r takes number r % N (1); --host-synchronized: barriers are
 * made by the hosts, no kernel waits.
 * --guest: communicators from a callback table, between threads or forked processes.
 * --quick: no case of many iterations and none about time, for tools that make everything slow.
 * --timeout: of waits for other ranks under --mpi (60).
 * --verbose: a line and the seconds for each case as it ends.
 */
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "device/gpu_environment.h"
#include "comm/thread/simulate_nodes.h"
#include "../dist/world.h"
#include "guests.h"
#include "pace.h"

bool ep_fail(ep_env *env, const char *format, ...) {
    if (env->failure[0] == '\0') {
        va_list args;
        va_start(args, format);
        vsnprintf(env->failure, sizeof env->failure, format, args);
        va_end(args);
    }
    return false;
}

static const char *const transports[] = {"auto", "p2p", "a2a", "hierarchical"};

typedef struct options {
    int ranks;
    xp_ep_transport transport;
    int dtype; /* -1: both */
    const char *name;
    bool mpi, cuda, host_synchronized, quick, verbose;
    bool guest_threads, guest_processes;
    int n_gpus, timeout_s;
} options;

static bool parse(int argc, char **argv, options *o) {
    *o = (options){.dtype = -1, .n_gpus = 1, .timeout_s = 60};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--mpi") == 0) {
            o->mpi = true;
            continue;
        }
        if (strcmp(argv[i], "--host_synchronized") == 0) {
            o->host_synchronized = true;
            continue;
        }
        if (strcmp(argv[i], "--quick") == 0) {
            o->quick = true;
            continue;
        }
        if (strcmp(argv[i], "--verbose") == 0) {
            o->verbose = true;
            continue;
        }
        if (!value)
            return false;
        i++;
        if (strcmp(argv[i - 1], "--ranks") == 0) {
            o->ranks = atoi(value);
        } else if (strcmp(argv[i - 1], "--gpus") == 0) {
            o->n_gpus = atoi(value);
        } else if (strcmp(argv[i - 1], "--timeout") == 0) {
            o->timeout_s = atoi(value);
        } else if (strcmp(argv[i - 1], "--guest") == 0) {
            o->guest_threads = strcmp(value, "threads") == 0;
            o->guest_processes = strcmp(value, "processes") == 0;
            if (!o->guest_threads && !o->guest_processes)
                return false;
        } else if (strcmp(argv[i - 1], "--case") == 0) {
            o->name = value;
        } else if (strcmp(argv[i - 1], "--device") == 0) {
            o->cuda = strcmp(value, "cuda") == 0;
            if (!o->cuda && strcmp(value, "cpu") != 0)
                return false;
        } else if (strcmp(argv[i - 1], "--dtype") == 0) {
            o->dtype = strcmp(value, "bf16") == 0 ? XP_BF16 : XP_F32;
        } else if (strcmp(argv[i - 1], "--transport") == 0) {
            for (int t = 1; t < 4; t++) {
                if (strcmp(value, transports[t]) == 0)
                    o->transport = (xp_ep_transport)t;
            }
            if (o->transport == XP_EP_AUTO)
                return false;
        } else {
            return false;
        }
    }
    return o->ranks >= 0 && o->ranks <= 64 && o->n_gpus >= 1 && o->timeout_s >= 1;
}

/* One rank's part in one case; the communicator is there already. */
static void run_body(ep_env *env, const ep_case *c) {
    xp_device_args args = {.kind = env->cuda ? XP_DEVICE_CUDA : XP_DEVICE_CPU,
                           .index = env->cuda ? env->rank % env->n_gpus : 0,
                           .n_threads = 1 + env->rank % 2};
    env->failure[0] = '\0';
    if (xp_device_create(&args, &env->device) != XP_OK) {
        ep_fail(env, "device: %s", xp_last_error());
        return;
    }
    if (xp_stream_create(env->device, XP_STREAM_COMPUTE, &env->stream) != XP_OK)
        ep_fail(env, "stream: %s", xp_last_error());
    else if (!c->body(env))
        ep_fail(env, "failed without saying why");
    xp_stream_destroy(env->stream);
    if (env->failure[0] == '\0' && xp_device_bytes(env->device, NULL) != 0)
        ep_fail(env, "%lld bytes of device memory were not given back",
                (long long)xp_device_bytes(env->device, NULL));
    if (env->failure[0] == '\0')
        xp_device_destroy(env->device);
}

typedef struct rank_thread {
    ep_env env;
    const ep_case *one;
    xp_thread_world *world;
    bool guest;
    const int *nodes;
    pthread_t thread;
} rank_thread;

static void *rank_main(void *context) {
    rank_thread *t = context;
    if (xp_thread_world_comm(t->world, t->env.rank, &t->env.comm) != XP_OK) {
        ep_fail(&t->env, "comm: %s", xp_last_error());
        return NULL;
    }
    if (t->guest &&
        ep_guest_of_threads(t->env.comm, t->env.timeout_s, t->nodes, &t->env.comm) != XP_OK) {
        ep_fail(&t->env, "guest: %s", xp_last_error());
        return NULL;
    }
    run_body(&t->env, t->one);
    xp_comm_destroy(t->env.comm);
    return NULL;
}

/* Simulated nodes for the hierarchical transport: two where the ranks can be halved (of four ranks
 * not in order), else one. */
static int node_of(int rank, int n_ranks) {
    if (n_ranks == 4)
        return rank == 1 || rank == 2;
    return n_ranks % 2 == 0 ? rank / (n_ranks / 2) : 0;
}

static ep_env env_of(const options *o, int rank, int n_ranks, xp_ep_transport transport,
                     xp_dtype dtype, double timeout_s) {
    return (ep_env){.rank = rank,
                    .n_ranks = n_ranks,
                    .cuda = o->cuda,
                    .host_synchronized = o->host_synchronized,
                    .n_gpus = o->n_gpus,
                    .transport = transport,
                    .dtype = dtype,
                    .timeout_s = timeout_s};
}

/* @return false: this rank has failed */
static bool report(const ep_env *env, const ep_case *c) {
    if (env->failure[0] == '\0')
        return true;
    printf("FAILED %s, %d ranks, %s, %s: rank %d: %s\n", c->name, env->n_ranks,
           transports[env->transport], xp_dtype_name(env->dtype), env->rank, env->failure);
    return false;
}

static double time_limit(const ep_case *c, int n_ranks, double least_s) {
    if (!c->breaks_world)
        return 20;
    return c->timeout_s > 0 ? c->timeout_s : ep_time_limit(n_ranks, least_s);
}

static bool run_threads(const options *o, const ep_case *c, int n_ranks, xp_ep_transport transport,
                        xp_dtype dtype) {
    const double timeout_s = time_limit(c, n_ranks, o->cuda ? 1 : 0.5);
    xp_thread_world *world = NULL;
    rank_thread *threads = calloc((size_t)n_ranks, sizeof *threads);
    int nodes[64];
    for (int r = 0; r < n_ranks; r++)
        nodes[r] = node_of(r, n_ranks);
    if (!threads || xp_thread_world_create(n_ranks, timeout_s, &world) != XP_OK ||
        (transport == XP_EP_HIERARCHICAL && !o->guest_threads &&
         xp_thread_world_simulate_nodes(world, nodes) != XP_OK)) {
        printf("no world: %s\n", xp_last_error());
        free(threads);
        return false;
    }
    for (int r = 0; r < n_ranks; r++) {
        threads[r] = (rank_thread){.world = world, .one = c, .guest = o->guest_threads};
        threads[r].nodes = transport == XP_EP_HIERARCHICAL ? nodes : NULL;
        threads[r].env = env_of(o, r, n_ranks, transport, dtype, timeout_s);
        if (pthread_create(&threads[r].thread, NULL, rank_main, &threads[r]) != 0)
            abort();
    }
    bool ok = true;
    for (int r = 0; r < n_ranks; r++)
        pthread_join(threads[r].thread, NULL);
    for (int r = 0; r < n_ranks; r++)
        ok = report(&threads[r].env, c) && ok;
    xp_thread_world_destroy(world);
    free(threads);
    return ok;
}

static bool run_processes(const options *o, const ep_case *c, int n_ranks,
                          xp_ep_transport transport, xp_dtype dtype) {
    ep_env envs[64];
    const double timeout_s = time_limit(c, n_ranks, 0.5);
    for (int r = 0; r < n_ranks; r++)
        envs[r] = env_of(o, r, n_ranks, transport, dtype, timeout_s);
    bool ok = ep_run_processes(envs, n_ranks, c, run_body);
    if (!ok)
        printf("FAILED %s, %d ranks, %s: a process did not end well\n", c->name, n_ranks,
               transports[transport]);
    for (int r = 0; r < n_ranks; r++)
        ok = report(&envs[r], c) && ok;
    return ok;
}

/* Between nodes a guest's transport is called on the calling thread alone, and finds by itself which
 * rank is late or gone. */
static bool is_beyond_guest(const options *o, const ep_case *c, xp_ep_transport transport) {
    return o->guest_threads && transport == XP_EP_HIERARCHICAL &&
           (c->breaks_world || strcmp(c->name, "worker-stream") == 0 ||
            strcmp(c->name, "two-slots") == 0);
}

static bool wanted(const options *o, const ep_case *c, int n_ranks, xp_ep_transport transport,
                   xp_dtype dtype) {
    return (!o->name || strcmp(o->name, c->name) == 0) && n_ranks >= c->min_ranks &&
           !(o->cuda && c->host_only) && !is_beyond_guest(o, c, transport) &&
           !(o->host_synchronized && transport != XP_EP_P2P) &&
           !(o->quick && (c->breaks_world || strcmp(c->name, "thousand-iterations") == 0)) &&
           (o->transport == XP_EP_AUTO || o->transport == transport) &&
           (o->dtype < 0 || o->dtype == (int)dtype) &&
           !(c->any_dtype && o->dtype < 0 && dtype == XP_BF16);
}

static double now_s(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* All chosen cases at one number of ranks. */
static void run_all(const options *o, int n_ranks, int *n_run, int *n_failed) {
    for (int i = 0; i < n_ep_cases; i++) {
        for (int t = XP_EP_P2P; t <= XP_EP_HIERARCHICAL; t++) {
            for (int d = 0; d < 2; d++) {
                xp_dtype dtype = d ? XP_BF16 : XP_F32;
                if (!wanted(o, &ep_cases[i], n_ranks, (xp_ep_transport)t, dtype))
                    continue;
                ++*n_run;
                const double began = now_s();
                const bool ok = (o->guest_processes ? run_processes : run_threads)(
                    o, &ep_cases[i], n_ranks, (xp_ep_transport)t, dtype);
                *n_failed += !ok;
                if (o->verbose)
                    printf("%s %s, %d ranks, %s, %s: %.2f s\n", ok ? "ok" : "not ok",
                           ep_cases[i].name, n_ranks, transports[t], xp_dtype_name(dtype),
                           now_s() - began);
                fflush(stdout);
            }
        }
    }
}

/* A GPU's first use takes seconds, and the ranks' short timeouts are not for that. */
static bool warm_up(int index) {
    const xp_device_args args = {.kind = XP_DEVICE_CUDA, .index = index};
    xp_device *device;
    void *memory = NULL;
    if (xp_device_create(&args, &device) != XP_OK)
        return false;
    xp_status status = xp_device_alloc(device, 256, "test", &memory);
    xp_device_destroy(device);
    return status == XP_OK;
}

/* This process is one rank of a launcher's. */
static int run_mpi(const options *o) {
    ep_env env = {.timeout_s = o->timeout_s};
    if (test_world_create(60, 60, &env.comm) != XP_OK) {
        fprintf(stderr, "%s\n", xp_last_error());
        return 1;
    }
    env.cuda = o->cuda;
    env.host_synchronized = o->host_synchronized;
    env.n_gpus = o->n_gpus;
    env.rank = xp_comm_rank(env.comm);
    env.n_ranks = xp_comm_size(env.comm);
    int n_run = 0, n_failed = 0;
    for (int i = 0; i < n_ep_cases; i++) {
        for (int t = XP_EP_P2P; t <= XP_EP_HIERARCHICAL; t++) {
            if (t == XP_EP_P2P && !xp_comm_is_one_node(env.comm))
                continue;
            for (int d = 0; d < 2; d++) {
                env.transport = (xp_ep_transport)t;
                env.dtype = d ? XP_BF16 : XP_F32;
                /* A case that ends the communicator runs only when it is the one asked for. */
                if (!wanted(o, &ep_cases[i], env.n_ranks, env.transport, env.dtype) ||
                    (ep_cases[i].breaks_world && !o->name))
                    continue;
                run_body(&env, &ep_cases[i]);
                n_run++;
                n_failed += env.failure[0] != '\0';
                report(&env, &ep_cases[i]);
            }
        }
    }
    if (env.rank == 0)
        printf("%d cases on %d ranks under MPI, %d failed on rank 0\n", n_run, env.n_ranks,
               n_failed);
    test_world_destroy(env.comm);
    return n_failed > 0 || n_run == 0;
}

int main(int argc, char **argv) {
    xp_gpu_environment_set();
    options o;
    if (!parse(argc, argv, &o)) {
        fprintf(stderr,
                "usage: %s [--ranks N] [--transport p2p|a2a|hierarchical] [--case NAME] [--dtype "
                "f32|bf16] [--mpi] [--guest threads|processes] [--device cpu|cuda] [--gpus N] "
                "[--host_synchronized] [--quick] "
                "[--timeout SECONDS] [--verbose]\n",
                argv[0]);
        return 2;
    }
    for (int i = 0; i < o.n_gpus && o.cuda && !o.mpi; i++) {
        if (!warm_up(i)) {
            fprintf(stderr, "GPU %d: %s\n", i, xp_last_error());
            return 1;
        }
    }
    if (o.mpi)
        return run_mpi(&o);
    const int ranks[] = {1, 2, 3, 4, 8};
    int n_run = 0, n_failed = 0;
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0] && o.ranks == 0; i++)
        run_all(&o, ranks[i], &n_run, &n_failed);
    if (o.ranks > 0)
        run_all(&o, o.ranks, &n_run, &n_failed);
    printf("%d cases, %d failed\n", n_run, n_failed);
    return n_failed > 0 || n_run == 0;
}
