/* Expert bias update and load figures. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include "model/balance.h"

static void moves_against_the_load(void **state) {
    (void)state;
    const int64_t counts[4] = {10, 2, 4, 4}; /* mean 5: signs -1 +1 +1 +1, their mean 0.5 */
    float bias[4] = {0, 0, 0.5F, 0};
    xp_balance_update(4, 1e-3, counts, bias);
    const double wanted[4] = {-1.5e-3, 0.5e-3, 0.5005, 0.5e-3};
    for (int e = 0; e < 4; e++)
        assert_true(fabs((double)bias[e] - wanted[e]) < 1e-7);
}

static void rests_when_even(void **state) {
    (void)state;
    const int64_t counts[3] = {7, 7, 7};
    float bias[3] = {0.1F, -0.1F, 0};
    xp_balance_update(3, 1e-3, counts, bias);
    assert_true(bias[0] == 0.1F && bias[1] == -0.1F && bias[2] == 0);
}

static void figures(void **state) {
    (void)state;
    const int64_t counts[4] = {10, 2, 4, 4};
    const int64_t none[4] = {0};
    assert_true(xp_balance_max_over_mean(4, counts) == 2);
    assert_true(xp_balance_max_over_mean(4, none) == 0);
    assert_true(xp_balance_busiest_share(4, 1, counts) == 1);
    assert_true(xp_balance_busiest_share(4, 2, counts) == 0.6);
    assert_true(xp_balance_busiest_share(4, 4, counts) == 0.5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(moves_against_the_load),
        cmocka_unit_test(rests_when_even),
        cmocka_unit_test(figures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
