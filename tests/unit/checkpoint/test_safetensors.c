/** safetensors: what must be read, what must be refused, and that the writer's files are both whole
 * and repeatable. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include "checkpoint/outfile.h"
#include "checkpoint/safetensors.h"
#include "core/file.h"
#include "scratch.h"

/** A file from its parts; `length` is the header length that it claims. */
static void write_raw(const char *path, const char *header, uint64_t length, size_t n_data) {
    size_t n = strlen(header);
    unsigned char *bytes = calloc(1, 8 + n + n_data + 1);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(length >> (8 * i));
    memcpy(bytes + 8, header, n);
    xp_scratch_write(path, bytes, 8 + n + n_data);
    free(bytes);
}

typedef struct bad_file {
    const char *header;
    size_t n_data;
    const char *error; /* part of the message */
} bad_file;

#define T(dtype, shape, offsets)                                                                   \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static const bad_file bad_files[] = {
    {"", 0, "no JSON object"},
    {"{", 0, "no JSON object"},
    {"[]", 0, "no JSON object"},
    {" {}", 0, "no JSON object"},
    {"{}\n", 0, "no JSON object"},
    {"\xef\xbb\xbf{}", 0, "no JSON object"},
    {"{}}", 0, "header"},
    {"{\"a\":}", 0, "header"},
    {"{} {}", 0, "header"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",}", 4, "header"},
    {"{'a':" T("F32", "[1]", "[0,4]") "}", 4, "header"},
    {"{\"\xff\":" T("F32", "[1]", "[0,4]") "}", 4, "header"},
    {"{\"\xed\xa0\x80\":" T("F32", "[1]", "[0,4]") "}", 4, "header"},
    {"{\"\xc0\xaf\":" T("F32", "[1]", "[0,4]") "}", 4, "header"},
    {"{\"a\\u0000b\":" T("F32", "[1]", "[0,4]") "}", 4, "header"},
    {"{\"a\\u0007b\":" T("F32", "[1]", "[0,4]") "}", 4, "control character"},
    {"{\"a\\u007fb\":" T("F32", "[1]", "[0,4]") "}", 4, "control character"},
    {"{\"a\\u0085b\":" T("F32", "[1]", "[0,4]") "}", 4, "control character"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"a\":" T("F32", "[1]", "[4,8]") "}", 8, "duplicate"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     "duplicate"},
    {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "duplicate"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate"},
    {"{\"__metadata__\":{\"k\":1}}", 0, "no string"},
    {"{\"__metadata__\":{\"k\":{}}}", 0, "no string"},
    {"{\"__metadata__\":[]}", 0, "no object"},
    {"{\"__metadata__\":null}", 0, "no object"},
    {"{\"a\":1}", 0, "must be an object"},
    {"{\"a\":{}}", 0, "must be an object"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "must be an object"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"offsets\":[0,4]}}", 4, "data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "must be"},
    {"{\"a\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "must be an object"},
    {"{\"a\":" T("F31", "[1]", "[0,4]") "}", 4, "unknown type"},
    {"{\"a\":" T("f32", "[1]", "[0,4]") "}", 4, "unknown type"},
    {"{\"a\":" T("", "[1]", "[0,4]") "}", 4, "unknown type"},
    {"{\"a\":" T("F32", "{}", "[0,4]") "}", 4, "shape is no list"},
    {"{\"a\":" T("F32", "[-1]", "[0,4]") "}", 4, "non-negative integer"},
    {"{\"a\":" T("F32", "[1.0]", "[0,4]") "}", 4, "non-negative integer"},
    {"{\"a\":" T("F32", "[\"1\"]", "[0,4]") "}", 4, "non-negative integer"},
    {"{\"a\":" T("F32", "[true]", "[0,4]") "}", 4, "non-negative integer"},
    {"{\"a\":" T("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "dimensions"},
    {"{\"a\":" T("F32", "[4294967296,4294967296]", "[0,4]") "}", 4, "too large"},
    {"{\"a\":" T("F32", "[4611686018427387905]", "[0,4]") "}", 4, "too large"},
    {"{\"a\":" T("F32", "[18446744073709551617]", "[0,4]") "}", 4, "header"},
    {"{\"a\":" T("F4", "[3]", "[0,2]") "}", 2, "too large"},
    {"{\"a\":" T("F32", "[1]", "[0]") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "[0,4,8]") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "[0,4.0]") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "{\"0\":0,\"1\":4}") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "[-4,0]") "}", 4, "claims bytes"},
    {"{\"a\":" T("F32", "[1]", "[4,0]") "}", 4, "claims bytes"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") "}", 3, "claims bytes"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") "}", 5, "after the last tensor"},
    {"{\"a\":" T("F32", "[2]", "[0,4]") "}", 4, "type and shape make 8"},
    {"{\"a\":" T("F32", "[1]", "[4,8]") "}", 8, "unused bytes"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[8,12]") "}", 12, "unused"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[0,4]") "}", 4, "overlap"},
    {"{\"a\":" T("F32", "[2]", "[0,8]") ",\"b\":" T("F32", "[2]", "[4,12]") "}", 12, "overlap"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[0]", "[2,2]") "}", 4, "overlap"},
    {"{}", 1, "after the last tensor"},
};

static void test_malformed(void **state) {
    xp_scratch_path path = xp_scratch_join(*state, "bad.safetensors");
    for (size_t i = 0; i < sizeof bad_files / sizeof bad_files[0]; i++) {
        const bad_file *bad = &bad_files[i];
        write_raw(path.text, bad->header, strlen(bad->header), bad->n_data);
        xp_st_file *file = NULL;
        if (xp_st_open(path.text, &file) != XP_EFORMAT || !xp_scratch_error_has(bad->error))
            fail_msg("case %zu: %s", i, bad->header);
        assert_null(file);
        assert_true(xp_scratch_error_has(path.text));
    }
}

static void test_malformed_lengths(void **state) {
    xp_scratch_path path = xp_scratch_join(*state, "bad.safetensors");
    static const struct {
        uint64_t length;
        const char *error;
    } cases[] = {{0, "no JSON object"},     {1, "no JSON object"},   {3, "truncated"},
                 {100000001, "limit"},      {UINT64_MAX, "limit"},   {(uint64_t)1 << 63, "limit"},
                 {UINT64_MAX - 7, "limit"}, {100000000, "truncated"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        xp_st_file *file = NULL;
        write_raw(path.text, "{}", cases[i].length, 0);
        assert_int_equal(xp_st_open(path.text, &file), XP_EFORMAT);
        assert_true(xp_scratch_error_has(cases[i].error));
    }
    for (size_t n = 0; n < 8; n++) {
        xp_st_file *file = NULL;
        xp_scratch_write(path.text, "\2\0\0\0\0\0\0", n);
        assert_int_equal(xp_st_open(path.text, &file), XP_EFORMAT);
        assert_true(xp_scratch_error_has("too few"));
    }
    xp_st_file *file = NULL;
    assert_int_equal(xp_st_open(xp_scratch_join(*state, "absent").text, &file), XP_ENOENT);
}

/** Legal though unusual: no tensors, padding, zero-size and scalar tensors, any order, foreign
 * types, odd names. */
static void test_unusual_but_legal(void **state) {
    xp_scratch_path path = xp_scratch_join(*state, "ok.safetensors");
    xp_st_file *file;
    write_raw(path.text, "{}", 2, 0);
    assert_int_equal(xp_st_open(path.text, &file), XP_OK);
    assert_int_equal(xp_st_n_tensors(file), 0);
    assert_null(xp_st_find(file, "a"));
    assert_null(xp_st_metadata(file, "k"));
    xp_st_close(file);

    const char *header = "{\"z\":" T(
        "F8_E5M2", "[3]",
        "[13,16]") ",\"__metadata__\":{\"k\":\"v\"},"
                   "\"e\":" T("F32", "[0,7]", "[4,4]") ",\"../etc/x\":" T(
                       "I32", "[]",
                       "[0,4]") ",\"\\u00fc\":" T("U64", "[1,1]",
                                                  "[4,12]") ",\"\":" T("F4", "[2]",
                                                                       "[12,13]") ",\"f\""
                                                                                  ":" T("BOO"
                                                                                        "L",
                                                                                        "[0"
                                                                                        "]",
                                                                                        "[16"
                                                                                        ",16"
                                                                                        "]") "}    "
                                                                                             "  ";
    write_raw(path.text, header, strlen(header), 16);
    assert_int_equal(xp_st_open(path.text, &file), XP_OK);
    assert_int_equal(xp_st_n_tensors(file), 6);
    assert_string_equal(xp_st_metadata(file, "k"), "v");
    assert_null(xp_st_find(file, "__metadata__"));
    const xp_st_tensor *scalar = xp_st_find(file, "../etc/x");
    assert_non_null(scalar);
    assert_int_equal(scalar->n_dims, 0);
    assert_int_equal(scalar->n_elements, 1);
    assert_int_equal(scalar->dtype, XP_I32);
    assert_ptr_equal(xp_st_tensor_at(file, 0), scalar);
    assert_int_equal(xp_st_find(file, "e")->n_elements, 0);
    assert_int_equal(xp_st_find(file, "z")->dtype, XP_N_DTYPES);
    assert_string_equal(xp_st_find(file, "z")->dtype_name, "F8_E5M2");
    assert_int_equal(xp_st_find(file, "\xc3\xbc")->n_bytes, 8);
    float value;
    assert_int_equal(xp_st_read_f32(xp_st_find(file, "z"), 0, 1, &value), XP_EFORMAT);
    assert_true(xp_scratch_error_has("F8_E5M2"));
    xp_st_close(file);
}

static void test_conversions(void **state) {
    xp_scratch_path path = xp_scratch_join(*state, "types.safetensors");
    static const uint16_t halves[] = {0x0000, 0x8000, 0x3c00, 0xc000, 0x7bff, 0x0001,
                                      0x8001, 0x03ff, 0x0400, 0x7c00, 0xfc00, 0x7e00};
    static const float half_values[] = {0,        -0.0f,    1,         -2,
                                        65504,    0x1p-24f, -0x1p-24f, 0x3ffp-24f,
                                        0x1p-14f, INFINITY, -INFINITY, NAN};
    static const uint16_t brains[] = {0x3f80, 0xc040};
    static const double doubles[] = {1.5, -1e300};
    static const float floats[] = {3.25f, -7};
    const int64_t twelve = 12, two = 2, one = 1;
    xp_st_writer *writer;
    assert_int_equal(xp_st_writer_create(path.text, &writer), XP_OK);
    /* An odd byte in front: nothing behind it is aligned. */
    assert_int_equal(xp_st_writer_declare(writer, "u", XP_U8, 1, &one), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, "h", XP_F16, 1, &twelve), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, "b", XP_BF16, 1, &two), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, "d", XP_F64, 1, &two), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, "f", XP_F32, 1, &two), XP_OK);
    assert_int_equal(xp_st_writer_data(writer, "x", 1), XP_OK);
    assert_int_equal(xp_st_writer_data(writer, halves, sizeof halves), XP_OK);
    assert_int_equal(xp_st_writer_data(writer, brains, sizeof brains), XP_OK);
    assert_int_equal(xp_st_writer_data(writer, doubles, sizeof doubles), XP_OK);
    assert_int_equal(xp_st_writer_data(writer, floats, sizeof floats), XP_OK);
    assert_int_equal(xp_st_writer_finish(writer), XP_OK);
    xp_st_writer_destroy(writer);

    xp_st_file *file;
    float out[12];
    assert_int_equal(xp_st_open(path.text, &file), XP_OK);
    assert_int_equal(xp_st_read_f32(xp_st_find(file, "h"), 0, 12, out), XP_OK);
    assert_true(isnan(out[11]));
    assert_memory_equal(out, half_values, 11 * sizeof(float));
    assert_int_equal(xp_st_read_f32(xp_st_find(file, "h"), 3, 2, out), XP_OK);
    assert_memory_equal(out, half_values + 3, 2 * sizeof(float));
    assert_int_equal(xp_st_read_f32(xp_st_find(file, "b"), 0, 2, out), XP_OK);
    assert_true(out[0] == 1 && out[1] == -3);
    assert_int_equal(xp_st_read_f32(xp_st_find(file, "d"), 0, 2, out), XP_OK);
    assert_true(out[0] == 1.5f && out[1] == -INFINITY);
    assert_int_equal(xp_st_read_f32(xp_st_find(file, "f"), 1, 1, out), XP_OK);
    assert_true(out[0] == -7);
    assert_int_equal(xp_st_read_f32(xp_st_find(file, "f"), 2, 0, out), XP_OK);
    assert_int_equal(xp_st_read_f32(xp_st_find(file, "f"), 1, 2, out), XP_EINVAL);
    assert_int_equal(xp_st_read_f32(xp_st_find(file, "f"), -1, 1, out), XP_EINVAL);
    xp_st_close(file);
}

static void write_sample(const char *path, size_t piece) {
    const int64_t shape[] = {3, 100};
    float values[300];
    for (int i = 0; i < 300; i++)
        values[i] = (float)i;
    xp_st_writer *writer;
    assert_int_equal(xp_st_writer_create(path, &writer), XP_OK);
    assert_int_equal(xp_st_writer_add_metadata(writer, "format", "pt"), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, "w\"\\/\xc3\xbc", XP_F32, 2, shape), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, "s", XP_I64, 0, NULL), XP_OK);
    for (size_t at = 0; at < sizeof values; at += piece) {
        size_t n = sizeof values - at < piece ? sizeof values - at : piece;
        assert_int_equal(xp_st_writer_data(writer, (char *)values + at, n), XP_OK);
    }
    assert_int_equal(xp_st_writer_data(writer, &(int64_t){7}, 8), XP_OK);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_equal(xp_st_writer_finish(writer), XP_OK);
    int64_t n_bytes;
    uint64_t hash;
    xp_st_writer_result(writer, &n_bytes, &hash);
    xp_st_writer_destroy(writer);
    size_t n_read;
    char *bytes = xp_scratch_read(path, &n_read);
    assert_int_equal(n_read, n_bytes);
    assert_int_equal(XXH64(bytes, n_read, 0), hash);
    assert_int_equal(*(unsigned char *)bytes % 8, 0);
    free(bytes);
}

static void test_writer_is_deterministic(void **state) {
    xp_scratch_path a = xp_scratch_join(*state, "a"), b = xp_scratch_join(*state, "b");
    write_sample(a.text, 1200);
    write_sample(b.text, 7);
    size_t n_a, n_b;
    char *bytes_a = xp_scratch_read(a.text, &n_a), *bytes_b = xp_scratch_read(b.text, &n_b);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(bytes_a, bytes_b, n_a);
    free(bytes_a);
    free(bytes_b);
    xp_st_file *file;
    assert_int_equal(xp_st_open(a.text, &file), XP_OK);
    const xp_st_tensor *w = xp_st_find(file, "w\"\\/\xc3\xbc");
    assert_non_null(w);
    assert_int_equal(w->shape[1], 100);
    assert_true(((const float *)w->data)[299] == 299);
    assert_string_equal(xp_st_metadata(file, "format"), "pt");
    xp_st_close(file);
    assert_int_equal(xp_scratch_count(*state), 2);
}

static void test_writer_refuses(void **state) {
    xp_scratch_path path = xp_scratch_join(*state, "w");
    const int64_t shape[] = {2}, huge[] = {INT64_MAX, 2}, negative[] = {-1};
    xp_st_writer *writer;
    assert_int_equal(xp_st_writer_create(path.text, &writer), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, "a\n", XP_F32, 1, shape), XP_EINVAL);
    assert_int_equal(xp_st_writer_declare(writer, "\xff", XP_F32, 1, shape), XP_EINVAL);
    assert_int_equal(xp_st_writer_declare(writer, "__metadata__", XP_F32, 1, shape), XP_EINVAL);
    assert_int_equal(xp_st_writer_declare(writer, "a", XP_F32, 2, huge), XP_EINVAL);
    assert_int_equal(xp_st_writer_declare(writer, "a", XP_F32, 1, negative), XP_EINVAL);
    assert_int_equal(xp_st_writer_declare(writer, "a", XP_N_DTYPES, 1, shape), XP_EINVAL);
    assert_int_equal(xp_st_writer_declare(writer, "a", XP_F32, 1, shape), XP_OK);
    assert_int_equal(xp_st_writer_data(writer, huge, 4), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, "b", XP_F32, 1, shape), XP_EINVAL);
    assert_int_equal(xp_st_writer_finish(writer), XP_EINVAL);
    assert_int_equal(xp_st_writer_data(writer, huge, 8), XP_EINVAL);
    xp_st_writer_destroy(writer);
    assert_int_equal(xp_scratch_count(*state), 0);

    assert_int_equal(xp_st_writer_create(path.text, &writer), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, "a", XP_F32, 1, shape), XP_OK);
    assert_int_equal(xp_st_writer_declare(writer, "a", XP_F32, 1, shape), XP_OK);
    assert_int_equal(xp_st_writer_data(writer, huge, 8), XP_EINVAL);
    assert_true(xp_scratch_error_has("declared twice"));
    assert_int_equal(xp_st_writer_data(writer, huge, 8), XP_EINVAL);
    assert_int_equal(xp_st_writer_finish(writer), XP_EINVAL);
    xp_st_writer_destroy(writer);
    assert_int_equal(xp_scratch_count(*state), 0);
    assert_int_equal(xp_st_writer_create(xp_scratch_join(*state, "no/w").text, &writer), XP_EIO);
}

/** A header of 200,000 tensors opens and answers quickly: nothing in it may be quadratic. */
static void test_many_tensors(void **state) {
    xp_scratch_path path = xp_scratch_join(*state, "many");
    enum { N = 200000 };
    xp_st_writer *writer;
    const int64_t shape[] = {1};
    char name[64];
    double start = xp_time_s();
    assert_int_equal(xp_st_writer_create(path.text, &writer), XP_OK);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "model.layers.%d.weight", i);
        assert_int_equal(xp_st_writer_declare(writer, name, XP_F32, 1, shape), XP_OK);
    }
    for (int i = 0; i < N; i++)
        assert_int_equal(xp_st_writer_data(writer, &(float){(float)i}, 4), XP_OK);
    assert_int_equal(xp_st_writer_finish(writer), XP_OK);
    xp_st_writer_destroy(writer);
    xp_st_file *file;
    assert_int_equal(xp_st_open(path.text, &file), XP_OK);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "model.layers.%d.weight", i);
        const xp_st_tensor *tensor = xp_st_find(file, name);
        float value;
        assert_non_null(tensor);
        assert_int_equal(xp_st_read_f32(tensor, 0, 1, &value), XP_OK);
        assert_true(value == (float)i);
    }
    xp_st_close(file);
    double seconds = xp_time_s() - start;
    print_message("200000 tensors written, opened and found in %.2f s\n", seconds);
    assert_true(seconds < 30); /* a quadratic case takes many minutes */
}

/* Checksums of files stay what they are: XXH64 with seed 0, whatever pieces they are written in. */
static void test_file_checksums(void **state) {
    static unsigned char bytes[100000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 37 + (i >> 8));
    static const struct {
        const char *text; /* NULL: the first n_bytes of `bytes` */
        size_t n_bytes;
        uint64_t hash;
    } cases[] = {
        {"", 0, 0xEF46DB3751D8E999ULL},
        {"a", 1, 0xD24EC4F1A98C6E5BULL},
        {"abc", 3, 0x44BC2CF5AD770999ULL},
        {NULL, 31, 0x4513EC5EBC46D0D3ULL},
        {NULL, sizeof bytes, 0x5D217D021A3B413AULL},
    };
    const xp_scratch_path path = xp_scratch_join(*state, "file");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        xp_outfile *out = NULL;
        assert_int_equal(xp_outfile_open(path.text, &out), XP_OK);
        const unsigned char *data =
            cases[i].text != NULL ? (const unsigned char *)cases[i].text : bytes;
        for (size_t at = 0, n; at < cases[i].n_bytes; at += n) {
            n = 1 + at * 3 < cases[i].n_bytes - at ? 1 + at * 3 : cases[i].n_bytes - at;
            assert_int_equal(xp_outfile_write(out, data + at, n), XP_OK);
        }
        assert_true(xp_outfile_xxh64(out) == cases[i].hash);
        xp_outfile_close(out);
    }
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, xp_scratch_setup, xp_scratch_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_file_checksums),    TEST(test_malformed),    TEST(test_malformed_lengths),
        TEST(test_unusual_but_legal), TEST(test_conversions),  TEST(test_writer_is_deterministic),
        TEST(test_writer_refuses),    TEST(test_many_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
