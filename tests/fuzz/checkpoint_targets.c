/* safetensors, an index of several of them, the manifest of a checkpoint. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "checkpoint/hf.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "core/file.h"
#include "fuzz.h"

#define TAIL_BYTES 30

static const char *const st_words[] = {"\"F32\"",
                                       "\"BF16\"",
                                       "\"F4\"",
                                       "\"shape\"",
                                       "\"dtype\"",
                                       "\"data_offsets\"",
                                       "__metadata__",
                                       "[]",
                                       "{}",
                                       "[0,0]",
                                       "[0,4]",
                                       "-1",
                                       "1e9",
                                       "1.5",
                                       "null",
                                       "\\u0000",
                                       "\\ud800",
                                       "\xc3\xbc",
                                       "\xed\xa0",
                                       "    ",
                                       "\"\"",
                                       "9223372036854775807",
                                       NULL};
static const char *const index_words[] = {"\"weight_map\"",
                                          "\"a.safetensors\"",
                                          "\"b.safetensors\"",
                                          "\"../a\"",
                                          "\"/a\"",
                                          "\"\"",
                                          "null",
                                          "{}",
                                          "\"w\"",
                                          "\\u0000",
                                          "\"x\": ",
                                          NULL};
static const char *const manifest_words[] = {"\"rows_seen\"",
                                             "\"-1\"",
                                             "\"pieces\"",
                                             "\"tensors\"",
                                             "\"files\"",
                                             "\"first\": ",
                                             "\"n\": ",
                                             "\"shape\": [",
                                             "\"F32\"",
                                             "null",
                                             "{}",
                                             "[]",
                                             "9223372036854775807",
                                             "../x",
                                             "\\u0000",
                                             NULL};

/* A length that fits, so that the JSON behind it is reached. */
static size_t fit_header(fuzz_state *s, unsigned char *data, size_t n) {
    const unsigned char *end = n > 8 ? memchr(data + 8, '\0', n - 8) : NULL;
    uint64_t length = end != NULL ? (uint64_t)(end - data) - 8 : n < 8 ? 0 : n - 8;
    if (n >= 8 && fuzz_draw(s, 2) == 0)
        for (int i = 0; i < 8; i++)
            data[i] = (unsigned char)(length >> (8 * i));
    return n;
}

static bool reads_inside(const xp_st_tensor *tensor) {
    unsigned sum = 0;
    float values[64];
    const unsigned char *data = tensor->data;
    for (int64_t b = 0; b < tensor->n_bytes; b++)
        sum += data[b];
    int64_t n = tensor->n_elements < 64 ? tensor->n_elements : 64;
    xp_status status = xp_st_read_f32(tensor, 0, n, values);
    return (status == XP_OK || status == XP_EFORMAT) && sum <= 255U * FUZZ_MAX_BYTES;
}

static fuzz_verdict run_safetensors(fuzz_state *s, const unsigned char *data, size_t n) {
    (void)data;
    (void)n;
    xp_st_file *file;
    xp_status status = xp_st_open(s->path, &file);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    int64_t covered = 0;
    bool good = true;
    for (int64_t i = 0; i < xp_st_n_tensors(file); i++) {
        const xp_st_tensor *tensor = xp_st_tensor_at(file, i);
        good = good && reads_inside(tensor) && xp_st_find(file, tensor->name) == tensor;
        covered += tensor->n_bytes;
    }
    good = good && covered <= xp_st_n_bytes(file) - 8;
    xp_st_close(file);
    return good ? FUZZ_ACCEPTED : fuzz_wrong(s, "a tensor outside the file");
}

static xp_status put_shards(fuzz_state *s) {
    static const char *const names[] = {"a", "b"};
    for (int i = 0; i < 2; i++) {
        char path[256], header[128], data[256] = {0};
        int n = snprintf(header, sizeof header,
                         "{\"%s%s\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}",
                         i == 0 ? "model." : "", i == 0 ? "norm.weight" : "lm_head.weight");
        data[0] = (char)n;
        memcpy(data + 8, header, (size_t)n);
        snprintf(path, sizeof path, "%s/%s.safetensors", s->folder, names[i]);
        XP_TRY(xp_file_write_atomic(path, data, (size_t)n + 24));
    }
    return XP_OK;
}

static fuzz_verdict run_index(fuzz_state *s, const unsigned char *data, size_t n) {
    (void)data;
    (void)n;
    xp_hf_reader *reader = NULL;
    xp_status status = xp_hf_open(s->folder, &reader);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    bool good = true;
    for (int64_t i = 0; i < xp_hf_n_tensors(reader); i++)
        good = good && reads_inside(xp_hf_tensor_at(reader, i));
    xp_hf_close(reader);
    return good ? FUZZ_ACCEPTED : fuzz_wrong(s, "a tensor outside its file");
}

static size_t sign_manifest(fuzz_state *s, unsigned char *data, size_t n) {
    char tail[TAIL_BYTES + 1];
    (void)s;
    if (n <= TAIL_BYTES)
        return n;
    snprintf(tail, sizeof tail, " \"xxh64\": \"%016" PRIx64 "\"}\n",
             (uint64_t)XXH64(data, n - TAIL_BYTES, 0));
    memcpy(data + n - TAIL_BYTES, tail, TAIL_BYTES);
    return n;
}

/* What was read is written and read again: the same text. */
static fuzz_verdict run_manifest(fuzz_state *s, const unsigned char *data, size_t n) {
    xp_manifest *manifest = NULL, *again = NULL;
    xp_status status = xp_manifest_parse(s->path, (const char *)data, n, &manifest);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    xp_text first = {0}, second = {0};
    status = xp_manifest_to_json(manifest, &first);
    if (status == XP_OK)
        status = xp_manifest_parse(s->path, first.data, first.length, &again);
    if (status == XP_OK)
        status = xp_manifest_to_json(again, &second);
    bool same = status == XP_OK && first.length == second.length &&
                memcmp(first.data, second.data, first.length) == 0;
    xp_manifest_destroy(manifest);
    xp_manifest_destroy(again);
    xp_text_free(&first);
    xp_text_free(&second);
    return same ? FUZZ_ACCEPTED
                : fuzz_wrong(s, status == XP_OK ? "changes when written" : xp_last_error());
}

const fuzz_target *fuzz_checkpoint_target(int i) {
    static const fuzz_target targets[] = {
        {.name = "safetensors",
         .file = "input.safetensors",
         .words = st_words,
         .repair = fit_header,
         .run = run_safetensors},
        {.name = "index",
         .file = "model.safetensors.index.json",
         .words = index_words,
         .set_up = put_shards,
         .run = run_index},
        {.name = "manifest",
         .file = "manifest.json",
         .words = manifest_words,
         .repair = sign_manifest,
         .run = run_manifest},
    };
    return i < (int)(sizeof targets / sizeof targets[0]) ? &targets[i] : NULL;
}
