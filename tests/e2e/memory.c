/* What a rank holds: its share of the optimizer's state falls with the ranks, its experts with the
 * expert parallel degree. Bytes are those that the device has handed out. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include "common/fleet.h"
#include "core/file.h"

#define SLACK 0.01 /* chunks are rounded up to whole cache lines */

typedef struct footprint {
    int64_t optimizer, params, grads; /* bytes: the most of any rank */
    int64_t expert_elements, dense_elements;
    pthread_mutex_t lock;
} footprint;

static void raise_to(int64_t *most, int64_t value) {
    *most = value > *most ? value : *most;
}

static xp_status measure(xp_trainer *t, void *context) {
    footprint *f = context;
    const xp_param_table *table = xp_model_params(t->run.model);
    int64_t elements[2] = {0, 0};
    xp_step_record record;
    XP_TRY(xp_trainer_step(t, &record));
    for (int i = 0; i < xp_param_table_n_params(table); i++) {
        const xp_param *param = xp_param_table_param(table, i);
        elements[xp_param_table_group(table, param->group)->is_expert] += param->n_elements;
    }
    pthread_mutex_lock(&f->lock);
    raise_to(&f->optimizer, xp_device_bytes(t->device, "optimizer"));
    raise_to(&f->params, xp_device_bytes(t->device, "params"));
    raise_to(&f->grads, xp_device_bytes(t->device, "grads"));
    raise_to(&f->dense_elements, elements[0]);
    raise_to(&f->expert_elements, elements[1]);
    pthread_mutex_unlock(&f->lock);
    return XP_OK;
}

static footprint footprint_of(const char *folder, int ranks, int degree) {
    footprint f = {.lock = PTHREAD_MUTEX_INITIALIZER};
    char options[512];
    snprintf(options, sizeof options,
             "--model.flavor tiny_moe --training.dataset tokens --training.dataset_path "
             "%s/tokens.bin --job.dump_folder %s/run --training.seq_len 16 "
             "--training.local_batch_size 1 --training.steps 2 --job.threads_per_rank 1 "
             "--parallelism.expert_parallel_degree %d",
             folder, folder, degree);
    fleet_args args = {.n_ranks = ranks, .options = options, .body = measure, .context = &f};
    if (fleet_run(&args) != XP_OK)
        fail_msg("%d ranks, EP %d: %s", ranks, degree, xp_last_error());
    return f;
}

static void check_share(int64_t bytes, int64_t whole, int parts, const char *what) {
    double ratio = (double)bytes * parts / (double)whole;
    print_message("%-34s 1/%d: %10lld bytes, %.4f of the share\n", what, parts, (long long)bytes,
                  ratio);
    assert_true(ratio >= 1 - SLACK && ratio <= 1 + SLACK);
}

static void optimizer_bytes_fall_with_the_ranks(void **state) {
    footprint one = footprint_of(*state, 1, 1);
    int64_t elements = one.dense_elements + one.expert_elements;
    /* Two moments of four bytes; in fp32 the parameter is its own master. */
    check_share(one.optimizer, 8 * elements, 1, "optimizer, 1 rank");
    for (int ranks = 2; ranks <= 8; ranks *= 2) {
        footprint f = footprint_of(*state, ranks, 1);
        check_share(f.optimizer, one.optimizer, ranks, "optimizer, data parallel");
        assert_int_equal(f.expert_elements, one.expert_elements);
        f = footprint_of(*state, ranks, ranks);
        check_share(f.optimizer, one.optimizer, ranks, "optimizer, expert parallel");
        f = footprint_of(*state, ranks, 2);
        check_share(f.optimizer, one.optimizer, ranks, "optimizer, expert parallel 2");
    }
}

static void expert_bytes_fall_with_the_degree(void **state) {
    footprint one = footprint_of(*state, 8, 1);
    for (int degree = 2; degree <= 8; degree *= 2) {
        footprint f = footprint_of(*state, 8, degree);
        assert_int_equal(f.expert_elements * degree, one.expert_elements);
        assert_int_equal(f.dense_elements, one.dense_elements);
        int64_t dense = 4 * one.dense_elements;
        check_share(f.params - dense, one.params - dense, degree, "expert parameters");
        check_share(f.grads - dense, one.grads - dense, degree, "expert gradients");
    }
}

static int make_data(void **state) {
    *state = fleet_make_data(20000, 2048);
    return *state ? 0 : -1;
}

static int remove_data(void **state) {
    xp_status status = xp_folder_remove(*state);
    free(*state);
    return status == XP_OK ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(optimizer_bytes_fall_with_the_ranks),
        cmocka_unit_test(expert_bytes_fall_with_the_degree),
    };
    return cmocka_run_group_tests(tests, make_data, remove_data);
}
