/*
 * fault PHASE HOW VICTIM [TRANSPORT]: ranks that work until one of them is lost in a phase.
 *   PHASE  init, plan, dispatch, combine, all-reduce, reduce-scatter, all-gather
 *   HOW    kill (SIGKILL), stop (SIGSTOP), memory (it says that its memory is out),
 *          absent (it never comes to the phase; for rank threads, which signals cannot single out)
 * Ranks are processes under mpirun, or with FAULT_THREADS=N threads of this one.
 * FAULT_TIMEOUT: seconds (2). FAULT_LAGGARD: a rank that comes out of the phase before it late.
 * FAULT_DEVICE=cuda: rank r works on GPU r; the fault happens while its peers' GPUs wait for it.
 * The end of a rank is the one of `expar train`: one line, the root cause last. With FAULT_TIMES the
 * victim and every survivor also print the time of day of fault and end ("at 1234.567").
 */
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "device/gpu_environment.h"
#include "expar/ep.h"

#define TOKENS  64
#define DIM     16
#define TOP_K   2
#define ROUNDS  3 /* layers that go well before the fault */
#define N_GRADS 4096
#define N_SMALL 16 /* so few that a rank leaves the all-reduce without the receivers' help */

typedef struct options {
    const char *phase, *how;
    int victim;
    xp_ep_transport transport;
    bool on_gpu;
} options;

typedef struct layer {
    xp_device *device;
    xp_stream *stream;
    xp_ep_group *group;
    xp_ep_plan *plan;
    int32_t *ids;    /* [TOKENS, TOP_K] */
    float *x;        /* [TOKENS, DIM] */
    float *grads;    /* [N_GRADS] */
    float *gathered; /* [ranks * N_GRADS] */
    float *recv, *y;
} layer;

static void print_time(const char *what, int rank) {
    struct timespec now;
    if (!getenv("FAULT_TIMES"))
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    fprintf(stderr, "rank %d %s at %lld.%03ld\n", rank, what, (long long)now.tv_sec,
            now.tv_nsec / 1000000);
}

static xp_status reserve(layer *l, size_t n_bytes, void *pointer) {
    void *data = NULL;
    XP_TRY(xp_device_alloc(l->device, n_bytes, "fault", &data));
    memcpy(pointer, &data, sizeof data);
    return xp_zero(l->stream, data, n_bytes);
}

static xp_status fill_ids(layer *l, int n_experts) {
    int32_t ids[TOKENS * TOP_K];
    for (int t = 0; t < TOKENS; t++)
        for (int k = 0; k < TOP_K; k++)
            ids[t * TOP_K + k] = (t + k * 3) % n_experts;
    XP_TRY(xp_copy(l->stream, l->ids, ids, sizeof ids));
    return xp_stream_sync(l->stream);
}

static xp_status make_layer(xp_comm *comm, const options *o, layer *l) {
    xp_device_args args = {.kind = o->on_gpu ? XP_DEVICE_CUDA : XP_DEVICE_CPU,
                           .index = xp_comm_rank(comm),
                           .n_threads = 1};
    const int n_ranks = xp_comm_size(comm);
    xp_ep_config config = {.max_tokens = TOKENS,
                           .dim = DIM,
                           .top_k = TOP_K,
                           .n_experts = 2 * n_ranks,
                           .dtype = XP_F32,
                           .capacity_factor = 2,
                           .transport = o->transport};
    XP_TRY(xp_device_create(&args, &l->device));
    XP_TRY(xp_stream_create(l->device, XP_STREAM_COMPUTE, &l->stream));
    XP_TRY(xp_ep_group_create(comm, l->device, &config, &l->group));
    XP_TRY(xp_ep_plan_create(l->group, &l->plan));
    XP_TRY(xp_comm_prepare(comm, l->device, 0));
    const xp_ep_sizes sizes = xp_ep_group_sizes(l->group);
    XP_TRY(reserve(l, TOKENS * TOP_K * sizeof *l->ids, &l->ids));
    XP_TRY(reserve(l, TOKENS * DIM * sizeof *l->x, &l->x));
    XP_TRY(reserve(l, N_GRADS * sizeof *l->grads, &l->grads));
    XP_TRY(reserve(l, (size_t)n_ranks * N_GRADS * sizeof *l->gathered, &l->gathered));
    XP_TRY(reserve(l, (size_t)sizes.recv_capacity * DIM * sizeof *l->recv, &l->recv));
    XP_TRY(reserve(l, (size_t)sizes.assignment_capacity * DIM * sizeof *l->y, &l->y));
    return fill_ids(l, config.n_experts);
}

/* The fault, when the chosen phase has come. */
static xp_status fall(const options *o) {
    if (o->on_gpu)
        usleep(300000); /* the peers' GPUs have come to their wait */
    print_time("falls", o->victim);
    if (strcmp(o->how, "memory") == 0)
        return xp_error(XP_ENOMEM, "out of memory: cannot reserve 3 GiB for activations");
    if (strcmp(o->how, "absent") == 0)
        for (;;)
            pause();
    raise(strcmp(o->how, "stop") == 0 ? SIGSTOP : SIGKILL);
    return XP_OK;
}

/* The victim shows the phase first, as every call does: others may still be in the one before, and
 * all that they can say of the phase is what the victim showed. */
static xp_status maybe(const options *o, xp_comm *comm, const char *phase) {
    if (xp_comm_rank(comm) != o->victim || strcmp(phase, o->phase) != 0)
        return XP_OK;
    xp_comm_set_phase(comm, phase);
    return fall(o);
}

static void sleep_in_handler(int number) {
    (void)number; /* there is one */
    usleep(800000);
}

/* Every thread but the main one: whichever serves MPI is among them. */
static void *hold_up_threads(void *context) {
    (void)context;  /* needs none */
    usleep(100000); /* its messages of the all-reduce are on their way */
    DIR *folder = opendir("/proc/self/task");
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        const int id = atoi(entry->d_name);
        if (id > 0 && id != getpid() && id != gettid())
            syscall(SYS_tgkill, getpid(), id, SIGUSR1);
    }
    if (folder)
        closedir(folder);
    return NULL;
}

/* The rank that FAULT_LAGGARD names is still in the all-reduce when the victim has left it and is
 * lost. */
static xp_status lag(const xp_comm *comm) {
    pthread_t thread;
    if (xp_comm_rank(comm) != atoi(getenv("FAULT_LAGGARD"))) {
        usleep(300000);
        return XP_OK;
    }
    signal(SIGUSR1, sleep_in_handler);
    if (pthread_create(&thread, NULL, hold_up_threads, NULL) != 0)
        return xp_error(XP_ENOMEM, "cannot start a thread");
    pthread_detach(thread);
    return XP_OK;
}

/* Everything queued so far has to end, also after a failure that only the device has met. */
static xp_status finish(xp_comm *comm, const layer *l) {
    const xp_status status = xp_stream_sync(l->stream);
    XP_TRY(xp_ep_async_error(l->group));
    XP_TRY(xp_comm_async_error(comm));
    return status;
}

static xp_status run_collectives(xp_comm *comm, const options *o, layer *l, bool fault, bool lags) {
    const int64_t n_each = N_GRADS / xp_comm_size(comm);
    xp_stream *stream = o->on_gpu ? l->stream : NULL;
    if (fault)
        XP_TRY(maybe(o, comm, "all-reduce"));
    if (lags)
        XP_TRY(lag(comm));
    xp_comm_set_phase(comm, "all-reduce");
    XP_TRY(xp_comm_all_reduce(comm, l->grads, l->grads, lags ? N_SMALL : N_GRADS, XP_F32, XP_SUM,
                              stream));
    if (fault)
        XP_TRY(maybe(o, comm, "reduce-scatter"));
    xp_comm_set_phase(comm, "reduce-scatter");
    XP_TRY(xp_comm_reduce_scatter(comm, l->grads, l->y, n_each, XP_F32, stream));
    if (fault)
        XP_TRY(maybe(o, comm, "all-gather"));
    xp_comm_set_phase(comm, "all-gather");
    return xp_comm_all_gather(comm, l->grads, l->gathered, N_GRADS, XP_F32, stream);
}

static xp_status run_layer(xp_comm *comm, const options *o, layer *l, int round) {
    const bool fault = round == ROUNDS, lags = round == ROUNDS - 1 && getenv("FAULT_LAGGARD");
    xp_ep_sizes sizes = xp_ep_group_sizes(l->group);
    xp_tensor x = xp_tensor_2d(l->x, XP_F32, TOKENS, DIM);
    xp_tensor recv = xp_tensor_2d(l->recv, XP_F32, sizes.recv_capacity, DIM);
    xp_tensor y = xp_tensor_2d(l->y, XP_F32, sizes.assignment_capacity, DIM);
    if (fault)
        XP_TRY(maybe(o, comm, "plan"));
    XP_TRY(xp_ep_plan_build(l->group, l->ids, NULL, TOKENS, l->stream, l->plan));
    if (fault)
        XP_TRY(maybe(o, comm, "dispatch"));
    XP_TRY(xp_ep_dispatch(l->group, l->plan, 0, &x, &recv, l->stream));
    if (fault)
        XP_TRY(maybe(o, comm, "combine"));
    XP_TRY(xp_ep_combine(l->group, l->plan, 0, &y, &x, l->stream));
    XP_TRY(run_collectives(comm, o, l, fault, lags));
    return o->on_gpu ? finish(comm, l) : XP_OK;
}

static xp_status run(xp_comm *comm, const options *o) {
    layer *l = calloc(1, sizeof *l);
    if (!l)
        return xp_error(XP_ENOMEM, "no memory");
    XP_TRY(make_layer(comm, o, l));
    for (int round = 0; round < ROUNDS; round++)
        XP_TRY(run_layer(comm, o, l, round));
    return run_layer(comm, o, l, ROUNDS);
}

/* @return the failure that the rank has heard of. Nobody lost: a test that cannot fail is a bug. */
static xp_status run_until_fault(xp_comm *comm, const options *o) {
    const int rank = xp_comm_rank(comm);
    const xp_status status = run(comm, o);
    print_time("ends", rank);
    if (status == XP_OK)
        return xp_error(XP_EINTERNAL, "the fault did not happen");
    xp_comm_abort(comm, xp_last_error());
    return status;
}

static void *fall_in_init(void *context) {
    const options *o = context;
    usleep(60000); /* its mark is there, and MPI_Init has begun */
    if (strcmp(o->phase, "init") == 0 && fall(o) != XP_OK)
        _exit(1);
    return NULL;
}

static void end(xp_status status) {
    if (status != XP_OK)
        fprintf(stderr, "error: %s\n", xp_last_error());
    fflush(NULL);
    _exit(status != XP_OK);
}

typedef struct rank_thread {
    pthread_t thread;
    const options *o;
    xp_thread_world *world;
    int rank;
    bool done;
} rank_thread;

static void *thread_main(void *context) {
    rank_thread *r = context;
    xp_comm *comm = NULL;
    xp_status status = xp_thread_world_comm(r->world, r->rank, &comm);
    if (status == XP_OK)
        status = run_until_fault(comm, r->o);
    fprintf(stderr, "error: rank %d: %s\n", r->rank, xp_last_error());
    __atomic_store_n(&r->done, true, __ATOMIC_RELEASE);
    return NULL;
}

/* Rank threads; the one that never comes is left alone. */
static int run_threads(const options *o, int n, double timeout_s) {
    rank_thread ranks[64];
    xp_thread_world *world = NULL;
    if (n < 2 || n > 64 || xp_thread_world_create(n, timeout_s, &world) != XP_OK)
        return 2;
    for (int r = 0; r < n; r++) {
        ranks[r] = (rank_thread){.o = o, .world = world, .rank = r};
        if (pthread_create(&ranks[r].thread, NULL, thread_main, &ranks[r]) != 0)
            return 2;
    }
    for (int r = 0; r < n; r++)
        while (!__atomic_load_n(&ranks[r].done, __ATOMIC_ACQUIRE) &&
               !(r == o->victim && strcmp(o->how, "absent") == 0))
            usleep(1000);
    fflush(NULL);
    _exit(1);
}

static options read_options(char **argv, int argc) {
    const char *device = getenv("FAULT_DEVICE"), *transport = argc > 4 ? argv[4] : "p2p";
    return (options){.phase = argv[1],
                     .how = argv[2],
                     .victim = atoi(argv[3]),
                     .on_gpu = device && strcmp(device, "cuda") == 0,
                     .transport = strcmp(transport, "a2a") == 0            ? XP_EP_A2A
                                  : strcmp(transport, "hierarchical") == 0 ? XP_EP_HIERARCHICAL
                                                                           : XP_EP_P2P};
}

int main(int argc, char **argv) {
    xp_gpu_environment_set();
    if (argc < 4)
        return 2;
    options o = read_options(argv, argc);
    const char *timeout = getenv("FAULT_TIMEOUT"), *threads = getenv("FAULT_THREADS");
    const double timeout_s = timeout ? atof(timeout) : 2;
    sigset_t set; /* as a trainer does: a launcher's SIGTERM is no reason to leave without a word */
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    if (threads)
        return run_threads(&o, atoi(threads), timeout_s);
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    pthread_t thread;
    if (rank && atoi(rank) == o.victim && pthread_create(&thread, NULL, fall_in_init, &o) != 0)
        return 2;
    xp_comm *comm = NULL;
    /* GPUs take longer to come up than the timeout of the test. */
    xp_status status = xp_mpi_world_comm(o.on_gpu ? 60 : timeout_s, timeout_s, &comm);
    if (status != XP_OK)
        end(status);
    end(xp_comm_final_error(comm, run_until_fault(comm, &o)));
}
