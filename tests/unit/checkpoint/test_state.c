/** Training checkpoints: what was saved comes back, at any layout, and nothing else is taken for a
 * checkpoint. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "checkpoint/state.h"
#include "core/file.h"
#include "layout.h"
#include "scratch.h"

#define MAX_RANKS 8

static void save_one(const char *folder, int64_t step, int64_t keep, int version) {
    xp_layout layout;
    xp_layout_cut(3, 1, &layout);
    xp_layout_fill(&layout, version);
    if (xp_layout_save(folder, step, keep, &layout, 1) != XP_OK)
        fail_msg("%s", xp_last_error());
    xp_layout_free(&layout, 1);
}

static bool holds(const char *folder, int64_t step, int version) {
    xp_layout layout;
    xp_layout_cut(4, 1, &layout);
    xp_status status = xp_layout_load(folder, step, &layout, 1);
    bool same = status == XP_OK && xp_layout_is(&layout, version);
    xp_layout_free(&layout, 1);
    return same;
}

static void test_round_trip(void **state) {
    xp_scratch_path folder = xp_scratch_join(*state, "deep/checkpoint");
    save_one(folder.text, 10, 0, 1);
    assert_true(holds(folder.text, -1, 1));
    assert_true(holds(folder.text, 10, 1));
    assert_false(holds(folder.text, 10, 2));
    xp_ckpt *ckpt;
    assert_int_equal(xp_ckpt_open(folder.text, 10, &ckpt), XP_OK);
    assert_int_equal(xp_ckpt_step(ckpt), 10);
    assert_string_equal(xp_ckpt_value_get(ckpt, "tokens_seen"), "12345");
    assert_string_equal(xp_ckpt_value_get(ckpt, "config"), "[job]\nx = \"\\\"\"\n");
    assert_null(xp_ckpt_value_get(ckpt, "nothing"));
    xp_ckpt_piece tensors[XP_LAYOUT_MAX_PIECES];
    int64_t n = xp_layout_tensors(tensors);
    assert_int_equal(xp_ckpt_n_tensors(ckpt), n);
    for (int64_t i = 0; i < n; i++) {
        int n_dims;
        int64_t shape[3];
        assert_true(xp_ckpt_has(ckpt, tensors[i].name, &n_dims, shape));
        assert_int_equal(n_dims, tensors[i].n_dims);
        assert_memory_equal(shape, tensors[i].shape, (size_t)n_dims * sizeof *shape);
        if (i > 0)
            assert_true(strcmp(xp_ckpt_tensor_name(ckpt, i - 1), xp_ckpt_tensor_name(ckpt, i)) < 0);
    }
    assert_int_equal(xp_ckpt_verify(ckpt), XP_OK);
    xp_ckpt_close(ckpt);
    xp_ckpt_close(NULL);
    assert_int_equal(xp_scratch_count(folder.text), 1);
}

/** Any cut among 1..8 ranks loads at any other, bit for bit. */
static void test_resharding(void **state) {
    xp_scratch_path folder = xp_scratch_join(*state, "checkpoint");
    xp_layout *from = calloc(MAX_RANKS, sizeof *from), *to = calloc(MAX_RANKS, sizeof *to);
    assert_true(from != NULL && to != NULL);
    for (int n_from = 1; n_from <= MAX_RANKS; n_from++) {
        xp_layout_cut((uint64_t)n_from, n_from, from);
        for (int r = 0; r < n_from; r++)
            xp_layout_fill(&from[r], n_from);
        if (xp_layout_save(folder.text, 1, 0, from, n_from) != XP_OK)
            fail_msg("%s", xp_last_error());
        for (int n_to = 1; n_to <= MAX_RANKS; n_to++) {
            for (uint64_t seed = 100; seed < 104; seed++) {
                xp_layout_cut(seed * 10 + (uint64_t)n_to, n_to, to);
                if (xp_layout_load(folder.text, -1, to, n_to) != XP_OK)
                    fail_msg("%s", xp_last_error());
                for (int r = 0; r < n_to; r++)
                    assert_true(xp_layout_is(&to[r], n_from));
                xp_layout_free(to, n_to);
            }
        }
        xp_layout_free(from, n_from);
    }
    free(from);
    free(to);
}

static void assert_same_file(const char *a, const char *b) {
    size_t n_a, n_b;
    char *bytes_a = xp_scratch_read(a, &n_a), *bytes_b = xp_scratch_read(b, &n_b);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(bytes_a, bytes_b, n_a);
    free(bytes_a);
    free(bytes_b);
}

static void test_same_state_same_bytes(void **state) {
    static const char *const names[] = {"manifest.json", "rank-00000.safetensors",
                                        "rank-00001.safetensors", "rank-00002.safetensors"};
    xp_scratch_path a = xp_scratch_join(*state, "a"), b = xp_scratch_join(*state, "b");
    xp_layout layouts[3] = {0};
    xp_layout_cut(9, 3, layouts);
    for (int r = 0; r < 3; r++)
        xp_layout_fill(&layouts[r], 5);
    assert_int_equal(xp_layout_save(a.text, 7, 0, layouts, 3), XP_OK);
    assert_int_equal(xp_layout_save(b.text, 7, 0, layouts, 3), XP_OK);
    xp_layout_free(layouts, 3);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path_a[700], path_b[700];
        snprintf(path_a, sizeof path_a, "%s/step-7/%s", a.text, names[i]);
        snprintf(path_b, sizeof path_b, "%s/step-7/%s", b.text, names[i]);
        assert_same_file(path_a, path_b);
    }
    assert_int_equal(xp_scratch_count(xp_scratch_join(a.text, "step-7").text), 4);
}

static void test_newest_and_foreign_names(void **state) {
    static const char *const foreign[] = {"step-",
                                          "step-999x",
                                          "step-0900",
                                          "step--5",
                                          ".step-99.tmp",
                                          "astep-77",
                                          "step-99999999999999999999"};
    const char *folder = *state;
    xp_ckpt *ckpt = NULL;
    assert_int_equal(xp_ckpt_open(folder, -1, &ckpt), XP_ENOENT);
    assert_int_equal(xp_ckpt_open(xp_scratch_join(folder, "absent").text, -1, &ckpt), XP_ENOENT);
    save_one(folder, 9, 0, 9);
    save_one(folder, 10, 0, 10);
    save_one(folder, 100, 0, 100);
    save_one(folder, 20, 0, 20);
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++) {
        xp_scratch_path path = xp_scratch_join(folder, foreign[i]);
        assert_int_equal(xp_folder_create(path.text), XP_OK);
        xp_scratch_write(xp_scratch_join(path.text, "manifest.json").text, "{}", 2);
    }
    assert_int_equal(xp_folder_create(xp_scratch_join(folder, "step-5000").text), XP_OK);
    assert_int_equal(xp_ckpt_open(folder, -1, &ckpt), XP_OK);
    assert_int_equal(xp_ckpt_step(ckpt), 100);
    assert_non_null(strstr(xp_ckpt_path(ckpt), "/step-100"));
    xp_ckpt_close(ckpt);
    assert_true(holds(folder, 9, 9));
    assert_int_equal(xp_ckpt_open(folder, 11, &ckpt), XP_ENOENT);
    assert_int_equal(xp_ckpt_open(folder, 5000, &ckpt), XP_EFORMAT);
    assert_true(xp_scratch_error_has("manifest.json"));
}

static void test_leftovers_are_cleaned(void **state) {
    const char *folder = *state;
    save_one(folder, 1, 0, 1);
    xp_scratch_path temp = xp_scratch_join(folder, ".step-2.tmp");
    assert_int_equal(xp_folder_create(temp.text), XP_OK);
    xp_scratch_write(xp_scratch_join(temp.text, "rank-00000.safetensors").text, "x", 1);
    xp_scratch_write(xp_scratch_join(folder, "notes.txt").text, "mine", 4);
    /* A replacement that was cut between its two renames: the old one counts until the next save.
     */
    assert_int_equal(
        rename(xp_scratch_join(folder, "step-1").text, xp_scratch_join(folder, ".step-1.old").text),
        0);
    assert_true(holds(folder, -1, 1));
    save_one(folder, 3, 0, 3);
    assert_true(holds(folder, 1, 1));
    assert_true(holds(folder, 3, 3));
    assert_int_equal(xp_scratch_count(folder), 3);
    assert_int_equal(access(xp_scratch_join(folder, "notes.txt").text, F_OK), 0);
}

/* A run that went back: its new step is the newest, and the later ones are beside. */
static void test_later_steps_are_set_aside(void **state) {
    const char *folder = *state;
    char *into = NULL;
    for (int step = 1; step <= 5; step++)
        save_one(folder, step, 0, step);
    assert_int_equal(xp_ckpt_set_aside(folder, 5, -1, &into), XP_OK);
    assert_null(into);
    assert_int_equal(xp_ckpt_set_aside(folder, 2, 4, &into), XP_OK);
    assert_string_equal(into, xp_scratch_join(folder, "set-aside-1").text);
    assert_true(holds(into, 3, 3));
    assert_true(holds(into, 5, 5));
    free(into);
    assert_true(holds(folder, -1, 4));
    assert_int_equal(xp_ckpt_set_aside(folder, 0, -1, &into), XP_OK);
    assert_string_equal(into, xp_scratch_join(folder, "set-aside-2").text);
    assert_int_equal(xp_scratch_count(into), 3);
    free(into);
    save_one(folder, 1, 2, 9);
    assert_true(holds(folder, -1, 9));
    assert_int_equal(xp_scratch_count(folder), 3);
}

static void test_replace_a_step(void **state) {
    const char *folder = *state;
    save_one(folder, 4, 0, 1);
    save_one(folder, 4, 0, 2);
    assert_true(holds(folder, 4, 2));
    assert_int_equal(xp_scratch_count(folder), 1);
}

static void test_keep_latest_k(void **state) {
    const char *folder = *state;
    for (int64_t step = 1; step <= 5; step++)
        save_one(folder, step * 10, 0, (int)step);
    assert_int_equal(xp_scratch_count(folder), 5);
    assert_int_equal(xp_folder_create(xp_scratch_join(folder, "step-1").text), XP_OK);
    save_one(folder, 60, 3, 6);
    assert_true(holds(folder, 40, 4) && holds(folder, 50, 5) && holds(folder, 60, 6));
    assert_int_equal(xp_scratch_count(folder), 4); /* step-1 is no complete checkpoint of ours */
    /* Saved behind the newest one (a run that went back): what was just saved stays. */
    save_one(folder, 15, 2, 7);
    assert_true(holds(folder, 15, 7) && holds(folder, 60, 6));
    assert_int_equal(xp_scratch_count(folder), 3);
}

static void test_mismatches_are_named(void **state) {
    const char *folder = *state;
    save_one(folder, 1, 0, 1);
    xp_ckpt *ckpt;
    float out[64];
    assert_int_equal(xp_ckpt_open(folder, -1, &ckpt), XP_OK);
    xp_ckpt_piece piece = {.name = "absent", .n_dims = 1, .shape = {4}, .n = 4, .data = out};
    assert_int_equal(xp_ckpt_read(ckpt, &piece, 1), XP_EFORMAT);
    assert_true(xp_scratch_error_has("'absent'"));
    piece = (xp_ckpt_piece){.name = "cube", .n_dims = 3, .shape = {3, 5, 8}, .n = 4, .data = out};
    assert_int_equal(xp_ckpt_read(ckpt, &piece, 1), XP_EFORMAT);
    assert_true(xp_scratch_error_has("[3, 5, 7]") && xp_scratch_error_has("[3, 5, 8]"));
    piece = (xp_ckpt_piece){.name = "cube", .n_dims = 2, .shape = {3, 35}, .n = 4, .data = out};
    assert_int_equal(xp_ckpt_read(ckpt, &piece, 1), XP_EFORMAT);
    piece = (xp_ckpt_piece){
        .name = "counters", .dtype = XP_F32, .n_dims = 1, .shape = {5}, .n = 4, .data = out};
    assert_int_equal(xp_ckpt_read(ckpt, &piece, 1), XP_EFORMAT);
    assert_true(xp_scratch_error_has("i64"));
    piece = (xp_ckpt_piece){
        .name = "cube", .n_dims = 3, .shape = {3, 5, 7}, .first = 100, .n = 6, .data = out};
    assert_int_equal(xp_ckpt_read(ckpt, &piece, 1), XP_EINVAL);
    xp_ckpt_close(ckpt);
}

/** Elements that two ranks give, or none does, and pieces outside their tensors fail the save;
 * nothing appears. */
static void test_bad_pieces(void **state) {
    const char *folder = *state;
    float data[8] = {0};
    xp_ckpt_piece base = {.name = "w", .dtype = XP_F32, .n_dims = 1, .shape = {8}, .data = data};
    const struct {
        int64_t first_a, n_a, first_b, n_b;
        const char *error;
    } cases[] = {{0, 4, 5, 3, "element 4 of 'w' is given by no rank"},
                 {1, 4, 5, 3, "element 0 of 'w' is given by no rank"},
                 {0, 4, 4, 3, "element 7 of 'w' is given by no rank"},
                 {0, 5, 4, 4, "element 4 of 'w' is given by two pieces"},
                 {0, 0, 0, 0, "element 0 of 'w' is given by no rank"},
                 {0, 9, 0, 0, "outside"},
                 {-1, 4, 3, 5, "outside"},
                 {0, 8, 8, 1, "outside"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        xp_ckpt_piece pieces[] = {base, base};
        pieces[0].first = cases[i].first_a;
        pieces[0].n = cases[i].n_a;
        pieces[1].first = cases[i].first_b;
        pieces[1].n = cases[i].n_b;
        xp_ckpt_save_args args = {.folder = folder, .step = 1, .pieces = pieces, .n_pieces = 2};
        assert_int_equal(xp_ckpt_save(&args), XP_EINVAL);
        assert_true(xp_scratch_error_has(cases[i].error));
        assert_int_equal(xp_scratch_count(folder), 0);
    }
    xp_ckpt_piece pieces[] = {base, base};
    pieces[0].n = 8;
    pieces[1].shape[0] = 9;
    pieces[1].first = 8;
    pieces[1].n = 1;
    xp_ckpt_save_args args = {.folder = folder, .step = 1, .pieces = pieces, .n_pieces = 2};
    assert_int_equal(xp_ckpt_save(&args), XP_EINVAL);
    assert_true(xp_scratch_error_has("disagree"));
}

static void test_unwritable_folder(void **state) {
    xp_scratch_path file = xp_scratch_join(*state, "file");
    xp_scratch_write(file.text, "x", 1);
    xp_layout layout;
    xp_layout_cut(3, 1, &layout);
    assert_int_equal(
        xp_layout_save(xp_scratch_join(file.text, "checkpoint").text, 1, 0, &layout, 1), XP_EIO);
    assert_true(xp_scratch_error_has(file.text));
    xp_layout_free(&layout, 1);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, xp_scratch_setup, xp_scratch_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),
        TEST(test_resharding),
        TEST(test_same_state_same_bytes),
        TEST(test_newest_and_foreign_names),
        TEST(test_leftovers_are_cleaned),
        TEST(test_later_steps_are_set_aside),
        TEST(test_replace_a_step),
        TEST(test_keep_latest_k),
        TEST(test_mismatches_are_named),
        TEST(test_bad_pieces),
        TEST(test_unwritable_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
