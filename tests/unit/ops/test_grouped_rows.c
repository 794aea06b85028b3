/* Grouped GEMM of a part of the rows: a range and the rows around it give together what one call
 * gives, and each leaves the other's rows alone. */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>
#include "core/rng.h"
#include "ops/ops.h"

enum { L = 5, P = 40, N = 24, K = 19, SOURCE = 7, NOWHERE = 1 << 30 };
static const int32_t offsets[L + 1] = {0, 9, 9, 20, 21, 37}; /* 3 rows are unused */
/* Some, none of none, all, the end of one row, none of many. */
static const int32_t range[2 * L] = {3, 8, 9, 9, 9, 20, 21, 21, 30, 30};
static const float untouched = -77;

typedef xp_status (*grouped_fn)(xp_stream *stream, const xp_grouped_args *args);

static bool in_range(int row) {
    for (int e = 0; e < L; e++)
        if (row >= range[2 * e] && row < range[2 * e + 1])
            return true;
    return false;
}

static void check(xp_stream *stream, grouped_fn fn, int width, bool gathered) {
    static float rows[P * N], w[L * N * K], whole[P * N], part[P * N];
    int32_t gather[P], some[P];
    xp_rng_fill_normal(1, 1, 0, P * N, 1, rows);
    xp_rng_fill_normal(1, 2, 0, L * N * K, 1, w);
    for (int i = 0; i < P; i++)
        gather[i] = i * 5 % SOURCE;
    xp_grouped_args args = {.n_experts = L,
                            .max_rows = P,
                            .n = N,
                            .k = K,
                            .offsets = offsets,
                            .gather = gathered ? gather : NULL,
                            .x = rows,
                            .w = w,
                            .dy = rows,
                            .gather_dy = gathered ? gather : NULL,
                            .row_range = range};
    for (int i = 0; i < P * N; i++)
        whole[i] = part[i] = untouched;
    args.y = whole;
    assert_int_equal(fn(stream, &args), XP_OK);
    args.gather = args.gather_dy = gathered ? some : NULL;
    args.y = part;
    for (int outside = 0; outside < 2; outside++) {
        args.rows = outside ? XP_ROWS_OUT_OF_RANGE : XP_ROWS_IN_RANGE;
        for (int i = 0; i < P; i++)
            some[i] = in_range(i) != (outside != 0) && i < offsets[L] ? gather[i] : NOWHERE;
        assert_int_equal(fn(stream, &args), XP_OK);
        for (int i = 0; i < P * width; i++) {
            const bool done = i / width < offsets[L] && (outside || in_range(i / width));
            const double want = (double)(done ? whole[i] : untouched);
            if (!(fabs((double)part[i] - want) <= (done ? 1e-5 * (1 + fabs(want)) : 0)))
                fail_msg("row %d of call %d: %.9g, wanted %.9g", i / width, outside + 1,
                         (double)part[i], want);
        }
    }
}

static void parts_make_the_whole(void **state) {
    (void)state;
    xp_device *device;
    xp_stream *stream;
    const xp_ops *ops;
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 2};
    assert_int_equal(xp_device_create(&args, &device), XP_OK);
    assert_int_equal(xp_stream_create(device, XP_STREAM_COMPUTE, &stream), XP_OK);
    assert_int_equal(xp_ops_get(device, &ops), XP_OK);
    const xp_ops *const tables[] = {ops, xp_ops_reference()};
    for (int i = 0; i < 4; i++) {
        check(stream, tables[i / 2]->grouped_forward, N, i % 2 != 0);
        check(stream, tables[i / 2]->grouped_dgrad, K, i % 2 != 0);
    }
    xp_stream_destroy(stream);
    xp_device_destroy(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(parts_make_the_whole)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
