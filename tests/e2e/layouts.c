/*
 * A checkpoint knows neither ranks nor expert parallel degrees: it goes on anywhere with the same
 * next loss, and comes back from any chain of layouts with the same bits.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "common/fleet.h"
#include "core/file.h"

#define ROWS  48 /* of the global batch: whole at 1, 2, 3, 4, 6, 8 and 16 ranks */
#define STEPS 3

typedef struct layout {
    int ranks, degree;
} layout;

typedef struct saved_run {
    char *folder;
    double next_loss; /* of the run that went on where it was */
} saved_run;

/* `from`: a run's folder to go on from, or "" to start anew. */
static void options_for(const saved_run *s, layout l, const char *dump, const char *from,
                        char *text, size_t size) {
    char load[256] = "";
    if (from[0])
        snprintf(load, sizeof load,
                 "--checkpoint.initial_load_path %s/%s --checkpoint.no_initial_load_model_only",
                 s->folder, from);
    snprintf(text, size,
             "--model.flavor tiny_moe --model.vocab_size 256 --training.dataset tokens "
             "--training.dataset_path %s/tokens.bin --job.dump_folder %s/%s --training.seq_len 16 "
             "--training.global_batch_size %d --training.local_batch_size %d --training.steps 20 "
             "--lr_scheduler.warmup_steps 2 --optimizer.lr 1e-3 --job.threads_per_rank 1 "
             "--checkpoint.enable --checkpoint.async_mode disabled "
             "--parallelism.expert_parallel_degree %d %s",
             s->folder, s->folder, dump, ROWS, ROWS / l.ranks, l.degree, load);
}

/* ---- what ranks do ----------------------------------------------------------------------- */

static xp_status save(xp_trainer *t) {
    XP_TRY(xp_trainer_save(t, false));
    return xp_trainer_publish(t, true);
}

static xp_status train_save_step(xp_trainer *t, void *context) {
    saved_run *s = context;
    xp_step_record record;
    for (int i = 0; i < STEPS; i++)
        XP_TRY(xp_trainer_step(t, &record));
    XP_TRY(save(t));
    XP_TRY(xp_trainer_step(t, &record));
    if (t->rank == 0)
        s->next_loss = record.loss;
    return XP_OK;
}

static xp_status step_once(xp_trainer *t, void *context) {
    double *loss = context;
    xp_step_record record;
    XP_TRY(xp_trainer_step(t, &record));
    if (t->rank == 0)
        *loss = record.loss;
    return record.step == STEPS + 1
               ? XP_OK
               : xp_error(XP_EINTERNAL, "went on at step %lld", (long long)record.step);
}

static xp_status only_save(xp_trainer *t, void *context) {
    int *n_saved = context;
    XP_TRY(save(t));
    if (t->rank == 0)
        ++*n_saved;
    return XP_OK;
}

/* The same with a second moment that no update makes. */
static xp_status save_negative_moment(xp_trainer *t, void *context) {
    xp_step_record record;
    (void)context;
    XP_TRY(xp_trainer_step(t, &record));
    if (t->rank == 0)
        xp_shard_get_chunk(t->run.shard, 0).v[3] = -1;
    return save(t);
}

static xp_status run(const saved_run *s, layout l, const char *dump, const char *from,
                     fleet_body body, void *context) {
    char options[1024];
    options_for(s, l, dump, from, options, sizeof options);
    fleet_args args = {.n_ranks = l.ranks, .options = options, .body = body, .context = context};
    return fleet_run(&args);
}

/* ---- tests ------------------------------------------------------------------------------- */

static void next_loss_is_the_same_at_any_layout(void **state) {
    saved_run *s = *state;
    static const layout layouts[] = {{1, 1}, {2, 1}, {2, 2}, {3, 1},  {4, 4},  {6, 1},
                                     {6, 2}, {8, 1}, {8, 8}, {16, 4}, {16, 16}};
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        double loss = 0;
        if (run(s, layouts[i], "moved", "start", step_once, &loss) != XP_OK)
            fail_msg("%d ranks, EP %d: %s", layouts[i].ranks, layouts[i].degree, xp_last_error());
        double off = fabs(loss - s->next_loss) / s->next_loss;
        print_message("8 ranks, EP 4 -> %2d ranks, EP %2d: next loss %.8f, off by %.1e\n",
                      layouts[i].ranks, layouts[i].degree, loss, off);
        assert_true(off <= 1e-6);
    }
    double again = 0;
    assert_int_equal(run(s, (layout){8, 4}, "moved", "start", step_once, &again), XP_OK);
    assert_true(again == s->next_loss);
}

static void degrees_that_do_not_divide_are_named(void **state) {
    static const layout layouts[] = {{3, 3}, {6, 3}, {6, 4}, {8, 3}};
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        double loss = 0;
        assert_int_equal(run(*state, layouts[i], "wrong", "start", step_once, &loss), XP_ECONFIG);
        assert_non_null(strstr(xp_last_error(), "expert_parallel_degree"));
        assert_non_null(strstr(xp_last_error(), "does not divide"));
    }
}

static void check_same_file(const saved_run *s, const char *a, const char *b, const char *name) {
    char path[2][512];
    xp_file_map maps[2];
    snprintf(path[0], sizeof path[0], "%s/%s/checkpoint/step-%d/%s", s->folder, a, STEPS, name);
    snprintf(path[1], sizeof path[1], "%s/%s/checkpoint/step-%d/%s", s->folder, b, STEPS, name);
    for (int i = 0; i < 2; i++)
        if (xp_file_map_open(path[i], &maps[i]) != XP_OK)
            fail_msg("%s", xp_last_error());
    assert_int_equal(maps[0].n_bytes, maps[1].n_bytes);
    if (memcmp(maps[0].data, maps[1].data, maps[0].n_bytes) != 0)
        fail_msg("%s and %s differ", path[0], path[1]);
    for (int i = 0; i < 2; i++)
        xp_file_map_close(&maps[i]);
}

static void check_same_values(const saved_run *s, const char *a, const char *b) {
    static const char *const keys[] = {"tokens_seen", "rows_seen", "schedule_from", "debug.seed"};
    char path[2][512];
    xp_ckpt *ckpts[2];
    snprintf(path[0], sizeof path[0], "%s/%s/checkpoint", s->folder, a);
    snprintf(path[1], sizeof path[1], "%s/%s/checkpoint", s->folder, b);
    for (int i = 0; i < 2; i++)
        if (xp_ckpt_open(path[i], STEPS, &ckpts[i]) != XP_OK)
            fail_msg("%s", xp_last_error());
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++)
        assert_string_equal(xp_ckpt_value_get(ckpts[0], keys[k]),
                            xp_ckpt_value_get(ckpts[1], keys[k]));
    for (int i = 0; i < 2; i++)
        xp_ckpt_close(ckpts[i]);
}

static void a_chain_of_layouts_brings_back_the_bits(void **state) {
    saved_run *s = *state;
    static const layout chain[] = {{4, 2}, {2, 2}, {1, 1}, {8, 4}};
    static const char *const names[] = {"start", "four", "two", "one", "eight"};
    int n_saved = 0;
    for (size_t i = 0; i < sizeof chain / sizeof chain[0]; i++)
        if (run(s, chain[i], names[i + 1], names[i], only_save, &n_saved) != XP_OK)
            fail_msg("%s -> %s: %s", names[i], names[i + 1], xp_last_error());
    assert_int_equal(n_saved, 4);
    for (int r = 0; r < 8; r++) {
        char name[64];
        snprintf(name, sizeof name, "rank-%05d.safetensors", r);
        check_same_file(s, "start", "eight", name);
    }
    check_same_values(s, "start", "eight");
    /* The chain has really been through other layouts. */
    char path[512];
    snprintf(path, sizeof path, "%s/one/checkpoint/step-%d/rank-00001.safetensors", s->folder,
             STEPS);
    assert_int_not_equal(access(path, F_OK), 0);
}

/* ---- */

static int make_run(void **state) {
    saved_run *s = calloc(1, sizeof *s);
    if (!s || !(s->folder = fleet_make_data(40000, 256)))
        return -1;
    *state = s;
    xp_status status = run(s, (layout){8, 4}, "start", "", train_save_step, s);
    if (status != XP_OK)
        print_error("%s\n", xp_last_error());
    return status == XP_OK ? 0 : -1;
}

/* Its sign means something else in a bf16 run, and its root is no number in any. */
static void negative_second_moments_are_refused(void **state) {
    double loss = 0;
    assert_int_equal(run(*state, (layout){2, 1}, "negative", "", save_negative_moment, NULL),
                     XP_OK);
    assert_int_equal(run(*state, (layout){1, 1}, "refused", "negative", step_once, &loss),
                     XP_EFORMAT);
    assert_non_null(strstr(xp_last_error(), "exp_avg_sq/model.embed_tokens.weight holds -1 at "
                                            "element 3"));
}

static int remove_run(void **state) {
    saved_run *s = *state;
    xp_status status = xp_folder_remove(s->folder);
    free(s->folder);
    free(s);
    return status == XP_OK ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(next_loss_is_the_same_at_any_layout),
        cmocka_unit_test(degrees_that_do_not_divide_are_named),
        cmocka_unit_test(a_chain_of_layouts_brings_back_the_bits),
        cmocka_unit_test(negative_second_moments_are_refused),
    };
    return cmocka_run_group_tests(tests, make_run, remove_run);
}
