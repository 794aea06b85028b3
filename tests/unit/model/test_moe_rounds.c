/* Which expert rows are kept for the backward pass and how many rounds are run, against a count of
 * the routing that knows nothing of arenas and plans. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

enum { MAX_RANKS = 4, ROWS = 8, SEQ = 9, E = 8, N_LAYERS = 3 };

typedef enum routing {
    NATURAL = 0, /* as the weights choose */
    SKEWED,      /* every layer: all tokens to the first experts */
    ONE_LAYER,   /* only the first layer is skewed */
} routing;

typedef struct setting {
    routing routing;
    double capacity_factor, saved_rows_factor;
    xp_ep_transport transport;
    xp_recompute recompute;
    int send_copies;
} setting;

typedef struct rank_job {
    xp_thread_world *world;
    int rank, n_ranks;
    xp_model_args args;
    const setting *setting;
    float *grads;
    int64_t n_grads;
    int64_t counts[N_LAYERS * E]; /* of this rank's tokens */
    xp_moe_recomputed recomputed;
} rank_job;

static xp_arch make_arch(void) {
    xp_arch arch = xp_test_moe_arch();
    arch.n_experts = E;
    arch.n_layers = N_LAYERS;
    arch.top_k = 2;
    return arch;
}

static void force(xp_model *model, routing how) {
    float *bias = xp_model_expert_bias(model);
    const int n = how == NATURAL ? 0 : how == SKEWED ? N_LAYERS : 1;
    for (int l = 0; l < n; l++) {
        bias[l * E] = 100.0F;
        bias[l * E + 1] = 50.0F;
    }
}

static void *rank_main(void *arg) {
    rank_job *job = arg;
    xp_test_model t;
    xp_comm *comm = NULL;
    xp_test_must(xp_thread_world_comm(job->world, job->rank, &comm));
    job->args.ep_comm = comm;
    xp_test_model_create(job->args, 1, &t);
    for (int64_t i = 0; i < t.n_tokens; i++)
        t.tokens[i] = (int32_t)((t.tokens[i] + 5 * job->rank) % t.arch.vocab_size);
    force(t.model, job->setting->routing);
    xp_test_step(&t);
    xp_model_reset_stats(t.model);
    memset(xp_model_expert_counts(t.model), 0, sizeof job->counts);
    xp_test_step(&t);
    job->recomputed = xp_model_recomputed(t.model);
    memcpy(job->counts, xp_model_expert_counts(t.model), sizeof job->counts);
    job->n_grads = xp_param_table_n_elements(xp_model_params(t.model));
    job->grads = xp_test_grads(&t);
    xp_test_model_destroy(&t);
    xp_comm_destroy(comm);
    return NULL;
}

static void run(int n_ranks, const setting *s, rank_job *jobs) {
    static xp_arch arch;
    arch = make_arch();
    xp_model_args args = xp_test_args(&arch);
    args.n_rows = ROWS / n_ranks;
    args.seq_len = SEQ;
    args.ep.capacity_factor = s->capacity_factor;
    args.ep.transport = s->transport;
    args.ep.send_copies = s->send_copies;
    args.saved_rows_factor = s->saved_rows_factor;
    args.recompute = s->recompute;
    xp_thread_world *world = NULL;
    pthread_t threads[MAX_RANKS];
    xp_test_must(xp_thread_world_create(n_ranks, 20.0, &world));
    for (int r = 0; r < n_ranks; r++) {
        jobs[r] =
            (rank_job){.world = world, .rank = r, .n_ranks = n_ranks, .args = args, .setting = s};
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &jobs[r]), 0);
    }
    for (int r = 0; r < n_ranks; r++)
        pthread_join(threads[r], NULL);
    xp_thread_world_destroy(world);
}

static void drop(rank_job *jobs, int n_ranks) {
    for (int r = 0; r < n_ranks; r++)
        free(jobs[r].grads);
}

static int64_t assignments_of(const rank_job *jobs, int n_ranks, int layer, int rank) {
    const int n_local = E / n_ranks;
    int64_t n = 0;
    for (int from = 0; from < n_ranks; from++)
        for (int e = rank * n_local; e < (rank + 1) * n_local; e++)
            n += jobs[from].counts[layer * E + e];
    return n;
}

/* What each rank has to compute again, from the routing alone. */
static xp_moe_recomputed expect(const rank_job *jobs, int n_ranks, int rank, const setting *s,
                                int64_t *n_several) {
    const int64_t tokens = (int64_t)(ROWS / n_ranks) * SEQ, k = 2;
    const int64_t per_row = k < E / n_ranks ? k : E / n_ranks;
    const int64_t most = n_ranks * tokens * per_row;
    int64_t q = (int64_t)ceil(s->capacity_factor * (double)(tokens * k));
    int64_t p = q + per_row - 1 < most ? q + per_row - 1 : most;
    int64_t saved = p;
    if (n_ranks == 1)
        saved = tokens * k;
    else if (s->saved_rows_factor > 0 &&
             ceil(s->saved_rows_factor * (double)(tokens * k)) < (double)p)
        saved = (int64_t)ceil(s->saved_rows_factor * (double)(tokens * k));
    xp_moe_recomputed expected = {0};
    int64_t room = N_LAYERS * saved;
    *n_several = 0;
    for (int l = 0; l < N_LAYERS; l++) {
        int64_t n_rounds = 1;
        for (int r = 0; r < n_ranks; r++) {
            const int64_t n = assignments_of(jobs, n_ranks, l, r);
            const int64_t rounds = n <= p ? 1 : (n + (p - per_row)) / (p - per_row + 1);
            n_rounds = rounds > n_rounds ? rounds : n_rounds;
        }
        *n_several += n_rounds > 1;
        const int64_t n = assignments_of(jobs, n_ranks, l, rank);
        if (n <= room) {
            room -= n;
        } else if (s->recompute == XP_RECOMPUTE_NONE) {
            expected.n_rounds += n_rounds;
            expected.n_overflow += n_rounds > 1 ? n_rounds : 0;
        }
    }
    return expected;
}

/* @return rounds computed again over all ranks */
static int64_t check(int n_ranks, const setting *s, int64_t *n_several) {
    rank_job jobs[MAX_RANKS];
    int64_t total = 0;
    run(n_ranks, s, jobs);
    for (int r = 0; r < n_ranks; r++) {
        const xp_moe_recomputed expected = expect(jobs, n_ranks, r, s, n_several);
        assert_int_equal(jobs[r].recomputed.n_rounds, expected.n_rounds);
        assert_int_equal(jobs[r].recomputed.n_overflow, expected.n_overflow);
        total += expected.n_rounds;
    }
    drop(jobs, n_ranks);
    return total;
}

static void what_fits_capacity_is_kept(void **state) {
    (void)state;
    int64_t n_several;
    for (int n_ranks = 1; n_ranks <= MAX_RANKS; n_ranks *= 2) {
        for (int i = 0; i < 4; i++) {
            const setting s = {.routing = (i & 1) != 0 ? SKEWED : NATURAL,
                               .capacity_factor = n_ranks, /* holds every routing */
                               .transport = (i & 2) != 0 ? XP_EP_A2A : XP_EP_P2P};
            assert_int_equal(check(n_ranks, &s, &n_several), 0);
            assert_int_equal(n_several, 0);
        }
        const setting natural = {.capacity_factor = 2.0, .transport = XP_EP_P2P};
        assert_int_equal(check(n_ranks, &natural, &n_several), 0);
    }
}

static void what_has_no_room_is_counted(void **state) {
    (void)state;
    int64_t n_several;
    for (int n_ranks = 2; n_ranks <= MAX_RANKS; n_ranks *= 2) {
        const setting small = {
            .capacity_factor = n_ranks, .saved_rows_factor = 0.7, .transport = XP_EP_P2P};
        assert_true(check(n_ranks, &small, &n_several) > 0);
        assert_int_equal(n_several, 0);
        const setting over = {.routing = SKEWED, .capacity_factor = 1.0, .transport = XP_EP_A2A};
        assert_true(check(n_ranks, &over, &n_several) > 0);
        assert_int_equal(n_several, N_LAYERS);
        /* One layer over its capacity lives off the room of the others. */
        const setting one = {.routing = ONE_LAYER, .capacity_factor = 1.6, .transport = XP_EP_P2P};
        check(n_ranks, &one, &n_several);
        assert_true(n_several >= 1);
        const setting asked = {.routing = SKEWED,
                               .capacity_factor = 1.0,
                               .transport = XP_EP_P2P,
                               .recompute = XP_RECOMPUTE_SELECTIVE};
        assert_int_equal(check(n_ranks, &asked, &n_several), 0);
    }
}

/* Keeping rows or computing them again gives the same bits. */
static void keeping_changes_no_bit(void **state) {
    (void)state;
    for (int n_ranks = 2; n_ranks <= MAX_RANKS; n_ranks *= 2) {
        for (int i = 0; i < 2; i++) {
            const setting kept = {.routing = ONE_LAYER,
                                  .capacity_factor = i == 0 ? n_ranks : 1.5,
                                  .transport = XP_EP_P2P};
            setting again = kept;
            again.saved_rows_factor = 1e-3;
            rank_job a[MAX_RANKS], b[MAX_RANKS];
            run(n_ranks, &kept, a);
            run(n_ranks, &again, b);
            for (int r = 0; r < n_ranks; r++) {
                assert_true(b[r].recomputed.n_rounds > a[r].recomputed.n_rounds);
                assert_memory_equal(a[r].grads, b[r].grads, (size_t)a[r].n_grads * sizeof(float));
            }
            drop(a, n_ranks);
            drop(b, n_ranks);
        }
    }
}

/* Rows sent several times, to measure. */
static void copies_change_no_bit(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        const setting once = {.routing = ONE_LAYER,
                              .capacity_factor = (i & 1) != 0 ? 2.0 : 0.7,
                              .transport = (i & 2) != 0 ? XP_EP_A2A : XP_EP_P2P};
        setting copied = once;
        copied.send_copies = 5;
        rank_job a[MAX_RANKS], b[MAX_RANKS];
        run(MAX_RANKS, &once, a);
        run(MAX_RANKS, &copied, b);
        for (int r = 0; r < MAX_RANKS; r++)
            assert_memory_equal(a[r].grads, b[r].grads, (size_t)a[r].n_grads * sizeof(float));
        drop(a, MAX_RANKS);
        drop(b, MAX_RANKS);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_fits_capacity_is_kept),
        cmocka_unit_test(what_has_no_room_is_counted),
        cmocka_unit_test(keeping_changes_no_bit),
        cmocka_unit_test(copies_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
