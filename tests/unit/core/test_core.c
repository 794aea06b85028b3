#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/arena.h"
#include "core/file.h"
#include "core/json_text.h"
#include "core/pool.h"
#include "core/rng.h"
#include "core/text.h"
#include "expar/tensor.h"

static void test_errors_are_one_line_and_gain_context(void **state) {
    (void)state;
    assert_int_equal(xp_error(XP_EIO, "a\nb %d", 7), XP_EIO);
    assert_string_equal(xp_last_error(), "a b 7");
    assert_int_equal(xp_error_context(XP_EIO, "file %s", "x"), XP_EIO);
    assert_string_equal(xp_last_error(), "file x: a b 7");
    xp_error_clear();
    assert_string_equal(xp_last_error(), "");
    assert_string_equal(xp_status_name(XP_ECOMM), "XP_ECOMM");
}

static void test_bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    assert_int_equal(xp_bf16_from_f32(1.0F), 0x3f80);
    assert_int_equal(xp_bf16_from_f32(1.00390625F), 0x3f80); /* half way: even stays */
    assert_int_equal(xp_bf16_from_f32(1.01171875F), 0x3f82); /* half way: odd goes up */
    assert_int_equal(xp_bf16_from_f32(INFINITY), 0x7f80);
    assert_int_equal(xp_bf16_from_f32(3.4e38F), 0x7f80);
    assert_true(isnan(xp_bf16_to_f32(xp_bf16_from_f32(NAN))));
    for (uint32_t bits = 0; bits < 0x7f80; bits++)
        assert_int_equal(xp_bf16_from_f32(xp_bf16_to_f32((uint16_t)bits)), bits);
}

static void test_philox_known_answers(void **state) {
    (void)state;
    /* Random123's kat_vectors for philox4x32-10. */
    uint32_t w[4];
    xp_rng_philox(0, 0, 0, w);
    uint32_t zeros[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    assert_memory_equal(w, zeros, sizeof w);
    xp_rng_philox(UINT64_MAX, UINT64_MAX, UINT64_MAX, w);
    uint32_t ones[4] = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
    assert_memory_equal(w, ones, sizeof w);
}

/* Box-Muller with the C library's functions; both are good to a few units of fp64, so that they
 * round to the same float but for rare ties. */
static void test_normal_is_box_muller(void **state) {
    (void)state;
    int n_other = 0;
    for (uint64_t i = 0; i < 200000; i++) {
        uint32_t w[4];
        xp_rng_philox(3, 4, i, w);
        double u = ((double)w[0] + 0.5) * 0x1p-32, angle = 2 * M_PI * ((double)w[1] * 0x1p-32);
        double want = sqrt(-2 * log(u)) * cos(angle), got = (double)xp_rng_normal(3, 4, i);
        assert_true(fabs(got - want) <= 1e-7 * fabs(want) + 1e-14);
        n_other += (float)want != (float)got;
    }
    assert_true(n_other <= 2);
}

static void test_normal_moments(void **state) {
    (void)state;
    const int n = 200000;
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++) {
        double x = xp_rng_normal(3, 4, (uint64_t)i);
        sum += x;
        squares += x * x;
    }
    /* four standard errors */
    assert_true(fabs(sum / n) < 4.0 / sqrt(n));
    assert_true(fabs(squares / n - 1.0) < 4.0 * sqrt(2.0 / n));
}

static void test_permutation_is_one(void **state) {
    (void)state;
    uint64_t sizes[] = {1, 2, 3, 7, 64, 1000, 4097};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        uint64_t n = sizes[s], fixed = 0;
        char *seen = calloc(n, 1);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t j = xp_rng_permute(1, 2, n, i);
            assert_true(j < n && !seen[j]);
            seen[j] = 1;
            fixed += i == j;
        }
        if (n >= 1000)
            assert_true(fixed < 20);
        free(seen);
    }
}

static void test_text_and_numbers(void **state) {
    (void)state;
    int64_t i;
    double d;
    assert_true(xp_parse_i64("-12", &i) && i == -12);
    assert_false(xp_parse_i64("12x", &i) || xp_parse_i64("", &i) || xp_parse_i64(" 1", &i) ||
                 xp_parse_i64("9223372036854775808", &i));
    assert_true(xp_parse_f64("8e-4", &d) && d == 8e-4);
    assert_false(xp_parse_f64("1e999", &d) || xp_parse_f64("0x1p3", &d) || xp_parse_f64("1 ", &d));
    xp_text t = {0};
    xp_text_add_json(&t, "a\"\\\n\x01\xff\xc3\xa4", 8);
    assert_string_equal(t.data, "\"a\\\"\\\\\\n\\u0001\xef\xbf\xbd\xc3\xa4\"");
    xp_text_clear(&t);
    xp_text_add_json_double(&t, 0.1);
    assert_string_equal(t.data, "0.1");
    xp_text_clear(&t);
    xp_text_add_json_double(&t, NAN);
    assert_string_equal(t.data, "null");
    xp_text_free(&t);
    assert_int_equal(xp_edit_distance("kitten", "sitting"), 3);
}

static void test_utf8_is_strict(void **state) {
    (void)state;
    uint32_t c;
    char bytes[4];
    for (uint32_t point = 0; point <= 0x10ffff; point++) {
        int n = xp_utf8_encode(point, bytes);
        int expected = point >= 0xd800 && point < 0xe000 ? 0 : n;
        assert_int_equal(xp_utf8_decode(bytes, (size_t)n, &c), expected);
        if (expected != 0)
            assert_int_equal(c, point);
    }
    assert_int_equal(xp_utf8_decode("\xc0\x80", 2, &c), 0);
    assert_int_equal(xp_utf8_decode("\xe0\x80\x80", 3, &c), 0);
    assert_int_equal(xp_utf8_decode("\xf4\x90\x80\x80", 4, &c), 0);
    assert_int_equal(xp_utf8_decode("\xe2\x82", 2, &c), 0);
    assert_int_equal(xp_utf8_valid_prefix("ab\xff", 3), 2);
}

static void test_arena_keeps_everything(void **state) {
    (void)state;
    xp_arena *arena;
    assert_int_equal(xp_arena_create(&arena), XP_OK);
    char *kept[500];
    for (int i = 0; i < 500; i++) {
        kept[i] = xp_arena_printf(arena, "%0*d", i * 3 + 1, i);
        assert_int_equal((uintptr_t)kept[i] % 16, 0);
    }
    char *big = xp_arena_alloc(arena, 1 << 20);
    for (int i = 0; i < 1 << 20; i++)
        assert_int_equal(big[i], 0);
    for (int i = 0; i < 500; i++)
        assert_int_equal(atoi(kept[i]), i);
    assert_null(xp_arena_alloc(arena, SIZE_MAX));
    xp_arena_destroy(arena);
    xp_slab count = {0};
    xp_slab_take(&count, 1);
    assert_int_equal(count.used, 256);
    assert_null(xp_slab_take(&count, 300));
    assert_int_equal(count.used, 768);
}

typedef struct tiles {
    _Atomic int hits[1000];
    int n_threads;
} tiles;

static void hit(void *context, int64_t tile, int worker) {
    tiles *t = context;
    assert_true(worker >= 0 && worker < t->n_threads);
    atomic_fetch_add(&t->hits[tile], 1);
}

static void test_pool_runs_every_tile_once(void **state) {
    (void)state;
    for (int n_threads = 1; n_threads <= 5; n_threads++) {
        xp_pool *pool;
        assert_int_equal(xp_pool_create(n_threads, &pool), XP_OK);
        tiles *t = calloc(1, sizeof *t);
        t->n_threads = n_threads;
        int expected[1000] = {0};
        for (int round = 0; round < 300; round++) {
            int n = round * 7 % 1000;
            xp_pool_run(pool, hit, t, n);
            for (int i = 0; i < n; i++)
                expected[i]++;
        }
        for (int i = 0; i < 1000; i++)
            assert_int_equal(t->hits[i], expected[i]);
        free(t);
        xp_pool_destroy(pool);
    }
    xp_pool *pool;
    assert_int_equal(xp_pool_create(0, &pool), XP_EINVAL);
}

static void test_files_are_whole_or_unchanged(void **state) {
    (void)state;
    char folder[] = "/tmp/xp-core-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *deep = xp_path_join(folder, "a/b/c");
    assert_int_equal(xp_folder_create(deep), XP_OK);
    assert_int_equal(xp_folder_create(deep), XP_OK);
    char *path = xp_path_join(deep, "f");
    assert_int_equal(xp_file_write_atomic(path, "hello", 5), XP_OK);
    char *data;
    size_t n;
    assert_int_equal(xp_file_read(path, 100, &data, &n), XP_OK);
    assert_int_equal(n, 5);
    assert_string_equal(data, "hello");
    free(data);
    assert_int_equal(xp_file_read(path, 4, &data, &n), XP_EFORMAT);
    assert_int_equal(xp_file_read(deep, 4, &data, &n), XP_EIO);
    xp_file_map map;
    assert_int_equal(xp_file_map_open(path, &map), XP_OK);
    assert_memory_equal(map.data, "hello", 5);
    xp_file_map_close(&map);
    assert_int_equal(xp_file_map_open(folder, &map), XP_EIO);
    char *under_file = xp_path_join(path, "x");
    assert_int_not_equal(xp_file_write_atomic(under_file, "", 0), XP_OK);
    assert_int_equal(xp_file_write_atomic(deep, "", 0), XP_EIO);
    assert_non_null(strstr(xp_last_error(), "it is a folder"));
    char *pipe = xp_path_join(deep, "pipe"), *aside = xp_path_join(deep, "pipe.tmp");
    assert_int_equal(mkfifo(pipe, 0600), 0); /* as of a device: it must not be replaced */
    assert_int_equal(xp_file_write_atomic(pipe, "x", 1), XP_EIO);
    struct stat st;
    assert_int_equal(stat(pipe, &st), 0);
    assert_true(S_ISFIFO(st.st_mode));
    assert_int_not_equal(access(aside, F_OK), 0);
    free(pipe);
    free(aside);
    assert_int_not_equal(xp_folder_create(path), XP_OK);
    assert_non_null(strstr(xp_last_error(), path));
    assert_int_equal(xp_folder_remove(folder), XP_OK);
    assert_int_not_equal(access(folder, F_OK), 0);
    assert_int_equal(xp_folder_remove(folder), XP_OK);
    assert_int_equal(xp_file_read(path, 4, &data, &n), XP_ENOENT);
    free(deep);
    free(path);
    free(under_file);
}

static void test_a_pipe_is_refused_instead_of_waited_for(void **state) {
    (void)state;
    char folder[] = "/tmp/xp-core-XXXXXX", *data;
    assert_non_null(mkdtemp(folder));
    char *path = xp_path_join(folder, "config.json");
    assert_int_equal(mkfifo(path, 0600), 0);
    size_t n;
    xp_file_map map;
    alarm(20); /* instead of hanging */
    assert_int_equal(xp_file_read(path, 1000, &data, &n), XP_EIO);
    assert_non_null(strstr(xp_last_error(), "pipe"));
    assert_int_equal(xp_file_map_open(path, &map), XP_EIO);
    alarm(0);
    free(path);
    assert_int_equal(xp_folder_remove(folder), XP_OK);
}

static void test_json_numbers(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t length;
        bool integer;
    } numbers[] = {{"0", 1, true},       {"-12", 3, true}, {"1.50e-7,", 7, false}, {"01", 0, true},
                   {"-", 0, true},       {"1.", 0, true},  {"1e", 0, true},        {".5", 0, true},
                   {"1E+400", 6, false}, {"12]", 2, true}, {"+1", 0, true},        {"", 0, true}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        bool integer = true;
        size_t n = xp_json_number(numbers[i].text, strlen(numbers[i].text), &integer);
        assert_int_equal(n, numbers[i].length);
        assert_true(n == 0 || integer == numbers[i].integer);
    }
    static const struct {
        const char *from, *to; /* NULL: unchanged */
    } texts[] = {{"{\"a\": 9223372036854775807, \"b\": 1.5}", NULL},
                 {"{\"a\": 9223372036854775808}", "{\"a\": 9.2233720368547758e+18}"},
                 {"{\"1e999\": \"1e999 \\\" 99999999999999999999\"}", NULL},
                 {"[1e999,-1e999,NaN,Infinity,-Infinity]",
                  "[1.7976931348623157e+308,-1.7976931348623157e+308,null,null,null]"},
                 {"[00000000000000000000000]", NULL},
                 {"\xef\xbb\xbf[1]", "[1]"},
                 {"\"\\", NULL},
                 {"\"", NULL},
                 {"", NULL}};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        xp_text out = {0};
        bool changed;
        xp_json_soften_numbers(texts[i].from, strlen(texts[i].from), &out, &changed);
        assert_int_equal(changed, texts[i].to != NULL);
        if (changed)
            assert_string_equal(out.data, texts[i].to);
        xp_text_free(&out);
    }
}

/* Only what the system calls not there is absent. */
static void test_what_cannot_be_looked_at_is_not_absent(void **state) {
    (void)state;
    char folder[] = "/tmp/xp-core-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *file = xp_path_join(folder, "file"), *under = xp_path_join(folder, "file/x"),
         *loop = xp_path_join(folder, "loop"), *nowhere = xp_path_join(folder, "nowhere"),
         *absent = xp_path_join(folder, "absent");
    assert_int_equal(xp_file_write_atomic(file, "", 0), XP_OK);
    assert_int_equal(symlink("loop", loop), 0);
    assert_int_equal(symlink("absent", nowhere), 0);
    bool is = true;
    assert_int_equal(xp_path_exists(absent, &is), XP_OK);
    assert_false(is);
    assert_int_equal(xp_path_exists(file, &is), XP_OK);
    assert_true(is);
    assert_int_equal(xp_path_is_folder(file, &is), XP_OK);
    assert_false(is);
    assert_int_equal(xp_path_is_folder(folder, &is), XP_OK);
    assert_true(is);
    char *const unclear[] = {under, loop, nowhere};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(xp_path_exists(unclear[i], &is), XP_EIO);
        assert_non_null(strstr(xp_last_error(), unclear[i]));
        assert_int_equal(xp_path_is_folder(unclear[i], &is), XP_EIO);
    }
    assert_int_equal(xp_folder_remove(folder), XP_OK);
    char *const all[] = {file, under, loop, nowhere, absent};
    for (int i = 0; i < 5; i++)
        free(all[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_pipe_is_refused_instead_of_waited_for),
        cmocka_unit_test(test_json_numbers),
        cmocka_unit_test(test_errors_are_one_line_and_gain_context),
        cmocka_unit_test(test_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_normal_is_box_muller),
        cmocka_unit_test(test_normal_moments),
        cmocka_unit_test(test_permutation_is_one),
        cmocka_unit_test(test_text_and_numbers),
        cmocka_unit_test(test_utf8_is_strict),
        cmocka_unit_test(test_arena_keeps_everything),
        cmocka_unit_test(test_pool_runs_every_tile_once),
        cmocka_unit_test(test_files_are_whole_or_unchanged),
        cmocka_unit_test(test_what_cannot_be_looked_at_is_not_absent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
