/**
 * The EP tests' bodies run on every rank of whatever provider the runner started: rank threads, or
 * processes under MPI. A body says what must be true from outside; it may use only the public
 * header and the reference below.
 */
#ifndef TESTS_EP_HARNESS_H
#define TESTS_EP_HARNESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "expar/ep.h"

typedef struct ep_env {
    xp_comm *comm;
    xp_device *device;
    xp_stream *stream;
    int rank, n_ranks;
    bool cuda;              /* ranks on GPUs: rank r on number r % n_gpus */
    bool host_synchronized; /* xp_ep_config.host_synchronized */
    int n_gpus;
    xp_ep_transport transport;
    xp_dtype dtype;
    double timeout_s;
    char failure[512]; /* "" while all is well */
} ep_env;

/** Note the first failure of this rank; false, so that a check can `return ep_fail(...)`. */
bool ep_fail(ep_env *env, const char *format, ...) XP_PRINTF(2, 3);
#define EP_CHECK(env, condition, ...)                                                              \
    do {                                                                                           \
        if (!(condition))                                                                          \
            return ep_fail(env, __VA_ARGS__);                                                      \
    } while (0)
#define EP_OK(env, call)                                                                           \
    do {                                                                                           \
        if ((call) != XP_OK)                                                                       \
            return ep_fail(env, "%s: %s", #call, xp_last_error());                                 \
    } while (0)

typedef struct ep_case {
    const char *name;
    bool (*body)(ep_env *env);
    bool breaks_world; /* needs ranks of its own: it ends with a failed communicator */
    bool any_dtype;    /* once is enough, the row type does not matter */
    int min_ranks;
    bool host_only;   /* reads and writes device memory itself */
    double timeout_s; /* of a world that it breaks without waiting for it to pass; 0: a short one */
} ep_case;
extern const ep_case ep_cases[];
extern const int n_ep_cases;

/** How a case routes: any rank can compute the routing of any other. */
typedef enum ep_routing {
    ROUTE_RANDOM,     /* K distinct experts */
    ROUTE_HOLES,      /* the same, a quarter of the assignments missing */
    ROUTE_NONE,       /* all -1 */
    ROUTE_ONE_EXPERT, /* the last expert, nothing else */
    ROUTE_ONE_RANK,   /* the last rank's experts only, as many as it has */
    ROUTE_SKEWED,     /* low experts more often */
    ROUTE_MODULO,     /* forced balance */
} ep_routing;

typedef struct ep_problem {
    int n_ranks, n_experts, top_k;
    int64_t max_tokens, dim;
    int64_t tokens[64]; /* T of each rank */
    double capacity_factor;
    int send_copies;
    xp_dtype dtype;
    ep_routing routing;
    uint64_t seed;
} ep_problem;

/* ---- reference.c: what must happen, computed the slow way ---- */

/** [K] ids of a token. */
void ref_route(const ep_problem *p, int rank, int64_t token, int32_t *ids);
float ref_weight(const ep_problem *p, int rank, int64_t token, int expert);
/** Element of a token row: the source rank in column 0, sin(token id) in column 1, noise after;
 * rounded to the row type. */
float ref_x(const ep_problem *p, int rank, int64_t token, int64_t column);
/** What the test's expert makes of a row, rounded to the row type. */
float ref_expert(const ep_problem *p, int expert, float x, float weight);
/** The gradient that the test's backward gives to a weight. */
float ref_d_weight(int source, int64_t token, int expert);
float ref_round(xp_dtype dtype, float value);
float ref_load(xp_dtype dtype, const void *data, int64_t i);
void ref_store(xp_dtype dtype, void *data, int64_t i, float value);

typedef struct ref_row {
    int source;
    int64_t token, round, first_assignment;
    int n_assignments;
    int experts[64]; /* global ids, ascending */
} ref_row;

/** The rows that a rank receives, in order. Free with free(). */
typedef struct ref_layout {
    ref_row *rows;
    int64_t n_rows, n_assignments, n_rounds;
} ref_layout;
ref_layout ref_receive(const ep_problem *p, int rank, int64_t assignment_capacity);

/** out[t, :] of combine over `value(expert, x, weight)` rows after all rounds. nodes: NULL, or the
 * node of each rank. */
void ref_combine(const ep_problem *p, int rank, int64_t assignment_capacity, const int *nodes,
                 int64_t token, float *out);

/* ---- check.c, setup.c ---- */

/** Everything about one routing, from layout to both backward directions, against the reference. */
bool ep_check_all(ep_env *env, const ep_problem *p, int n_repeats);
/** The same inside a group that the caller keeps. */
bool ep_check_in_group(ep_env *env, const ep_problem *p, xp_ep_group *group, xp_ep_plan *plan,
                       xp_stream *stream);
/** What test memory holds at first. */
#define EP_POISON 0x5c
/** Memory that both the test and the rank's device can address, poisoned; with 16 bytes behind. */
void *ep_shared(ep_env *env, size_t n_bytes);
void ep_release(ep_env *env, void *data);
/** The same data in such memory; `from` is freed. */
void *ep_share(ep_env *env, void *from, size_t n_bytes);
/**
 * On GPUs: wait for all ranks. Reserving or freeing memory waits for kernels, and these may wait
 * for the rank that reserves: so after the one and before the other.
 */
bool ep_settle(ep_env *env);
/** A round's view in memory that the test can read; `memory` is the caller's to free. */
bool ep_read_view(ep_env *env, const ep_problem *p, const xp_ep_plan *plan, int64_t round,
                  int64_t assignment_rows, xp_stream *stream, xp_ep_view *view, void **memory);
bool ep_make_group(ep_env *env, const ep_problem *p, int n_slots, xp_ep_group **group);
/** A problem of a default shape for this number of ranks; cases change what they are about. */
ep_problem ep_problem_for(const ep_env *env, ep_routing routing);
/** This rank's [T, K] ids and weights; free() both. */
void ep_fill_routing(const ep_problem *p, int rank, int32_t **ids, float **weights);

#endif
