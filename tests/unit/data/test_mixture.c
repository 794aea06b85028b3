/* Several sources in given shares. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/text.h"
#include "data/mixture.h"
#include "fixture.h"

static void test_shares_are_exact_and_spread(void **state) {
    (void)state;
    static const double weights[] = {0.7, 0.2, 0.1};
    static const int32_t wanted[] = {7000, 2000, 1000};
    xp_mixture m;
    assert_int_equal(xp_mixture_create(weights, 3, &m), XP_OK);
    int64_t next[3] = {0};
    for (int64_t n = 0; n < 3 * XP_MIXTURE_PERIOD; n++) {
        int source;
        int64_t row;
        xp_mixture_row(&m, n, &source, &row);
        assert_int_equal(row, next[source]++); /* each source in its own order, no row left out */
        for (int i = 0; i < 3; i++) {
            double due = weights[i] * (double)(n + 1);
            assert_true((double)next[i] > due - 1.5 && (double)next[i] < due + 1.5);
        }
    }
    for (int i = 0; i < 3; i++)
        assert_int_equal(next[i], 3 * wanted[i]);
    xp_mixture_destroy(&m);
}

static void test_odd_weights(void **state) {
    (void)state;
    static const double thirds[] = {1, 1, 1}, tiny[] = {1, 1e-9}, small[] = {1e6, 60},
                        zero[] = {1, 0};
    xp_mixture m;
    assert_int_equal(xp_mixture_create(thirds, 3, &m), XP_OK);
    assert_int_equal(m.quota[0] + m.quota[1] + m.quota[2], XP_MIXTURE_PERIOD);
    assert_int_equal(m.quota[1], 3333);
    xp_mixture_destroy(&m);
    assert_int_equal(xp_mixture_create(small, 2, &m), XP_OK);
    assert_int_equal(m.quota[1], 1);
    xp_mixture_destroy(&m);
    assert_int_equal(xp_mixture_create(tiny, 2, &m), XP_ECONFIG);
    assert_int_equal(xp_mixture_create(zero, 2, &m), XP_ECONFIG);
    double many[XP_MIXTURE_MAX_SOURCES + 1];
    for (int i = 0; i <= XP_MIXTURE_MAX_SOURCES; i++)
        many[i] = 100 + i;
    assert_int_equal(xp_mixture_create(many, XP_MIXTURE_MAX_SOURCES, &m), XP_OK);
    xp_mixture_destroy(&m);
    assert_int_equal(xp_mixture_create(many, XP_MIXTURE_MAX_SOURCES + 1, &m), XP_ECONFIG);
}

/* Two files of constant tokens, 'a' and 'b': rows tell where they come from. */
static xp_dataset *open_two(const fixture *f, double a, double b) {
    uint32_t ids[8 * 50];
    for (int i = 0; i < 8 * 50; i++)
        ids[i] = (uint32_t)(i / 8);
    write_file(f, "a.bin", ids, sizeof ids);
    for (int i = 0; i < 8 * 50; i++)
        ids[i] = 100 + (uint32_t)(i / 8);
    write_file(f, "b.bin", ids, 8 * 10 * sizeof ids[0]);
    char *first = in_folder(f, "a.bin"), *second = in_folder(f, "b.bin");
    xp_dataset_source sources[] = {{first, a}, {second, b}};
    xp_dataset_args args = data_args(f, "tokens", "unused");
    args.sources = sources;
    args.n_sources = 2;
    xp_dataset *d;
    if (xp_dataset_open(&args, &d) != XP_OK)
        fail_msg("%s", xp_last_error());
    free_args(&args);
    free(first);
    free(second);
    return d;
}

static void test_rows_come_in_shares_and_from_any_step(void **state) {
    fixture *f = *state;
    xp_dataset *d = open_two(f, 3, 1);
    assert_non_null(strstr(logged(f), "75.00 % of the rows from"));
    assert_int_equal(xp_dataset_n_rows(d), 60);
    enum { B = 4, STEPS = 30 };
    int32_t seen[STEPS][B], n_b = 0;
    xp_loader_args args = {.local_batch_size = B,
                           .n_microbatches = 1,
                           .n_data_ranks = 1,
                           .n_prefetch = 2,
                           .log = f->log};
    xp_loader *l;
    xp_batch batch;
    assert_int_equal(xp_loader_create(d, &args, &l), XP_OK);
    for (int step = 0; step < STEPS; step++) {
        assert_int_equal(xp_loader_next(l, &batch), XP_OK);
        for (int j = 0; j < B; j++) {
            seen[step][j] = batch.tokens[j * S];
            n_b += seen[step][j] >= 100;
        }
    }
    assert_int_equal(n_b, B * STEPS / 4);
    const char *lines = logged(f);
    /* 90 rows of a (50 an epoch), 30 of b (10 an epoch) */
    assert_non_null(strstr(lines, "a.bin starts over: epoch 2"));
    assert_null(strstr(lines, "a.bin starts over: epoch 3"));
    assert_non_null(strstr(lines, "b.bin starts over: epoch 2"));
    assert_non_null(strstr(lines, "b.bin starts over: epoch 3"));
    assert_null(strstr(lines, "b.bin starts over: epoch 4"));
    for (int from = 0; from < STEPS; from += 7) { /* resuming */
        assert_int_equal(xp_loader_seek(l, from), XP_OK);
        for (int step = from; step < STEPS; step++) {
            assert_int_equal(xp_loader_next(l, &batch), XP_OK);
            for (int j = 0; j < B; j++)
                assert_int_equal(batch.tokens[j * S], seen[step][j]);
        }
    }
    xp_loader_destroy(l);
    xp_dataset_close(d);
}

static void test_one_source_starts_over_with_a_line(void **state) {
    fixture *f = *state;
    uint32_t ids[8 * 6] = {0};
    write_file(f, "a.bin", ids, sizeof ids);
    xp_dataset *d;
    assert_int_equal(open_data(f, "tokens", "a.bin", true, false, &d), XP_OK);
    logged(f);
    xp_dataset_log_restarts(d, 0, 6, f->log);
    assert_string_equal(logged(f), "");
    xp_dataset_log_restarts(d, 4, 4, f->log);
    assert_non_null(strstr(logged(f), "epoch 2 begins"));
    xp_dataset_close(d);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_set_up, fixture_tear_down)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares_are_exact_and_spread),
        cmocka_unit_test(test_odd_weights),
        TEST(test_rows_come_in_shares_and_from_any_step),
        TEST(test_one_source_starts_over_with_a_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
