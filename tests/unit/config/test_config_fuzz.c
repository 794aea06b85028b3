/** Seeded mutations of a valid file: whatever comes in, the reader and the loader answer, and
 * nothing leaks or crashes. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "config/config.h"
#include "config/set.h"
#include "core/file.h"

enum { N_TOML = 20000, N_CONFIG = 2000, MAX_BYTES = 8192 };

/* Keys, values and punctuation that change meaning, more often than random bytes would. */
static const char *const pieces[] = {
    "[",    "]",        "[[",        "]]",           "{",          "}",
    "=",    ".",        ",",         "\"",           "'",          "\n",
    "\r\n", "\"\"\"",   "'''",       "\\",           "\\u00",      "#",
    "0x",   "1e9",      "-1",        "inf",          "1979-05-27", "07:32:00",
    "\xff", "\xc3\xa9", "true",      "a.b = 1",      "[a.b.c]",    "{a={}}",
    "_",    "\t",       " ",         "[training]\n", "steps = ",   "99999999999999999999",
    "\"\"", "''",       "[model]\n", "[compile.x]\n"};

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/** One change in place: a byte, a piece put in, a range taken out or doubled. */
static size_t mutate(char *text, size_t n, uint64_t *state) {
    size_t at = n ? (size_t)(next(state) % n) : 0;
    size_t length = (size_t)(next(state) % 24);
    if (length > n - at)
        length = n - at;
    const char *piece = pieces[next(state) % (sizeof pieces / sizeof pieces[0])];
    size_t piece_bytes = strlen(piece);
    switch (next(state) % 4) {
    case 0:
        if (n > 0)
            text[at] = (char)(next(state) & 0xFF);
        return n;
    case 1:
        memmove(text + at, text + at + length, n - at - length);
        return n - length;
    case 2:
        if (n + length > MAX_BYTES)
            return n;
        memmove(text + at + length, text + at, n - at);
        return n + length;
    default:
        if (n + piece_bytes > MAX_BYTES)
            return n;
        memmove(text + at + piece_bytes, text + at, n - at);
        memcpy(text + at, piece, piece_bytes);
        return n + piece_bytes;
    }
}

static size_t make(const char *seed_text, size_t n_seed, char *text, uint64_t *state) {
    memcpy(text, seed_text, n_seed);
    size_t n = n_seed;
    for (uint64_t i = next(state) % 12 + 1; i > 0; i--)
        n = mutate(text, n, state);
    return n;
}

static const char rich[] =
    "title = \"x\\u00e9\" # c\n[training]\nsteps = 1_000\nseq_len = 0x100\nmax_norm = 1.5e-3\n"
    "[a.b]\nc.d = [1, 'two', {e = 1979-05-27T07:32:00Z}, [\n]]\n[[t]]\nx = '''y\n'''\n"
    "[[t]]\n[t.u]\nz = \"\"\"a\\\n b\"\"\"\nd = 07:32:00.5\nf = -inf\n";

static void toml_survives_mutations(void **state) {
    (void)state;
    uint64_t random = 0x9E3779B97F4A7C15ULL;
    int n_valid = 0;
    char *text = malloc(MAX_BYTES);
    assert_non_null(text);
    for (int i = 0; i < N_TOML; i++) {
        size_t n = make(rich, strlen(rich), text, &random);
        char *exact = malloc(n ? n : 1); /* so that ASan sees one byte too many */
        assert_non_null(exact);
        memcpy(exact, text, n);
        xp_toml *toml = NULL;
        xp_status status = xp_toml_parse("fuzz", exact, n, &toml);
        if (status == XP_OK) {
            xp_text json = {0};
            xp_toml_add_json(toml, &json);
            assert_int_equal(xp_utf8_valid_prefix(json.data, json.length), json.length);
            xp_text_free(&json);
            n_valid++;
        } else {
            assert_int_equal(status, XP_ECONFIG);
            assert_int_equal(strncmp(xp_last_error(), "fuzz:", 5), 0);
        }
        xp_toml_destroy(toml);
        free(exact);
    }
    free(text);
    assert_true(n_valid > N_TOML / 100 && n_valid < N_TOML); /* the mutations reach both sides */
}

static void the_loader_survives_mutations(void **state) {
    (void)state;
    uint64_t random = 0xD1B54A32D192ED03ULL;
    char *seed_text = NULL;
    size_t n_seed = 0;
    assert_int_equal(
        xp_file_read(XP_SOURCE_DIR "/configs/debug_moe.toml", MAX_BYTES / 2, &seed_text, &n_seed),
        XP_OK);
    char path[] = XP_BINARY_DIR "/test_config_fuzz.toml", option[] = "--job.config_file";
    char *words[] = {option, path}, *text = malloc(MAX_BYTES);
    assert_non_null(text);
    for (int i = 0; i < N_CONFIG; i++) {
        size_t n = make(seed_text, n_seed, text, &random);
        FILE *file = fopen(path, "wb");
        assert_non_null(file);
        assert_int_equal(fwrite(text, 1, n, file), n);
        assert_int_equal(fclose(file), 0);
        xp_config_set *set = NULL;
        xp_status status = xp_config_load(2, words, false, &set);
        assert_true(status == XP_OK || status == XP_ECONFIG);
        if (status == XP_OK) {
            char *dump = NULL;
            assert_int_equal(xp_config_dump_toml(set, &dump), XP_OK);
            free(dump);
        }
        xp_config_destroy(set);
    }
    remove(path);
    free(seed_text);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(toml_survives_mutations),
        cmocka_unit_test(the_loader_survives_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
