#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "core/file.h"
#include "core/text.h"
#include "data/documents.h"
#include "data/loader.h"
#include "fixture.h"

static void test_token_files_are_rows_in_file_order(void **state) {
    fixture *f = *state;
    uint32_t ids[50];
    for (uint32_t i = 0; i < 50; i++)
        ids[i] = i * 3 % 257;
    write_file(f, "b.bin", ids + 20, 30 * 4);
    write_file(f, "a.bin", ids, 20 * 4);
    xp_dataset *d;
    assert_int_equal(open_data(f, "tokens", "*.bin", false, false, &d), XP_OK);
    assert_int_equal(xp_dataset_n_tokens(d), 50);
    assert_int_equal(xp_dataset_n_rows(d), 6);
    for (int64_t n = 0; n < 13; n++) { /* over two epochs */
        int32_t tokens[S], targets[S], positions[S], start[S];
        assert_int_equal(xp_dataset_row(d, n, tokens, targets, positions, start), XP_OK);
        for (int i = 0; i < S; i++) {
            assert_int_equal(tokens[i], ids[n % 6 * (S + 1) + i]);
            assert_int_equal(targets[i], ids[n % 6 * (S + 1) + i + 1]);
            assert_int_equal(positions[i], i);
            assert_int_equal(start[i], 0);
        }
    }
    xp_dataset_close(d);
}

static void test_shuffled_rows_are_a_permutation_that_changes_by_epoch(void **state) {
    fixture *f = *state;
    uint32_t ids[8 * 200];
    for (uint32_t i = 0; i < 8 * 200; i++)
        ids[i] = i / 8;
    write_file(f, "a.bin", ids, sizeof ids);
    xp_dataset *d;
    assert_int_equal(open_data(f, "tokens", "a.bin", true, false, &d), XP_OK);
    int first[2][200], moved = 0;
    for (int epoch = 0; epoch < 2; epoch++) {
        char seen[200] = {0};
        for (int n = 0; n < 200; n++) {
            int32_t tokens[S], rest[3 * S];
            assert_int_equal(
                xp_dataset_row(d, epoch * 200 + n, tokens, rest, rest + S, rest + 2 * S), XP_OK);
            assert_false(seen[tokens[0]]);
            seen[tokens[0]] = 1;
            first[epoch][n] = tokens[0];
        }
    }
    for (int n = 0; n < 200; n++)
        moved += first[0][n] != first[1][n];
    assert_true(moved > 150);
    xp_dataset_close(d);
}

static void test_documents_are_packed_and_never_seen_across_a_border(void **state) {
    fixture *f = *state;
    const char *lines =
        "{\"text\": \"abc\"}\n\n{\"id\": 1, \"text\": \"defghij\"}\r\n{\"text\": \"\"}\n"
        "{\"text\": \"kl\"}";
    write_file(f, "text/a.jsonl", lines, strlen(lines));
    xp_dataset *d;
    assert_int_equal(open_data(f, "text", "text", false, true, &d), XP_OK);
    /* abc E defghij E E kl E = 16 tokens: 2 rows of 8 */
    assert_int_equal(xp_dataset_n_documents(d), 4);
    assert_int_equal(xp_dataset_n_tokens(d), 16);
    assert_int_equal(xp_dataset_n_rows(d), 2);
    int32_t tokens[S], targets[S], positions[S], start[S];
    assert_int_equal(xp_dataset_row(d, 0, tokens, targets, positions, start), XP_OK);
    int32_t tokens0[S] = {'a', 'b', 'c', 256, 'd', 'e', 'f'};
    int32_t targets0[S] = {'b', 'c', 256, -1, 'e', 'f', 'g'};
    int32_t positions0[S] = {0, 1, 2, 3, 0, 1, 2}, start0[S] = {0, 0, 0, 0, 4, 4, 4};
    assert_memory_equal(tokens, tokens0, sizeof tokens);
    assert_memory_equal(targets, targets0, sizeof targets);
    assert_memory_equal(positions, positions0, sizeof positions);
    assert_memory_equal(start, start0, sizeof start);
    assert_int_equal(xp_dataset_row(d, 1, tokens, targets, positions, start), XP_OK);
    int32_t targets1[S] = {'i', 'j', 256, -1, -1, 'l', 256};
    int32_t positions1[S] = {0, 1, 2, 3, 0, 0, 1};
    assert_memory_equal(targets, targets1, sizeof targets);
    assert_memory_equal(positions, positions1, sizeof positions);
    xp_dataset_close(d);
    assert_int_equal(open_data(f, "text", "text", false, false, &d), XP_OK);
    assert_int_equal(xp_dataset_row(d, 0, tokens, targets, positions, start), XP_OK);
    assert_int_equal(targets[3], 'd');
    xp_dataset_close(d);
}

static void test_plain_and_gzip_text_give_the_same_tokens(void **state) {
    fixture *f = *state;
    xp_text lines = {0};
    for (int i = 0; i < 700; i++)
        xp_text_printf(&lines, "{\"text\": \"document number %d, %0*d\"}\n", i, i % 90 + 1, i);
    write_file(f, "text/b.jsonl", lines.data, lines.length);
    xp_dataset *plain, *packed;
    assert_int_equal(open_data(f, "text", "text/b.jsonl", true, false, &plain), XP_OK);
    char *path = in_folder(f, "text/c.json.gz");
    gzFile gz = gzopen(path, "wb");
    assert_int_equal(gzwrite(gz, lines.data, (unsigned)lines.length), (int)lines.length);
    gzclose(gz);
    assert_int_equal(open_data(f, "text", "text/c.json.gz", true, false, &packed), XP_OK);
    assert_int_equal(xp_dataset_n_tokens(plain), xp_dataset_n_tokens(packed));
    for (int64_t n = 0; n < 2 * xp_dataset_n_rows(plain); n += 3) {
        int32_t a[4][S], b[4][S];
        assert_int_equal(xp_dataset_row(plain, n, a[0], a[1], a[2], a[3]), XP_OK);
        assert_int_equal(xp_dataset_row(packed, n, b[0], b[1], b[2], b[3]), XP_OK);
        assert_memory_equal(a, b, sizeof a);
    }
    xp_dataset_close(plain);
    xp_dataset_close(packed);
    free(path);
    xp_text_free(&lines);
}

static void test_any_number_of_ranks_sees_the_same_global_batch(void **state) {
    fixture *f = *state;
    uint32_t ids[8 * 101];
    for (uint32_t i = 0; i < 8 * 101; i++)
        ids[i] = i / 8;
    write_file(f, "a.bin", ids, sizeof ids);
    xp_dataset *d;
    assert_int_equal(open_data(f, "tokens", "a.bin", true, false, &d), XP_OK);
    /* global batch 12 as A x W x B; the rows of step s are 12 s .. 12 s + 11 in every layout */
    int layouts[][3] = {{1, 1, 12}, {3, 2, 2}, {1, 4, 3}, {12, 1, 1}, {2, 3, 2}};
    int32_t expected[5][12];
    for (int layout = 0; layout < 5; layout++) {
        int A = layouts[layout][0], W = layouts[layout][1], B = layouts[layout][2];
        for (int r = 0; r < W; r++) {
            xp_loader *l;
            xp_loader_args args = {.local_batch_size = B,
                                   .n_microbatches = A,
                                   .data_rank = r,
                                   .n_data_ranks = W,
                                   .n_prefetch = layout % 3};
            assert_int_equal(xp_loader_create(d, &args, &l), XP_OK);
            assert_int_equal(xp_loader_seek(l, 2), XP_OK); /* resuming */
            for (int step = 2; step < 5; step++)
                for (int m = 0; m < A; m++) {
                    xp_batch batch;
                    assert_int_equal(xp_loader_next(l, &batch), XP_OK);
                    assert_int_equal(batch.n_valid, B * S);
                    for (int j = 0; j < B; j++) {
                        int at = (m * W + r) * B + j;
                        if (layout == 0)
                            expected[step][at] = batch.tokens[j * S];
                        assert_int_equal(batch.tokens[j * S], expected[step][at]);
                    }
                }
            xp_loader_destroy(l);
        }
    }
    xp_dataset_close(d);
}

static void test_cache_is_reused_and_follows_the_file(void **state) {
    fixture *f = *state;
    const char *text = "hello there, this is a text of some length";
    write_file(f, "text/a.txt", text, strlen(text));
    xp_dataset *d;
    assert_int_equal(open_data(f, "text", "text/a.txt", false, false, &d), XP_OK);
    int64_t n = xp_dataset_n_tokens(d);
    assert_int_equal(n, (int64_t)strlen(text) + 1);
    xp_dataset_close(d);
    write_file(f, "text/a.txt", text, strlen(text) - 5);
    assert_int_equal(open_data(f, "text", "text/a.txt", false, false, &d), XP_OK);
    assert_int_equal(xp_dataset_n_tokens(d), n - 5);
    xp_dataset_close(d);
}

static void test_bad_data_is_refused_with_place_and_reason(void **state) {
    fixture *f = *state;
    write_file(f, "odd.bin", "12345", 5);
    uint32_t high[8] = {1, 2, 3, 257, 5, 6, 7, 8};
    write_file(f, "high.bin", high, sizeof high);
    write_file(f, "short.bin", high, 12);
    write_file(f, "empty.txt", "", 0);
    write_file(f, "broken.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"\n", 28);
    write_file(f, "field.jsonl", "{\"texte\": \"a long enough text\"}\n", 32);
    write_file(f, "number.jsonl", "{\"text\": 12}\n", 13);
    write_file(f, "twice.jsonl", "{\"text\": \"a\", \"text\": \"b\"}\n", 27);
    write_file(f, "list.jsonl", "[1, 2]\n", 7);
    write_file(f, "x.csv", "a", 1);
    unsigned char truncated[] = {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x4b, 0x4c};
    write_file(f, "cut.txt.gz", truncated, sizeof truncated);
    assert_refused(f, "tokens", "odd.bin", XP_EFORMAT, "multiple of 4");
    assert_refused(f, "tokens", "short.bin", XP_ECONFIG, "fewer than one row");
    assert_refused(f, "tokens", "none*.bin", XP_ENOENT, "none*.bin");
    assert_refused(f, "tokens", "x.csv", XP_ENOENT, ".bin");
    assert_refused(f, "text", "nowhere", XP_ENOENT, ".jsonl");
    assert_refused(f, "text", "empty.txt", XP_EFORMAT, "no documents");
    assert_refused(f, "text", "broken.jsonl", XP_EFORMAT, "broken.jsonl:2");
    assert_refused(f, "text", "field.jsonl", XP_EFORMAT, "field.jsonl:1");
    assert_refused(f, "text", "number.jsonl", XP_EFORMAT, "\"text\"");
    assert_refused(f, "text", "twice.jsonl", XP_EFORMAT, "twice.jsonl:1");
    assert_refused(f, "text", "list.jsonl", XP_EFORMAT, "list.jsonl:1");
    assert_refused(f, "text", "cut.txt.gz", XP_EFORMAT, "cut.txt.gz");
    assert_refused(f, "images", "x.csv", XP_ECONFIG, "images");
    xp_dataset *d;
    assert_int_equal(open_data(f, "tokens", "high.bin", false, false, &d), XP_OK);
    int32_t row[4][S];
    assert_int_equal(xp_dataset_row(d, 0, row[0], row[1], row[2], row[3]), XP_EFORMAT);
    assert_non_null(strstr(xp_last_error(), "token 257 at index 3"));
    xp_loader *l;
    xp_loader_args args = {
        .local_batch_size = 1, .n_microbatches = 1, .n_data_ranks = 1, .n_prefetch = 2};
    assert_int_equal(xp_loader_create(d, &args, &l), XP_OK);
    xp_batch batch;
    assert_int_equal(xp_loader_next(l, &batch), XP_EFORMAT);
    assert_non_null(strstr(xp_last_error(), "token 257"));
    xp_loader_destroy(l);
    xp_dataset_close(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_token_files_are_rows_in_file_order, fixture_set_up,
                                        fixture_tear_down),
        cmocka_unit_test_setup_teardown(test_shuffled_rows_are_a_permutation_that_changes_by_epoch,
                                        fixture_set_up, fixture_tear_down),
        cmocka_unit_test_setup_teardown(test_documents_are_packed_and_never_seen_across_a_border,
                                        fixture_set_up, fixture_tear_down),
        cmocka_unit_test_setup_teardown(test_plain_and_gzip_text_give_the_same_tokens,
                                        fixture_set_up, fixture_tear_down),
        cmocka_unit_test_setup_teardown(test_any_number_of_ranks_sees_the_same_global_batch,
                                        fixture_set_up, fixture_tear_down),
        cmocka_unit_test_setup_teardown(test_cache_is_reused_and_follows_the_file, fixture_set_up,
                                        fixture_tear_down),
        cmocka_unit_test_setup_teardown(test_bad_data_is_refused_with_place_and_reason,
                                        fixture_set_up, fixture_tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
