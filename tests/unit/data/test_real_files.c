/* Files that other programs have written: tests/unit/data/files/README.md says which. */
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
#include "data/data_files.h"
#include "data/token_file.h"
#include "fixture.h"

static void assert_same_rows(const xp_dataset *a, const xp_dataset *b) {
    assert_int_equal(xp_dataset_n_tokens(a), xp_dataset_n_tokens(b));
    for (int64_t n = 0; n < xp_dataset_n_rows(a); n++) {
        int32_t x[4][S], y[4][S];
        assert_int_equal(xp_dataset_row(a, n, x[0], x[1], x[2], x[3]), XP_OK);
        assert_int_equal(xp_dataset_row(b, n, y[0], y[1], y[2], y[3]), XP_OK);
        assert_memory_equal(x, y, sizeof x);
    }
}

static void test_packed_text_is_the_plain_text(void **state) {
    const fixture *f = *state;
    static const char *const names[] = {"docs.gz.jsonl.gz", "members.jsonl.gz", "blocks.jsonl.gz",
                                        "docs.jsonl.zst",   "frames.jsonl.zst", "long.jsonl.zst"};
    xp_dataset *plain, *packed;
    assert_int_equal(open_data(f, "text", FILES "docs.jsonl", false, true, &plain), XP_OK);
    assert_int_equal(xp_dataset_n_documents(plain), 40);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[512];
        snprintf(path, sizeof path, FILES "%s", names[i]);
        if (open_data(f, "text", path, false, true, &packed) != XP_OK)
            fail_msg("%s: %s", names[i], xp_last_error());
        assert_int_equal(xp_dataset_n_documents(packed), 40);
        assert_same_rows(plain, packed);
        xp_dataset_close(packed);
    }
    xp_dataset_close(plain);
}

static void test_token_files_of_other_programs(void **state) {
    fixture *f = *state;
    static const struct {
        const char *name, *kind;
    } files[] = {{"nanogpt.bin", "16-bit ids (as nanoGPT"},
                 {"llmc_gpt2.bin", "llm.c, 16-bit"},
                 {"llmc_llama3.bin", "llm.c, 32-bit"},
                 {"megatron.bin", "Megatron, 16-bit"}};
    xp_dataset *raw, *other;
    assert_int_equal(open_data(f, "tokens", FILES "ids.u32.bin", false, false, &raw), XP_OK);
    assert_int_equal(xp_dataset_n_tokens(raw), 1200);
    assert_null(strstr(logged(f), "bit ids"));
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[512];
        snprintf(path, sizeof path, FILES "%s", files[i].name);
        if (open_data(f, "tokens", path, false, false, &other) != XP_OK)
            fail_msg("%s: %s", files[i].name, xp_last_error());
        assert_same_rows(raw, other);
        assert_non_null(strstr(logged(f), files[i].kind));
        xp_dataset_close(other);
    }
    xp_dataset_close(raw);
}

/* A vocabulary above 65536: no 16-bit value is outside it. */
static void test_16_bit_ids_are_recognised_in_a_large_vocabulary(void **state) {
    const fixture *f = *state;
    static const int64_t vocabularies[] = {257, 2048, 50257, 65536, 151936};
    for (int i = 0; i < 5; i++) {
        xp_token_file file;
        assert_int_equal(xp_token_file_open(FILES "nanogpt.bin", "auto", vocabularies[i], &file),
                         XP_OK);
        assert_int_equal(file.id_bytes, 2);
        assert_int_equal(file.n, 1200);
        xp_token_file_close(&file);
        assert_int_equal(xp_token_file_open(FILES "ids.u32.bin", "auto", vocabularies[i], &file),
                         XP_OK);
        assert_int_equal(file.id_bytes, 4);
        xp_token_file_close(&file);
    }
    /* uint32 ids of a larger tokenizer than the model's are not taken for pairs of 16-bit ids */
    uint32_t ids[4000];
    for (uint32_t i = 0; i < 4000; i++)
        ids[i] = i * 2654435761U % 151643;
    write_file(f, "large.bin", ids, sizeof ids);
    char *path = in_folder(f, "large.bin");
    static const int64_t small[] = {257, 50257, 65537, 100000, 151936};
    for (int i = 0; i < 5; i++) {
        xp_token_file file;
        assert_int_equal(xp_token_file_open(path, "auto", small[i], &file), XP_OK);
        assert_int_equal(file.id_bytes, 4);
        xp_token_file_close(&file);
    }
    xp_token_file file; /* what is asked for goes before what it looks like */
    assert_int_equal(xp_token_file_open(path, "uint16", 257, &file), XP_OK);
    assert_int_equal(file.n, 8000);
    xp_token_file_close(&file);
    free(path);
}

static void test_mistaken_types_are_named(void **state) {
    const fixture *f = *state;
    assert_refused(f, "tokens", FILES "ids.i64.bin", XP_EFORMAT, "64-bit integers");
    assert_refused(f, "tokens", FILES "ids.f32.bin", XP_EFORMAT, "32-bit floating-point");
    assert_refused(f, "tokens", FILES "ids.be.bin", XP_EFORMAT, "big-endian");
    assert_refused(f, "tokens", FILES "ids.npy.bin", XP_EFORMAT, "NumPy");
    run_command("cd %s && cp " FILES
                "docs.jsonl text.bin && gzip -nc text.bin > gz.bin && zstd -q text.bin -o "
                "zst.bin && cp " FILES "docs.parquet pq.bin",
                f->folder);
    assert_refused(f, "tokens", "text.bin", XP_EFORMAT, "text");
    assert_refused(f, "tokens", "gz.bin", XP_EFORMAT, "gzip");
    assert_refused(f, "tokens", "zst.bin", XP_EFORMAT, "Zstandard");
    assert_refused(f, "tokens", "pq.bin", XP_EFORMAT, "Parquet");
    assert_refused(f, "text", FILES "docs.parquet", XP_ENOENT, "Parquet");
    double doubles[64];
    for (int i = 0; i < 64; i++)
        doubles[i] = 1.37 * i + 0.1;
    write_file(f, "f64.bin", doubles, sizeof doubles);
    assert_refused(f, "tokens", "f64.bin", XP_EFORMAT, "64-bit floating-point");
    /* headers of llm.c that do not fit */
    char *data;
    size_t n;
    assert_int_equal(xp_file_read(FILES "llmc_gpt2.bin", 1 << 20, &data, &n), XP_OK);
    write_file(f, "cut.bin", data, n - 2);
    assert_refused(f, "tokens", "cut.bin", XP_EFORMAT, "llm.c's header says 1200 ids");
    data[4] = 3;
    write_file(f, "version.bin", data, n);
    assert_refused(f, "tokens", "version.bin", XP_EFORMAT, "version 3");
    data[0] += 2;
    write_file(f, "eval.bin", data, n);
    assert_refused(f, "tokens", "eval.bin", XP_EFORMAT, "evaluation");
    free(data);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_set_up, fixture_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_packed_text_is_the_plain_text),
        TEST(test_token_files_of_other_programs),
        TEST(test_16_bit_ids_are_recognised_in_a_large_vocabulary),
        TEST(test_mistaken_types_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
