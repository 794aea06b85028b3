/*
 * The same seed and the same global batch at any number of ranks and any expert parallel degree:
 * the same gradients and losses up to rounding, and where ranks and degree are the same, the same
 * bits, whatever carries the rows and however often it is run.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/fleet.h"
#include "core/file.h"

#define STEPS 50 /* of few layouts; all of them with XP_TEST_LONG */
#define FEW   10
#define ROWS  8 /* of the global batch */

enum { REAL, FORCED, N_ROUTINGS };

typedef struct shared_runs {
    char *folder;
    fleet_record one[N_ROUTINGS]; /* one rank, STEPS steps */
} shared_runs;

static void options_for(const shared_runs *s, int ranks, int routing, const char *more, char *text,
                        size_t size) {
    snprintf(text, size,
             "--model.flavor tiny_moe --model.vocab_size 512 --training.dataset tokens "
             "--training.dataset_path %s/tokens.bin --job.dump_folder %s/run --training.seq_len 32 "
             "--training.global_batch_size %d --training.local_batch_size %d --training.steps %d "
             "--lr_scheduler.warmup_steps 5 --optimizer.lr 1e-3 --job.threads_per_rank 1 "
             "--debug.seed 7 %s %s",
             s->folder, s->folder, ROWS, ROWS / ranks, STEPS,
             routing == FORCED ? "--debug.moe_force_load_balance" : "", more);
}

static void train(const shared_runs *s, int ranks, int routing, int steps, const char *more,
                  fleet_record *record) {
    char options[1024];
    options_for(s, ranks, routing, more, options, sizeof options);
    fleet_train(ranks, options, steps, record);
}

static int make_runs(void **state) {
    shared_runs *s = calloc(1, sizeof *s);
    if (!s || !(s->folder = fleet_make_data(40000, 512)))
        return -1;
    *state = s;
    for (int routing = 0; routing < N_ROUTINGS; routing++)
        train(s, 1, routing, STEPS, "", &s->one[routing]);
    return 0;
}

static int free_runs(void **state) {
    shared_runs *s = *state;
    for (int routing = 0; routing < N_ROUTINGS; routing++)
        fleet_record_free(&s->one[routing]);
    xp_status status = xp_folder_remove(s->folder);
    free(s->folder);
    free(s);
    return status == XP_OK ? 0 : -1;
}

/* The figures of numerics.md: rounding grows while training goes on. */
static void check_agrees(const shared_runs *s, int routing, const fleet_record *b,
                         const char *what) {
    const fleet_record *a = &s->one[routing];
    const char *worst = NULL;
    double gradients = tensor_set_distance(&a->gradients, &b->gradients, &worst);
    double first = fleet_loss_distance(a, b, 1, 1);
    double ten = fleet_loss_distance(a, b, 1, 10);
    double last = b->n_steps == STEPS ? fleet_loss_distance(a, b, STEPS, STEPS) : 0;
    print_message("%-44s loss 1: %.1e, 1-10: %.1e, %d: %.1e; gradients: %.1e (%s)\n", what, first,
                  ten, b->n_steps, last, gradients, worst ? worst : "all equal");
    assert_true(first <= 1e-6);
    assert_true(gradients <= 1e-5);
    assert_true(ten <= 1e-6);
    assert_true(last <= 0.02);
}

static void compare_steps(const shared_runs *s, int ranks, int routing, int steps,
                          const char *more) {
    fleet_record record;
    char what[160];
    train(s, ranks, routing, getenv("XP_TEST_LONG") ? STEPS : steps, more, &record);
    snprintf(what, sizeof what, "%d ranks %s %s", ranks, routing == FORCED ? "forced" : "real",
             strrchr(more, '.') ? strrchr(more, '.') + 1 : "");
    check_agrees(s, routing, &record, what);
    fleet_record_free(&record);
}

static void compare(const shared_runs *s, int ranks, int routing, const char *more) {
    compare_steps(s, ranks, routing, FEW, more);
}

static void the_loss_falls(void **state) {
    const shared_runs *s = *state;
    for (int routing = 0; routing < N_ROUTINGS; routing++) {
        const fleet_record *one = &s->one[routing];
        assert_true(fabs(one->losses[0] - log(512)) < 0.05);
        assert_true(one->losses[STEPS - 1] < one->losses[0] - 0.5);
    }
}

static void data_parallel_ranks_agree(void **state) {
    compare(*state, 2, REAL, "");
    compare_steps(*state, 4, REAL, STEPS, "");
}

static void accumulation_agrees(void **state) {
    compare(*state, 2, REAL, "--training.local_batch_size 2");
}

static void expert_parallel_degrees_agree(void **state) {
    for (int routing = 0; routing < N_ROUTINGS; routing++) {
        compare(*state, 2, routing, "--parallelism.expert_parallel_degree 2");
        compare_steps(*state, 4, routing, STEPS, "--parallelism.expert_parallel_degree 4");
        compare(*state, 8, routing, "--parallelism.expert_parallel_degree 8");
    }
    compare(*state, 8, REAL, "--parallelism.expert_parallel_degree 2");
}

static void overlap_agrees(void **state) {
    for (int routing = 0; routing < N_ROUTINGS; routing++) {
        compare(*state, 4, routing,
                "--training.local_batch_size 2 --parallelism.expert_parallel_degree 4 "
                "--parallelism.expert_parallel_overlap");
        compare(*state, 2, routing,
                "--training.local_batch_size 4 --parallelism.expert_parallel_degree 2 "
                "--parallelism.expert_parallel_overlap");
    }
}

/* ---- the same bits ----------------------------------------------------------------------- */

static void check_same_bits(const fleet_record *a, const fleet_record *b, const char *what) {
    const char *name = NULL;
    if (memcmp(a->losses, b->losses, sizeof a->losses) != 0 ||
        memcmp(a->norms, b->norms, sizeof a->norms) != 0)
        fail_msg("%s: losses or norms differ", what);
    if (!tensor_set_equal(&a->gradients, &b->gradients, &name))
        fail_msg("%s: the gradient of %s differs", what, name);
    if (!tensor_set_equal(&a->state, &b->state, &name))
        fail_msg("%s: %s differs", what, name);
}

static void same_bits(const shared_runs *s, int ranks, const char *a, const char *b) {
    fleet_record records[2];
    char what[400];
    for (int routing = 0; routing < N_ROUTINGS; routing++) {
        train(s, ranks, routing, 6, a, &records[0]);
        train(s, ranks, routing, 6, b, &records[1]);
        snprintf(what, sizeof what, "%d ranks, \"%s\" and \"%s\"", ranks, a, b);
        check_same_bits(&records[0], &records[1], what);
        fleet_record_free(&records[0]);
        fleet_record_free(&records[1]);
    }
}

static void repeated_runs_have_the_same_bits(void **state) {
    same_bits(*state, 1, "", "");
    same_bits(*state, 4, "", "");
    same_bits(*state, 4, "--parallelism.expert_parallel_degree 2",
              "--parallelism.expert_parallel_degree 2");
    same_bits(*state, 4,
              "--parallelism.expert_parallel_degree 4 --parallelism.expert_parallel_overlap",
              "--parallelism.expert_parallel_degree 4 --parallelism.expert_parallel_overlap");
}

static void deepep_and_standard_have_the_same_bits(void **state) {
    static const struct { int ranks, degree; } layouts[] = {{2, 2}, {4, 2}, {4, 4}, {8, 8}};
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        char standard[160];
        char deepep[160];
        snprintf(standard, sizeof standard,
                 "--parallelism.expert_parallel_degree %d "
                 "--parallelism.expert_parallel_comm_backend standard",
                 layouts[i].degree);
        snprintf(deepep, sizeof deepep,
                 "--parallelism.expert_parallel_degree %d "
                 "--parallelism.expert_parallel_comm_backend deepep",
                 layouts[i].degree);
        same_bits(*state, layouts[i].ranks, standard, deepep);
    }
}

static void activation_checkpointing_changes_no_bit(void **state) {
    same_bits(*state, 1, "", "--activation_checkpoint.mode selective");
    same_bits(*state, 1, "", "--activation_checkpoint.mode full");
    same_bits(*state, 4, "--parallelism.expert_parallel_degree 4",
              "--parallelism.expert_parallel_degree 4 --activation_checkpoint.mode selective");
    same_bits(*state, 4, "--parallelism.expert_parallel_degree 4",
              "--parallelism.expert_parallel_degree 4 --activation_checkpoint.mode full");
    same_bits(*state, 2, "--parallelism.expert_parallel_degree 2 --training.local_batch_size 2",
              "--parallelism.expert_parallel_degree 2 --training.local_batch_size 2 "
              "--activation_checkpoint.mode full");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_loss_falls),
        cmocka_unit_test(data_parallel_ranks_agree),
        cmocka_unit_test(accumulation_agrees),
        cmocka_unit_test(expert_parallel_degrees_agree),
        cmocka_unit_test(overlap_agrees),
        cmocka_unit_test(repeated_runs_have_the_same_bits),
        cmocka_unit_test(deepep_and_standard_have_the_same_bits),
        cmocka_unit_test(activation_checkpointing_changes_no_bit),
    };
    return cmocka_run_group_tests(tests, make_runs, free_runs);
}
