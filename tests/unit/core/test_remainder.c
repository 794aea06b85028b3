/* fp32 masters as bf16 parameters with remainders: every bit comes back. XP_TEST_LONG: all 2^32 patterns. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "core/remainder.h"
#include "expar/tensor.h"

#define BLOCK 4096

/* n patterns first, first + step, ...: parts and back. */
static void there_and_back(uint64_t first, uint64_t step, int n) {
    static uint32_t masters[BLOCK], joined[BLOCK];
    static uint16_t params[BLOCK], remainders[BLOCK];
    static float v[BLOCK];
    float values[BLOCK], back[BLOCK];
    for (int i = 0; i < n; i++) {
        masters[i] = (uint32_t)(first + (uint64_t)i * step);
        v[i] = (float)i * 0x1p-20F;
    }
    memcpy(values, masters, (size_t)n * sizeof *values);
    xp_remainder_split(n, values, params, remainders, v);
    for (int i = 0; i < n; i++)
        if (params[i] != xp_bf16_from_f32(values[i]) || fabsf(v[i]) != (float)i * 0x1p-20F)
            fail_msg("master %08x: parameter %04x, moment %a", masters[i], params[i], (double)v[i]);
    xp_remainder_join(n, params, remainders, v, back);
    memcpy(joined, back, (size_t)n * sizeof *back);
    for (int i = 0; i < n; i++) {
        const int nans = !!isnan(values[i]) + !!isnan(back[i]);
        if (nans == 1 || (nans == 0 && joined[i] != masters[i]) || signbit(v[i]) != 0)
            fail_msg("master %08x came back as %08x", masters[i], joined[i]);
    }
}

static void every_bit_comes_back(void **state) {
    (void)state;
    const uint64_t all = (uint64_t)1 << 32, step = getenv("XP_TEST_LONG") ? 1 : 509;
    for (uint64_t first = 0; first < all; first += BLOCK * step)
        there_and_back(first, step, BLOCK);
}

/* Around every half-way point, of parameters that are even and odd, in every binade, of both signs; denormal
 * numbers, the largest, infinities among them. */
static void half_way_points(void **state) {
    (void)state;
    for (uint64_t upper = 0; upper < 0x10000; upper++)
        there_and_back((upper << 16) + 0x8000 - 16, 1, 32);
}

/* Both neighbours of an even parameter that round to it have the same lower bits. */
static void ties_on_both_sides(void **state) {
    (void)state;
    const uint32_t masters[2] = {0x3f818000U, 0x3f828000U};
    float values[2], v[2] = {0.25F, 0.25F}, back[2];
    uint16_t params[2], remainders[2];
    memcpy(values, masters, sizeof values);
    xp_remainder_split(2, values, params, remainders, v);
    assert_int_equal(params[0], 0x3f82);
    assert_int_equal(params[1], 0x3f82);
    assert_int_equal(remainders[0], remainders[1]);
    assert_true(v[0] == -0.25F && v[1] == 0.25F);
    xp_remainder_join(2, params, remainders, v, back);
    assert_memory_equal(back, values, sizeof back);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_bit_comes_back),
        cmocka_unit_test(half_way_points),
        cmocka_unit_test(ties_on_both_sides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
