#include "guests.h"

#include <string.h>
#include "../unit/comm/sockets.h"
#include "../unit/comm/thread_transport.h"

typedef struct shared {
    const ep_case *one;
    ep_rank_fn run;
    ep_env envs[SOCKETS_MAX_RANKS];
} shared;

static void rank_process(xp_comm *comm, void *context, int rank) {
    shared *s = context;
    ep_env *env = &s->envs[rank];
    env->comm = comm;
    s->run(env, s->one);
}

bool ep_run_processes(ep_env *envs, int n_ranks, const ep_case *c, ep_rank_fn run) {
    shared *s = shared_memory(sizeof *s);
    *s = (shared){.one = c, .run = run};
    memcpy(s->envs, envs, (size_t)n_ranks * sizeof *envs);
    const sockets_run all = {
        .n_ranks = n_ranks, .timeout_s = envs[0].timeout_s, .body = rank_process, .context = s};
    const int n_wrong = sockets_run_all(&all);
    memcpy(envs, s->envs, (size_t)n_ranks * sizeof *envs);
    shared_memory_free(s, sizeof *s);
    return n_wrong == 0;
}

xp_status ep_guest_of_threads(xp_comm *threads, double timeout_s, const int *nodes,
                              xp_comm **comm) {
    const thread_transport_args args = {.timeout_s = timeout_s, .nodes = nodes};
    return thread_transport_comm(threads, &args, comm);
}
