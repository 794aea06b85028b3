/* The learning rate against values of TorchTitan's linear_warmup_stable_decay. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>
#include "train/schedule.h"

static xp_config settings(int64_t steps, int64_t warmup, double ratio, const char *type,
                          double min_factor) {
    xp_config config;
    memset(&config, 0, sizeof config);
    config.training.steps = steps;
    config.lr_scheduler.warmup_steps = warmup;
    config.lr_scheduler.decay_ratio = ratio;
    config.lr_scheduler.decay_type = type;
    config.lr_scheduler.min_lr_factor = min_factor;
    return config;
}

static void expect(const xp_config *config, int n, const double *wanted) {
    xp_schedule schedule;
    assert_int_equal(xp_schedule_from_config(config, &schedule), XP_OK);
    for (int s = 0; s < n; s++)
        if (fabs(xp_schedule_factor(&schedule, s) - wanted[s]) > 1e-15)
            fail_msg("step %d: %.17g instead of %.17g", s, xp_schedule_factor(&schedule, s),
                     wanted[s]);
}

static void warmup_then_linear(void **state) {
    (void)state;
    /* 10 steps, 2 of warm-up, all the rest decays: 1 stable step, 8 of decay. */
    static const double wanted[10] = {0.5,        1,          1,          1 - 1 / 8., 1 - 2 / 8.,
                                      1 - 3 / 8., 1 - 4 / 8., 1 - 5 / 8., 1 - 6 / 8., 1 - 7 / 8.};
    xp_config config = settings(10, 2, -1, "linear", 0);
    expect(&config, 10, wanted);
}

static void stable_phase(void **state) {
    (void)state;
    /* round(10 * 0.25) = 2 steps of decay (halves go to even), down to 0.1. */
    static const double wanted[10] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 0.1 + 0.9 * 0.5};
    xp_config config = settings(10, 0, 0.25, "linear", 0.1);
    expect(&config, 10, wanted);
}

static void other_shapes(void **state) {
    (void)state;
    double root[5];
    double cosine[5];
    for (int s = 0; s < 5; s++) {
        double progress = s == 0 ? 0 : s / 5.;
        root[s] = 1 - sqrt(progress);
        cosine[s] = 0.2 + 0.8 * 0.5 * (1 + cos(M_PI * progress));
    }
    xp_config sqrt_config = settings(5, 0, -1, "sqrt", 0);
    xp_config cosine_config = settings(5, 0, -1, "cosine", 0.2);
    expect(&sqrt_config, 5, root);
    expect(&cosine_config, 5, cosine);
}

static void cut_and_continued(void **state) {
    (void)state;
    xp_schedule schedule;
    xp_config config = settings(10, 20, 0.5, "linear", 0);
    assert_int_equal(xp_schedule_from_config(&config, &schedule), XP_OK);
    assert_true(schedule.warmup_cut);
    assert_true(schedule.decay_cut);
    assert_true(xp_schedule_factor(&schedule, 9) == 1);
    /* Past the schedule's end the last value stays. */
    config = settings(10, 0, -1, "linear", 0.25);
    assert_int_equal(xp_schedule_from_config(&config, &schedule), XP_OK);
    assert_true(xp_schedule_factor(&schedule, 1000) == 0.25);
    /* total_steps goes before training.steps. */
    config.lr_scheduler.total_steps = 20;
    assert_int_equal(xp_schedule_from_config(&config, &schedule), XP_OK);
    assert_true(xp_schedule_factor(&schedule, 10) > 0.5);
    config.lr_scheduler.decay_type = "line";
    assert_int_equal(xp_schedule_from_config(&config, &schedule), XP_ECONFIG);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warmup_then_linear),
        cmocka_unit_test(stable_phase),
        cmocka_unit_test(other_shapes),
        cmocka_unit_test(cut_and_continued),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
