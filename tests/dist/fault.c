/*
 * fault PHASE HOW VICTIM [TRANSPORT]: ranks that work until one of them is lost in a phase.
 *   PHASE  init, plan, dispatch, combine, all-reduce
 *   HOW    kill (SIGKILL), stop (SIGSTOP), memory (it says that its memory is out)
 * FAULT_TIMEOUT: seconds (2). FAULT_LAGGARD: a rank that comes out of the phase before it late.
 * The end of a rank is the one of `expar train`: one line, the root cause last.
 */
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
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
} options;

typedef struct layer {
    xp_device *device;
    xp_stream *stream;
    xp_ep_group *group;
    xp_ep_plan *plan;
    int32_t ids[TOKENS * TOP_K];
    float x[TOKENS * DIM], grads[N_GRADS];
    float *recv, *y;
} layer;

static xp_status make_layer(xp_comm *comm, const options *o, layer *l) {
    xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    int n_ranks = xp_comm_size(comm);
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
    for (int t = 0; t < TOKENS; t++)
        for (int k = 0; k < TOP_K; k++)
            l->ids[t * TOP_K + k] = (t + k * 3) % config.n_experts;
    xp_ep_sizes sizes = xp_ep_group_sizes(l->group);
    l->recv = calloc((size_t)sizes.recv_capacity * DIM, sizeof *l->recv);
    l->y = calloc((size_t)sizes.assignment_capacity * DIM, sizeof *l->y);
    return l->recv && l->y ? XP_OK : xp_error(XP_ENOMEM, "no memory");
}

/* The fault, when the chosen phase has come. */
static xp_status fall(const options *o) {
    if (strcmp(o->how, "memory") == 0)
        return xp_error(XP_ENOMEM, "out of memory: cannot reserve 3 GiB for activations");
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

static xp_status run_layer(xp_comm *comm, const options *o, layer *l, int round) {
    const bool fault = round == ROUNDS;
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
    if (fault)
        XP_TRY(maybe(o, comm, "all-reduce"));
    const bool lags = round == ROUNDS - 1 && getenv("FAULT_LAGGARD");
    if (lags)
        XP_TRY(lag(comm));
    xp_comm_set_phase(comm, "all-reduce");
    return xp_comm_all_reduce(comm, l->grads, l->grads, lags ? N_SMALL : N_GRADS, XP_F32, XP_SUM,
                              NULL);
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

int main(int argc, char **argv) {
    options o = {.transport = XP_EP_P2P};
    if (argc < 4)
        return 2;
    o.phase = argv[1];
    o.how = argv[2];
    o.victim = atoi(argv[3]);
    if (argc > 4 && strcmp(argv[4], "a2a") == 0)
        o.transport = XP_EP_A2A;
    if (argc > 4 && strcmp(argv[4], "hierarchical") == 0)
        o.transport = XP_EP_HIERARCHICAL;
    sigset_t set; /* as a trainer does: a launcher's SIGTERM is no reason to leave without a word */
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    pthread_t thread;
    if (rank && atoi(rank) == o.victim && pthread_create(&thread, NULL, fall_in_init, &o) != 0)
        return 2;
    xp_comm *comm = NULL;
    const char *timeout = getenv("FAULT_TIMEOUT");
    double timeout_s = timeout ? atof(timeout) : 2;
    xp_status status = xp_mpi_world_comm(timeout_s, timeout_s, &comm);
    if (status != XP_OK)
        end(status);
    status = run(comm, &o);
    if (status == XP_OK) /* nobody was lost: a test that cannot fail is a bug */
        status = xp_error(XP_EINTERNAL, "the fault did not happen");
    else
        xp_comm_abort(comm, NULL);
    end(xp_comm_last_words(comm, status));
}
