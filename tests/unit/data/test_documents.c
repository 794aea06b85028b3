/* Text files as people have them: what a line may hold, what a file may begin with, what a folder holds besides. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/text.h"
#include "data/documents.h"
#include "fixture.h"

static void check_text(const fixture *f, const char *name, const char *content, const char *want) {
    write_text(f, name, content);
    xp_data_files files;
    char *path = in_folder(f, name), *text;
    size_t n;
    assert_int_equal(xp_data_files_find(path, xp_data_text_endings(), &files), XP_OK);
    xp_documents_args args = {.files = &files};
    xp_documents *documents;
    assert_int_equal(xp_documents_open(&args, &documents), XP_OK);
    if (xp_documents_next(documents, &text, &n) != XP_OK)
        fail_msg("%s: %s", content, xp_last_error());
    assert_non_null(text);
    assert_int_equal(n, strlen(want));
    assert_string_equal(text, want);
    free(text);
    xp_documents_close(documents);
    xp_data_files_free(&files);
    unlink(path);
    free(path);
}

static void test_other_fields_hold_what_they_like(void **state) {
    const fixture *f = *state;
    static const char *const fields[] = {"1e400",
                                         "-1e400",
                                         "18446744073709551616",
                                         "123456789012345678901234567890",
                                         "0.1e-999999",
                                         "NaN",
                                         "-Infinity",
                                         "Infinity",
                                         "{\"text\": \"no\", \"a\": [[], {}, [{\"b\": 1e999}]]}",
                                         "null",
                                         "\"\\ud800\"",
                                         "[]",
                                         "true"};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        char line[256];
        snprintf(line, sizeof line, "{\"x\": %s, \"text\": \"yes\", \"z\": %s}\n", fields[i],
                 fields[i]);
        check_text(f, "a.jsonl", line, "yes");
    }
}

static void test_strings_are_read_as_they_are_meant(void **state) {
    const fixture *f = *state;
    check_text(f, "a.jsonl", "{\"text\": \"a\\u00e9\\n\\\"\\/\\\\\\t\"}", "a\xc3\xa9\n\"/\\\t");
    check_text(f, "a.jsonl", "{\"te\\u0078t\": \"key\"}", "key");
    check_text(f, "a.jsonl", "{\"text\": \"\\ud83d\\ude00\"}", "\xf0\x9f\x98\x80");
    /* half of a pair, first, second, both the wrong way round, before something else */
    check_text(f, "a.jsonl", "{\"text\": \"a\\ud83d\"}", "a\xef\xbf\xbd");
    check_text(f, "a.jsonl", "{\"text\": \"\\ude00b\"}",
               "\xef\xbf\xbd"
               "b");
    check_text(f, "a.jsonl", "{\"text\": \"\\ude00\\ud83d\"}", "\xef\xbf\xbd\xef\xbf\xbd");
    check_text(f, "a.jsonl", "{\"text\": \"\\ud83d\\u0041\"}",
               "\xef\xbf\xbd"
               "A");
}

static void test_a_byte_order_mark_is_skipped(void **state) {
    const fixture *f = *state;
    check_text(f, "a.jsonl", "\xef\xbb\xbf{\"text\": \"a\"}\n", "a");
    check_text(f, "a.txt", "\xef\xbb\xbfplain", "plain");
    write_text(f, "a.txt",
               "\xff\xfe"
               "a\1b\1");
    assert_refused(f, "text", "a.txt", XP_EFORMAT, "UTF-16");
}

static void test_bad_lines_are_named(void **state) {
    const fixture *f = *state;
    static const struct {
        const char *line, *words;
    } bad[] = {{"{\"text\": \"a\"", "a.jsonl:1:13: not a JSON object"},
               {"{\"text\": \"a\"} x", "something follows"},
               {"{\"text\": \"a\"}{\"text\": \"b\"}", "something follows"},
               {"{\"text\": 12}", "no string"},
               {"{\"text\": null}", "no string"},
               {"{\"body\": \"a\", \"id\": 1}", "there are: body, id"},
               {"{\"text\": \"a\", \"text\": \"a\"}", "twice"},
               {"{\"text\": \"\\u12\"}", "escape"},
               {"{\"text\": \"\\x41\"}", "escape"},
               {"{\"text\": \"a\tb\"}", "control character"},
               {"{\"text\": \"a\", \"n\": 01}", "not a JSON object"},
               {"{\"text\": \"a\", \"n\": 1.}", "not a JSON object"},
               {"{\"text\": \"a\", \"n\": .5}", "not a JSON object"},
               {"{\"text\": \"a\", \"n\": [1, 2}", "not a JSON object"},
               {"{\"text\": \"a\",}", "a key in quotes"},
               {"{\"text\": \"\xff\"}", "a.jsonl:1:11: not UTF-8"},
               {"[{\"text\": \"a\"}]", "jq -c"},
               {"plain words", "not a JSON object"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_text(f, "a.jsonl", bad[i].line);
        assert_refused(f, "text", "a.jsonl", XP_EFORMAT, bad[i].words);
    }
    xp_text deep = {0};
    xp_text_puts(&deep, "{\"text\": \"a\", \"n\": ");
    for (int i = 0; i < 100000; i++)
        xp_text_puts(&deep, "[");
    write_file(f, "a.jsonl", deep.data, deep.length);
    assert_refused(f, "text", "a.jsonl", XP_EFORMAT, "nested too deeply");
    xp_text_free(&deep);
}

static void test_bad_lines_can_be_skipped_and_are_counted(void **state) {
    fixture *f = *state;
    write_text(f, "a.jsonl",
               "{\"text\": \"good one\"}\nnonsense\n{\"text\": 7}\n\n{\"text\": \"good two\"}\n{");
    xp_dataset_args args = data_args(f, "text", "a.jsonl");
    args.skip_bad_lines = true;
    for (int round = 0; round < 2; round++) { /* tokenised, then from the cache */
        xp_dataset *d;
        assert_int_equal(xp_dataset_open(&args, &d), XP_OK);
        assert_int_equal(xp_dataset_n_documents(d), 2);
        xp_dataset_close(d);
        const char *lines = logged(f);
        assert_non_null(
            strstr(lines, round == 0 ? "skipped 3 bad lines" : "3 bad lines were skipped"));
        assert_true(round == 1 || strstr(lines, "a.jsonl:2:1: not a JSON object"));
    }
    /* the cache made with skipping is not the one of a run that does not skip */
    args.skip_bad_lines = false;
    xp_dataset *d = NULL;
    assert_int_equal(xp_dataset_open(&args, &d), XP_EFORMAT);
    free_args(&args);
}

static void test_the_text_field_can_be_named(void **state) {
    const fixture *f = *state;
    write_text(f, "a.jsonl", "{\"text\": \"x\", \"content\": \"twelve bytes\"}\n");
    xp_dataset_args args = data_args(f, "text", "a.jsonl");
    xp_dataset *d;
    args.text_field = "content";
    assert_int_equal(xp_dataset_open(&args, &d), XP_OK);
    assert_int_equal(xp_dataset_n_tokens(d), 13);
    xp_dataset_close(d);
    args.text_field = "body";
    assert_int_equal(xp_dataset_open(&args, &d), XP_EFORMAT);
    assert_non_null(strstr(xp_last_error(), "\"body\"; there are: text, content"));
    free_args(&args);
}

static void test_folders_are_searched_and_what_is_skipped_is_counted(void **state) {
    fixture *f = *state;
    run_command("cd %s && mkdir -p d/x/y d/.git && ln -s .. d/x/up && ln -s ../../x "
                "d/x/y/again && ln -s nowhere d/link",
                f->folder);
    write_text(f, "d/A.JSONL", "{\"text\": \"first\"}\n");
    write_text(f, "d/x/B.TXT", "second");
    write_text(f, "d/x/y/c.Json", "{\"text\": \"third\"}\n");
    write_text(f, "d/.git/d.txt", "hidden");
    write_text(f, "d/README.md", "no data");
    write_text(f, "d/x/p.parquet", "PAR1");
    write_text(f, "d/x/y/q.PARQUET", "PAR1");
    xp_dataset *d;
    assert_int_equal(open_data(f, "text", "d", false, false, &d), XP_OK);
    assert_int_equal(xp_dataset_n_documents(d), 3);
    assert_int_equal(xp_dataset_n_tokens(d), 5 + 6 + 5 + 3);
    xp_dataset_close(d);
    const char *lines = logged(f);
    assert_non_null(strstr(lines, "skipped 4 files"));
    assert_non_null(strstr(lines, "2 .parquet"));
    assert_non_null(strstr(lines, "1 .md"));
    run_command("rm %s/d/x/up", f->folder);
    assert_int_equal(open_data(f, "text", "d/*", false, false, &d), XP_OK);
    assert_int_equal(xp_dataset_n_documents(d), 3);
    xp_dataset_close(d);
    assert_refused(f, "text", "d/x/p.parquet", XP_ENOENT,
                   "| expar tokenize --tokenizer DIR --out ids.bin -");
    assert_refused(f, "text", "d/README.md", XP_ENOENT, ".jsonl.zst");
    assert_refused(f, "tokens", "d", XP_ENOENT, ".bin");
    run_command("mkfifo %s/pipe.jsonl", f->folder);
    assert_refused(f, "text", "pipe.jsonl", XP_EIO, "no regular file");
}

/* A gzip file that is damaged anywhere is refused, never read as a shorter or another one. */
static void test_damaged_packed_files(void **state) {
    const fixture *f = *state;
    static const char *const names[] = {"members.jsonl.gz", "docs.jsonl.zst", "frames.jsonl.zst"};
    for (int k = 0; k < 3; k++) {
        char path[512], *data, *wanted;
        size_t n, n_wanted;
        snprintf(path, sizeof path, FILES "%s", names[k]);
        assert_int_equal(xp_file_read(path, 1 << 20, &data, &n), XP_OK);
        assert_int_equal(xp_file_read(FILES "docs.jsonl", 1 << 20, &wanted, &n_wanted), XP_OK);
        char *copy = in_folder(f, names[k]);
        for (size_t cut = 1; cut < n; cut += 3) {
            write_file(f, names[k], data, cut);
            xp_dataset *d = NULL;
            xp_status status = open_data(f, "text", names[k], false, false, &d);
            /* where one member or frame ends the file may end, too */
            if (status == XP_OK)
                assert_true(xp_dataset_n_documents(d) == 20);
            else
                assert_true(status == XP_EFORMAT || status == XP_ENOENT);
            xp_dataset_close(d);
        }
        char *more = malloc(n + 3);
        memcpy(more, data, n);
        memcpy(more + n, "xyz", 3);
        write_file(f, names[k], more, n + 3);
        assert_refused(f, "text", names[k], XP_EFORMAT, names[k]);
        free(more);
        free(copy);
        free(data);
        free(wanted);
    }
    write_text(f, "b.txt.gz", "just text");
    assert_refused(f, "text", "b.txt.gz", XP_EFORMAT, "is not gzip");
    write_text(f, "b.txt.zst", "just text");
    assert_refused(f, "text", "b.txt.zst", XP_EFORMAT, "is not Zstandard");
    write_text(f, "e.jsonl.gz", "");
    assert_refused(f, "text", "e.jsonl.gz", XP_EFORMAT, "empty");
    write_text(f, "p.jsonl", "version https://git-lfs.github.com/spec/v1\n");
    assert_refused(f, "text", "p.jsonl", XP_EFORMAT, "git lfs pull");
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_set_up, fixture_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_other_fields_hold_what_they_like),
        TEST(test_strings_are_read_as_they_are_meant),
        TEST(test_a_byte_order_mark_is_skipped),
        TEST(test_bad_lines_are_named),
        TEST(test_bad_lines_can_be_skipped_and_are_counted),
        TEST(test_the_text_field_can_be_named),
        TEST(test_folders_are_searched_and_what_is_skipped_is_counted),
        TEST(test_damaged_packed_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
