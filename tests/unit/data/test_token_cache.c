/* The token cache believes nothing: every flipped bit is found, and the text is tokenised again. */
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
#include "core/rng.h"
#include "core/text.h"
#include "data/chunk_hash.h"
#include "data/token_cache.h"
#include "data/token_cache_file.h"
#include "fixture.h"

#define N_FLIPS 1000

static void write_docs(const fixture *f) {
    xp_text lines = {0};
    for (int i = 0; i < 120; i++)
        xp_text_printf(&lines, "{\"text\": \"document %d, %0*d\"}\n", i, i % 40 + 1, i);
    write_file(f, "t.jsonl", lines.data, lines.length);
    xp_text_free(&lines);
}

/* Without the sync of xp_file_write_atomic(): it is done a thousand times. */
static void overwrite(const char *path, const char *data, size_t n) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

/* The name of the only cache in the folder. */
static char *cache_path(const fixture *f) {
    char command[256], name[256] = "";
    snprintf(command, sizeof command, "echo %s/cache/*.tokens", f->folder);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    assert_non_null(fgets(name, sizeof name, pipe));
    pclose(pipe);
    name[strcspn(name, "\n")] = '\0';
    return in_folder(f, name);
}

static uint64_t rows_hash(const xp_dataset *d) {
    uint64_t hash = 0;
    for (int64_t n = 0; n < xp_dataset_n_rows(d); n++) {
        int32_t row[4][S];
        assert_int_equal(xp_dataset_row(d, n, row[0], row[1], row[2], row[3]), XP_OK);
        for (int i = 0; i < S; i++)
            hash = (hash ^ (uint32_t)row[1][i]) * 0x9e3779b97f4a7c15U;
    }
    return hash;
}

static uint64_t open_and_hash(const fixture *f) {
    xp_dataset *d;
    if (open_data(f, "text", "t.jsonl", true, true, &d) != XP_OK)
        fail_msg("%s", xp_last_error());
    uint64_t hash = rows_hash(d);
    xp_dataset_close(d);
    return hash;
}

static void test_every_flipped_bit_is_found(void **state) {
    fixture *f = *state;
    write_docs(f);
    uint64_t wanted = open_and_hash(f);
    char *path = cache_path(f), *data;
    size_t n;
    assert_int_equal(xp_file_read(path, 1 << 24, &data, &n), XP_OK);
    uint64_t key = strtoull(strrchr(path, '/') + 1, NULL, 16);
    xp_token_cache cache;
    assert_int_equal(xp_token_cache_map(path, key, 257, NULL, &cache), XP_OK);
    xp_token_cache_close(&cache);
    for (uint64_t i = 0; i < N_FLIPS; i++) {
        /* the first 512 are all bits of the header; then anywhere */
        size_t bit = i < 512 ? i : (size_t)xp_rng_below(3, 1, i, 8 * n);
        data[bit / 8] ^= (char)(1 << bit % 8);
        overwrite(path, data, n);
        xp_status status = xp_token_cache_map(path, key, 257, NULL, &cache);
        if (status != XP_EFORMAT)
            fail_msg("bit %zu of %zu: %s", bit, 8 * n, xp_status_name(status));
        data[bit / 8] ^= (char)(1 << bit % 8);
    }
    for (size_t cut = 0; cut < n; cut += cut < 80 ? 1 : 97) {
        overwrite(path, data, cut);
        assert_int_equal(xp_token_cache_map(path, key, 257, NULL, &cache), XP_EFORMAT);
    }
    logged(f);
    assert_int_equal(open_and_hash(f), wanted); /* built again */
    const char *lines = logged(f), *first = strstr(lines, "is damaged");
    assert_non_null(first);
    assert_null(strstr(first + 1, "is damaged")); /* one line */
    char *again;
    size_t n_again;
    assert_int_equal(xp_file_read(path, 1 << 24, &again, &n_again), XP_OK);
    assert_int_equal(n, n_again);
    assert_memory_equal(data, again, n);
    assert_int_equal(open_and_hash(f), wanted);
    assert_null(strstr(logged(f), "damaged"));
    free(again);
    free(data);
    free(path);
}

static void sign(char *data, size_t n) {
    xp_token_cache_header head;
    memcpy(&head, data, sizeof head);
    assert_int_equal(xp_chunk_hash_of(data + sizeof head, n - sizeof head, NULL, &head.body_hash),
                     XP_OK);
    assert_int_equal(xp_chunk_hash_of(&head, offsetof(xp_token_cache_header, header_hash), NULL,
                                      &head.header_hash),
                     XP_OK);
    memcpy(data, &head, sizeof head);
}

/* A checksum that fits is no proof: what indexes memory is checked all the same. */
static void test_values_are_checked_behind_the_checksum(void **state) {
    const fixture *f = *state;
    write_docs(f);
    open_and_hash(f);
    char *path = cache_path(f), *data;
    size_t n;
    assert_int_equal(xp_file_read(path, 1 << 24, &data, &n), XP_OK);
    uint64_t key = strtoull(strrchr(path, '/') + 1, NULL, 16);
    xp_token_cache cache;
    static const int64_t values[] = {-1, INT64_MAX, INT64_MIN, 1 << 30, 0};
    char *copy = malloc(n);
    for (int i = 0; i < 5; i++) {
        memcpy(copy, data, n);
        memcpy(copy + n - 8 * 20, &values[i], 8); /* a document's start */
        sign(copy, n);
        overwrite(path, copy, n);
        assert_int_equal(xp_token_cache_map(path, key, 257, NULL, &cache), XP_EFORMAT);
    }
    memcpy(copy, data, n);
    memcpy(copy + sizeof(xp_token_cache_header) + 40, (uint32_t[]){257}, 4);
    sign(copy, n);
    overwrite(path, copy, n);
    assert_int_equal(xp_token_cache_map(path, key, 257, NULL, &cache), XP_EFORMAT);
    assert_int_equal(xp_token_cache_map(path, key, 258, NULL, &cache), XP_OK);
    xp_token_cache_close(&cache);
    free(copy);
    free(data);
    free(path);
}

static void test_an_unreadable_cache_is_not_a_missing_one(void **state) {
    const fixture *f = *state;
    write_docs(f);
    open_and_hash(f);
    char *path = cache_path(f);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink(path, path), 0); /* ELOOP, for root too */
    xp_dataset *d = NULL;
    assert_int_equal(open_data(f, "text", "t.jsonl", true, true, &d), XP_EIO);
    assert_non_null(strstr(xp_last_error(), path));
    free(path);
}

static void test_chunks_hash_as_they_were_written(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 1000, 16 << 20, (16 << 20) + 1, (40 << 20) + 12345};
    unsigned char *data = malloc(sizes[5]);
    assert_non_null(data);
    for (size_t i = 0; i < sizes[5]; i++)
        data[i] = (unsigned char)(i * 2654435761U >> 13);
    xp_pool *pool;
    assert_int_equal(xp_pool_create(2, &pool), XP_OK);
    for (int k = 0; k < 6; k++) {
        xp_chunk_hash *hash;
        uint64_t written, alone, pooled;
        assert_int_equal(xp_chunk_hash_create(&hash), XP_OK);
        for (size_t at = 0, step = 1; at < sizes[k]; at += step, step = step * 3 + 1) {
            step = step < sizes[k] - at ? step : sizes[k] - at;
            assert_int_equal(xp_chunk_hash_add(hash, data + at, step), XP_OK);
        }
        assert_int_equal(xp_chunk_hash_finish(hash, &written), XP_OK);
        xp_chunk_hash_destroy(hash);
        assert_int_equal(xp_chunk_hash_of(data, sizes[k], NULL, &alone), XP_OK);
        assert_int_equal(xp_chunk_hash_of(data, sizes[k], pool, &pooled), XP_OK);
        assert_true(written == alone && alone == pooled);
    }
    xp_pool_destroy(pool);
    free(data);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_set_up, fixture_tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_every_flipped_bit_is_found),
        TEST(test_values_are_checked_behind_the_checksum),
        TEST(test_an_unreadable_cache_is_not_a_missing_one),
        TEST(test_chunks_hash_as_they_were_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
