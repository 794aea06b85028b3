/** Damaged checkpoints are refused with one clear error, and the older ones stay usable. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <unistd.h>
#include "checkpoint/state.h"
#include "core/text.h"
#include "layout.h"
#include "scratch.h"

#define TAIL_BYTES 30

/** step-1 and step-2, the second of two ranks. */
static void save_two(const char *folder) {
    xp_layout layouts[2] = {0};
    for (int step = 1; step <= 2; step++) {
        xp_layout_cut(21, step, layouts);
        for (int r = 0; r < step; r++)
            xp_layout_fill(&layouts[r], step);
        if (xp_layout_save(folder, step, 0, layouts, step) != XP_OK)
            fail_msg("%s", xp_last_error());
        xp_layout_free(layouts, step);
    }
}

/** Open, verify and read everything; the first failure. */
static xp_status use(const char *folder, int64_t step, int version) {
    xp_ckpt *ckpt;
    xp_layout layout;
    XP_TRY(xp_ckpt_open(folder, step, &ckpt));
    xp_layout_cut(5, 1, &layout);
    xp_status status = xp_ckpt_read(ckpt, layout.pieces, layout.n_pieces);
    if (status == XP_OK)
        assert_true(xp_layout_is(&layout, version));
    if (status == XP_OK)
        status = xp_ckpt_verify(ckpt);
    xp_layout_free(&layout, 1);
    xp_ckpt_close(ckpt);
    return status;
}

/** Put `to` in place of the first `from` of the manifest, and give it a valid checksum if asked. */
static char *tamper(const char *text, size_t n, const char *from, const char *to, bool sign,
                    size_t *n_out) {
    const char *at = strstr(text, from);
    if (at == NULL)
        fail_msg("no \"%s\" in the manifest", from);
    xp_text out = {0};
    xp_text_add(&out, text, (size_t)(at - text));
    xp_text_puts(&out, to);
    xp_text_add(&out, at + strlen(from), n - (size_t)(at - text) - strlen(from));
    if (sign) {
        out.length -= TAIL_BYTES;
        uint64_t hash = XXH64(out.data, out.length, 0);
        out.data[out.length] = '\0';
        xp_text_printf(&out, " \"xxh64\": \"%016" PRIx64 "\"}\n", hash);
    }
    assert_false(out.failed);
    *n_out = out.length;
    return out.data;
}

typedef struct tamper_case {
    const char *from, *to, *error;
} tamper_case;

static const tamper_case signed_cases[] = {
    {"\"version\": 1", "\"version\": 2", "version 2"},
    {"\"version\": 1", "\"version\": \"1\"", "version"},
    {"\"version\": 1", "\"version\": 99999999999999999999", "manifest.json"},
    {"expar-checkpoint", "other-checkpoint", "no manifest of an expar checkpoint"},
    {"\"step\": 2", "\"step\": 3", "of step 3"},
    {"\"step\": 2", "\"step\": -2", "step"},
    {"\"step\": 2", "\"step\": 2, \"step\": 2", "duplicate"},
    {"\"step\": 2", "\"stop\": 2", "step"},
    {"\"expar\": \"", "\"expar\": \"\\u0001", "step"},
    {"\"values\": {", "\"values\": [{", "manifest.json"},
    {"\"12345\"", "12345", "values"},
    {"\"rank-00001.safetensors\"", "\"../rank-00001.safetensors\"", "files"},
    {"\"rank-00001.safetensors\"", "\"/etc/passwd\"", "files"},
    {"\"rank-00001.safetensors\"", "\"rank-00000.safetensors\"", "files"},
    {"\"bytes\": ", "\"bytes\": 1", "bytes instead of"},
    {"\"bytes\": ", "\"bytes\": -", "files"},
    {"\"xxh64\": \"", "\"xxh64\": \"z", "files"},
    {"\"files\": [", "\"file\": [", "files"},
    {"\"tensors\": [", "\"tensor\": [", "tensors"},
    {"\"tensors\": [", "\"tensors\": [null,", "tensors"},
    {"\"counters\", \"dtype\": \"I64\"", "\"counters\", \"dtype\": \"I65\"", "tensors"},
    {"\"counters\", \"dtype\": \"I64\"", "\"counters\", \"dtype\": \"F64\"", "needs i64"},
    {"\"counters\", \"dtype\": \"I64\"", "\"zounters\", \"dtype\": \"I64\"", "tensors"},
    {"\"shape\": [5]", "\"shape\": [6]", "pieces"},
    {"\"shape\": [5]", "\"shape\": [4]", "pieces"},
    {"\"shape\": [5]", "\"shape\": [-5]", "tensors"},
    {"\"shape\": [5]", "\"shape\": [5.0]", "tensors"},
    {"\"shape\": [5]", "\"shape\": [5, 1, 1, 1]", "tensors"},
    {"\"shape\": [5]", "\"shape\": [9223372036854775807, 5]", "tensors"},
    {"\"shape\": [5]", "\"shape\": [1, 5]", "needs i64"},
    {"{\"file\": 0", "{\"file\": 2", "pieces"},
    {"{\"file\": 0", "{\"file\": -1", "pieces"},
    {"\"first\": 0", "\"first\": 1", "pieces"},
    {"\"pieces\": [", "\"pieces\": [{},", "pieces"},
};

static void test_tampered_manifest(void **state) {
    const char *folder = *state;
    save_two(folder);
    xp_scratch_path path = xp_scratch_join(folder, "step-2/manifest.json");
    size_t n, n_bad;
    char *text = xp_scratch_read(path.text, &n);
    for (size_t i = 0; i < sizeof signed_cases / sizeof signed_cases[0]; i++) {
        const tamper_case *c = &signed_cases[i];
        for (int sign = 0; sign < 2; sign++) {
            char *bad = tamper(text, n, c->from, c->to, sign == 1, &n_bad);
            xp_scratch_write(path.text, bad, n_bad);
            free(bad);
            if (use(folder, -1, 2) != XP_EFORMAT ||
                !xp_scratch_error_has(sign == 1 ? c->error : "checksum"))
                fail_msg("case %zu: %s -> %s", i, c->from, c->to);
        }
    }
    for (size_t cut = 0; cut < n; cut += 97) {
        xp_scratch_write(path.text, text, cut);
        assert_int_equal(use(folder, -1, 2), XP_EFORMAT);
    }
    assert_true(xp_scratch_error_has("load_step 1"));
    assert_int_equal(use(folder, 1, 1), XP_OK);
    xp_scratch_write(path.text, text, n);
    assert_int_equal(use(folder, -1, 2), XP_OK);
    free(text);
}

static void test_damaged_shard(void **state) {
    const char *folder = *state;
    save_two(folder);
    xp_scratch_path path = xp_scratch_join(folder, "step-2/rank-00001.safetensors");
    size_t n;
    char *bytes = xp_scratch_read(path.text, &n);
    /* One flipped bit anywhere, header and padding included, is found. */
    for (size_t at = 0; at < n; at += 1 + n / 150) {
        bytes[at] = (char)(bytes[at] ^ 4);
        xp_scratch_write(path.text, bytes, n);
        if (use(folder, -1, 2) != XP_EFORMAT)
            fail_msg("byte %zu of %zu", at, n);
        bytes[at] = (char)(bytes[at] ^ 4);
    }
    for (size_t cut = 0; cut < n; cut += 1 + n / 20) {
        xp_scratch_write(path.text, bytes, cut);
        assert_int_equal(use(folder, -1, 2), XP_EFORMAT);
        assert_true(xp_scratch_error_has("not whole"));
        assert_true(xp_scratch_error_has("load_step 1"));
    }
    free(bytes);
    assert_int_equal(unlink(path.text), 0);
    assert_int_equal(use(folder, -1, 2), XP_EFORMAT);
    assert_true(xp_scratch_error_has("rank-00001.safetensors"));
    assert_int_equal(use(folder, 1, 1), XP_OK);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, xp_scratch_setup, xp_scratch_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_tampered_manifest),
        TEST(test_damaged_shard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
