/*
 * Two ways in which a router silently learns nothing or the wrong thing, both with expert
 * parallelism: no gradient for the routing weights, and assignments counted twice.
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

#define ROWS      8
#define SEQ       32
#define TOP_K     4 /* of tiny_moe */
#define N_EXPERTS 32
#define N_LAYERS  4

static void options_for(const char *folder, int ranks, const char *more, char *text, size_t size) {
    snprintf(text, size,
             "--model.flavor tiny_moe --model.vocab_size 256 --training.dataset tokens "
             "--training.dataset_path %s/tokens.bin --job.dump_folder %s/run --training.seq_len %d "
             "--training.global_batch_size %d --training.local_batch_size %d --training.steps 20 "
             "--lr_scheduler.warmup_steps 2 --job.threads_per_rank 1 %s",
             folder, folder, SEQ, ROWS, ROWS / ranks, more);
}

static void run(const char *folder, int ranks, const char *more, fleet_body body, void *context) {
    char options[1024];
    options_for(folder, ranks, more, options, sizeof options);
    fleet_args args = {.n_ranks = ranks, .options = options, .body = body, .context = context};
    if (fleet_run(&args) != XP_OK)
        fail_msg("%d ranks, %s: %s", ranks, more, xp_last_error());
}

/* ---- the gradient of the routing weights ------------------------------------------------- */

typedef struct slope {
    tensor_set gradients; /* of the unchanged model */
    char gate[192];       /* the router whose weights move */
    float distance;       /* along its gradient's direction */
    double loss;
} slope;

static xp_status keep_gradients(xp_trainer *t, void *context) {
    slope *s = context;
    xp_step_record record;
    XP_TRY(xp_trainer_step(t, &record));
    return fleet_collect_gradients(t, &s->gradients);
}

static double length(const named_tensor *t) {
    double sum = 0;
    for (int64_t i = 0; i < t->n; i++)
        sum += (double)t->data[i] * (double)t->data[i];
    return sqrt(sum);
}

/* The loss that the step itself reports is of the parameters before its update. */
static xp_status loss_after_a_move(xp_trainer *t, void *context) {
    slope *s = context;
    const named_tensor *gradient = tensor_set_find(&s->gradients, s->gate);
    const xp_param_table *table = xp_model_params(t->run.model);
    float *params = xp_model_param_data(t->run.model);
    double scale = s->distance / length(gradient);
    bool moved = false;
    for (int p = 0; p < xp_param_table_n_params(table); p++) {
        xp_param_slice slice;
        xp_param_table_slice(table, p, 0, &slice);
        if (strcmp(slice.hf_name, s->gate) != 0)
            continue;
        for (int64_t i = 0; i < slice.n_elements; i++)
            params[slice.offset + i] += (float)(scale * (double)gradient->data[i]);
        moved = true;
    }
    if (!moved)
        return xp_error(XP_EINTERNAL, "there is no %s", s->gate);
    xp_step_record record;
    XP_TRY(xp_trainer_step(t, &record));
    if (t->rank == 0)
        s->loss = record.loss;
    return XP_OK;
}

static double loss_at(const char *folder, int ranks, const char *more, slope *s, float distance) {
    s->distance = distance;
    run(folder, ranks, more, loss_after_a_move, s);
    return s->loss;
}

/* Along its own gradient the loss must climb by the gradient's length. */
static void check_router(const char *folder, int ranks, const char *more, int layer, slope *s) {
    const float h = 0.05F;
    snprintf(s->gate, sizeof s->gate, "model.layers.%d.mlp.gate.weight", layer);
    const named_tensor *gradient = tensor_set_find(&s->gradients, s->gate);
    assert_non_null(gradient);
    double claimed = length(gradient);
    assert_true(claimed > 1e-6);
    double up = loss_at(folder, ranks, more, s, h);
    double down = loss_at(folder, ranks, more, s, -h);
    double seen = (up - down) / (2 * (double)h);
    print_message("%d ranks, layer %d: the router's gradient is %.3e, the loss climbs by %.3e\n",
                  ranks, layer, claimed, seen);
    assert_true(fabs(seen - claimed) <= 0.01 * claimed);
}

/* Which experts are selected is fixed, so the loss is smooth in the router's weights, and its
 * gradient comes through the routing weights alone. */
static void routing_weights_get_their_gradient(void **state) {
    static const struct {
        int ranks;
        const char *more;
    } cases[] = {
        {1, "--debug.moe_force_load_balance"},
        {2, "--debug.moe_force_load_balance --parallelism.expert_parallel_degree 2 "
            "--parallelism.expert_parallel_comm_backend deepep"},
        {2, "--debug.moe_force_load_balance --parallelism.expert_parallel_degree 2 "
            "--parallelism.expert_parallel_comm_backend standard"},
        {4, "--debug.moe_force_load_balance --debug.moe_force_load_balance_mode spread "
            "--parallelism.expert_parallel_degree 4 --activation_checkpoint.mode full"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        slope s = {.loss = 0};
        tensor_set_init(&s.gradients);
        run(*state, cases[i].ranks, cases[i].more, keep_gradients, &s);
        for (int layer = 0; layer < N_LAYERS; layer += N_LAYERS - 1)
            check_router(*state, cases[i].ranks, cases[i].more, layer, &s);
        tensor_set_free(&s.gradients);
    }
}

/* ---- assignments are counted once -------------------------------------------------------------- */

typedef struct assignment_counts {
    int64_t of[N_LAYERS][N_EXPERTS]; /* over all ranks */
} assignment_counts;

static xp_status count_assignments(xp_trainer *t, void *context) {
    assignment_counts *counts = context;
    xp_step_record record;
    XP_TRY(xp_trainer_step(t, &record));
    if (t->n_moe_layers != N_LAYERS || t->run.arch.n_experts != N_EXPERTS)
        return xp_error(XP_EINTERNAL, "tiny_moe has another shape than this test knows");
    if (t->rank == 0)
        memcpy(counts->of, t->counts, sizeof counts->of);
    return XP_OK;
}

static void assignments_are_counted_once(void **state) {
    static const char *const ways[] = {
        "",
        "--activation_checkpoint.mode selective",
        "--activation_checkpoint.mode full",
        "--training.local_batch_size 1",
        "--training.local_batch_size 1 --activation_checkpoint.mode full",
        "--training.local_batch_size 2 --parallelism.expert_parallel_overlap",
        "--moe.save_dispatched no",
        "--moe.capacity_factor 1",
        "--validation.enable --validation.dataset tokens --validation.freq 1 --validation.steps 1",
    };
    assignment_counts one;
    run(*state, 1, "", count_assignments, &one);
    for (int l = 0; l < N_LAYERS; l++) {
        int64_t sum = 0;
        for (int e = 0; e < N_EXPERTS; e++)
            sum += one.of[l][e];
        assert_int_equal(sum, ROWS * SEQ * TOP_K);
    }
    for (int ranks = 2; ranks <= 4; ranks *= 2)
        for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
            assignment_counts counts;
            char more[512];
            snprintf(more, sizeof more, "--parallelism.expert_parallel_degree %d %s", ranks,
                     ways[i]);
            if (strstr(ways[i], "validation"))
                snprintf(more + strlen(more), sizeof more - strlen(more),
                         " --validation.dataset_path %s/tokens.bin", (const char *)*state);
            run(*state, ranks, more, count_assignments, &counts);
            for (int l = 0; l < N_LAYERS; l++)
                for (int e = 0; e < N_EXPERTS; e++)
                    if (counts.of[l][e] != one.of[l][e])
                        fail_msg(
                            "EP %d, %s: layer %d, expert %d has %lld assignments instead of %lld",
                            ranks, ways[i], l, e, (long long)counts.of[l][e],
                            (long long)one.of[l][e]);
        }
}

static int make_data(void **state) {
    *state = fleet_make_data(20000, 256);
    return *state ? 0 : -1;
}

static int remove_data(void **state) {
    xp_status status = xp_folder_remove(*state);
    free(*state);
    return status == XP_OK ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routing_weights_get_their_gradient),
        cmocka_unit_test(assignments_are_counted_once),
    };
    return cmocka_run_group_tests(tests, make_data, remove_data);
}
