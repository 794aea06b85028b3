/* Tokenizers, text files in every packing, token files, the token cache. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "data/chunk_hash.h"
#include "data/documents.h"
#include "data/token_cache.h"
#include "data/token_cache_file.h"
#include "data/token_file.h"
#include "fuzz.h"

#define VOCAB     300
#define CACHE_KEY 0x0123456789abcdefU

static const char *const json_words[] = {"\"text\"",
                                         "\\ud83d",
                                         "\\u0000",
                                         "\n",
                                         "{",
                                         "}",
                                         "[",
                                         "]",
                                         "\"",
                                         ",",
                                         ":",
                                         "null",
                                         "1e400",
                                         "NaN",
                                         "\xef\xbb\xbf",
                                         "\xed\xa0\x80",
                                         "\xff",
                                         "\r\n",
                                         "{\"text\": \"a\"}\n",
                                         NULL};
static const char *const tokenizer_words[] = {"\"BPE\"",
                                              "\"merges\"",
                                              "\"added_tokens\"",
                                              "\"id\": ",
                                              "\"content\"",
                                              "\"Split\"",
                                              "\"Regex\"",
                                              "\"ByteLevel\"",
                                              "\\\\p{L}",
                                              "(?i:",
                                              "[^\\\\s]",
                                              "+",
                                              "*",
                                              "{1,3}",
                                              "|",
                                              ")",
                                              "(?!",
                                              "\"NFC\"",
                                              "\"special\": true",
                                              "\"a b\"",
                                              "[\"a\", \"b\"]",
                                              "null",
                                              "true",
                                              "\"lstrip\": true",
                                              "\"Sequence\"",
                                              "16777215",
                                              NULL};
static const char *const text_words[] = {"<|endoftext|>",
                                         "\xf0\x9f\x98\x80",
                                         "\xcc\x81",
                                         "\xe4\xb8\xad",
                                         " ",
                                         "\n\n",
                                         "'ll",
                                         "123456",
                                         "\xff",
                                         "\xed\xa0\x80",
                                         "\xef\xbf\xbd",
                                         "\t",
                                         NULL};

static xp_status load_tokenizer(fuzz_state *s) {
    return xp_tokenizer_load(XP_SOURCE_DIR "/tests/fuzz/corpus/tokenizer/small.json",
                             &s->tokenizer);
}

/* Ids are tokens, and what they decode to is the text as it was repaired. */
static fuzz_verdict check_encoding(fuzz_state *s, const xp_tokenizer *t, const char *text,
                                   size_t n) {
    xp_token_list list = {0};
    char *decoded = NULL;
    size_t n_decoded = 0;
    xp_status status = xp_tokenizer_encode_special(t, text, n, &list);
    bool good = true;
    for (int64_t i = 0; status == XP_OK && i < list.n; i++)
        good = good && xp_tokenizer_has(t, list.ids[i]);
    if (status == XP_OK && good)
        status = xp_tokenizer_decode(t, list.ids, list.n, false, &decoded, &n_decoded);
    free(decoded);
    xp_token_list_free(&list);
    return !good ? fuzz_wrong(s, "an id without a token") : fuzz_judge(s, status);
}

static fuzz_verdict run_tokenizer(fuzz_state *s, const unsigned char *data, size_t n) {
    static const char text[] =
        "The cat's 12 hats<|endoftext|>\n\n \xc3\xa9 e\xcc\x81 \xf0\x9f\x98\x80\xff x";
    (void)data;
    (void)n;
    xp_tokenizer *t = NULL;
    xp_status status = xp_tokenizer_load(s->path, &t);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    /* A pattern may be too much for its limit: refused, with a message. */
    fuzz_verdict verdict = check_encoding(s, t, text, sizeof text - 1);
    xp_tokenizer_destroy(t);
    return verdict == FUZZ_WRONG ? verdict : FUZZ_ACCEPTED;
}

/* The files beside tokenizer.json: the input is each of them in turn. */
static xp_status put_tokenizer(fuzz_state *s) {
    char command[512];
    snprintf(command, sizeof command, "cp %s %s/tokenizer.json",
             XP_SOURCE_DIR "/tests/fuzz/corpus/tokenizer/plain.json", s->folder);
    return system(command) == 0 ? XP_OK : xp_error(XP_EIO, "%s failed", command);
}

static fuzz_verdict run_names(fuzz_state *s, const unsigned char *data, size_t n) {
    (void)data;
    (void)n;
    xp_tokenizer *t = NULL;
    xp_status status = xp_tokenizer_load(s->folder, &t);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    bool good = (xp_tokenizer_eos(t) < 0 || xp_tokenizer_has(t, xp_tokenizer_eos(t))) &&
                (xp_tokenizer_bos(t) < 0 || xp_tokenizer_has(t, xp_tokenizer_bos(t)));
    xp_tokenizer_destroy(t);
    return good ? FUZZ_ACCEPTED : fuzz_wrong(s, "EOS or BOS is no token");
}

static fuzz_verdict run_encode(fuzz_state *s, const unsigned char *data, size_t n) {
    fuzz_verdict verdict = check_encoding(s, s->tokenizer, (const char *)data, n);
    if (verdict != FUZZ_ACCEPTED)
        return fuzz_wrong(s, xp_last_error());
    /* ids as the bytes say: most are none */
    int32_t ids[16];
    int64_t n_ids = n / 2 < 16 ? (int64_t)(n / 2) : 16;
    for (int64_t i = 0; i < n_ids; i++)
        ids[i] = (int32_t)(data[2 * i] | data[2 * i + 1] << 8) - 100;
    char *text = NULL;
    size_t n_text;
    xp_status status = xp_tokenizer_decode(s->tokenizer, ids, n_ids, true, &text, &n_text);
    free(text);
    bool split =
        n > 0 && data[0] == '<'; /* both ways must be seen: text is never refused, ids are */
    return split ? FUZZ_ACCEPTED : fuzz_judge(s, status);
}

static fuzz_verdict run_documents(fuzz_state *s, const unsigned char *data, size_t n) {
    (void)data;
    (void)n;
    xp_data_files files;
    xp_documents *documents = NULL;
    if (xp_data_files_find(s->path, xp_data_text_endings(), &files) != XP_OK)
        return fuzz_wrong(s, xp_last_error());
    xp_documents_args args = {.files = &files, .skip_bad_lines = fuzz_draw(s, 2) == 0};
    xp_status status = xp_documents_open(&args, &documents);
    uint64_t sum = 0;
    while (status == XP_OK) {
        char *text = NULL;
        size_t n_text = 0;
        status = xp_documents_next(documents, &text, &n_text);
        if (text == NULL)
            break;
        for (size_t i = 0; i < n_text; i++)
            sum += (unsigned char)text[i];
        bool valid = xp_utf8_valid_prefix(text, n_text) == n_text;
        free(text);
        if (!valid && strstr(s->path, ".jsonl") != NULL) {
            status = XP_EINTERNAL;
            snprintf(s->why, sizeof s->why, "a JSON string that is not UTF-8");
        }
    }
    xp_documents_close(documents);
    xp_data_files_free(&files);
    return status == XP_EINTERNAL || sum == UINT64_MAX ? FUZZ_WRONG : fuzz_judge(s, status);
}

static fuzz_verdict run_token_file(fuzz_state *s, const unsigned char *data, size_t n) {
    static const char *const types[] = {"auto", "auto", "auto", "uint16", "uint32"};
    static const int64_t vocabularies[] = {257, 2048, 50257, 151936};
    (void)data;
    (void)n;
    xp_token_file file;
    int64_t vocab = vocabularies[fuzz_draw(s, 4)];
    xp_status status = xp_token_file_open(s->path, types[fuzz_draw(s, 5)], vocab, &file);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    uint64_t sum = 0;
    for (int64_t i = 0; i < file.n; i++)
        sum += xp_token_file_id(&file, i);
    bool inside = (size_t)file.n * (size_t)file.id_bytes <= file.map.n_bytes && sum < UINT64_MAX;
    xp_token_file_close(&file);
    return inside ? FUZZ_ACCEPTED : fuzz_wrong(s, "more ids than bytes");
}

/* Checksums and key that fit. */
static size_t sign_cache(fuzz_state *s, unsigned char *data, size_t n) {
    xp_token_cache_header head;
    (void)s;
    if (n < sizeof head)
        return n;
    memcpy(&head, data, sizeof head);
    head.magic = XP_TOKEN_CACHE_MAGIC;
    head.key = CACHE_KEY;
    if (xp_chunk_hash_of(data + sizeof head, n - sizeof head, NULL, &head.body_hash) == XP_OK &&
        xp_chunk_hash_of(&head, offsetof(xp_token_cache_header, header_hash), NULL,
                         &head.header_hash) == XP_OK)
        memcpy(data, &head, sizeof head);
    return n;
}

static fuzz_verdict run_token_cache(fuzz_state *s, const unsigned char *data, size_t n) {
    (void)data;
    (void)n;
    xp_token_cache cache;
    xp_status status = xp_token_cache_map(s->path, CACHE_KEY, VOCAB, NULL, &cache);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    uint64_t sum = 0;
    bool good = true;
    for (int64_t d = 0; d < cache.n_documents; d++)
        for (int64_t i = cache.starts[d]; i < cache.starts[d + 1]; i++) {
            sum += cache.tokens[i];
            good = good && cache.tokens[i] < VOCAB;
        }
    xp_token_cache_close(&cache);
    return good && sum < UINT64_MAX ? FUZZ_ACCEPTED : fuzz_wrong(s, "ids outside the vocabulary");
}

const fuzz_target *fuzz_data_target(int i) {
    static const fuzz_target targets[] = {
        {.name = "tokenizer",
         .file = "tokenizer.json",
         .words = tokenizer_words,
         .run = run_tokenizer},
        {.name = "tokenizer_config",
         .file = "tokenizer_config.json",
         .words = json_words,
         .set_up = put_tokenizer,
         .run = run_names},
        {.name = "model_eos",
         .file = "config.json",
         .words = json_words,
         .set_up = put_tokenizer,
         .run = run_names},
        {.name = "encode",
         .file = "text",
         .words = text_words,
         .set_up = load_tokenizer,
         .run = run_encode},
        {.name = "jsonl", .file = "input.jsonl", .words = json_words, .run = run_documents},
        {.name = "gz", .file = "input.jsonl.gz", .run = run_documents},
        {.name = "zst", .file = "input.txt.zst", .run = run_documents},
        {.name = "token_file", .file = "input.bin", .run = run_token_file},
        {.name = "token_cache",
         .file = "input.tokens",
         .repair = sign_cache,
         .run = run_token_cache},
    };
    return i < (int)(sizeof targets / sizeof targets[0]) ? &targets[i] : NULL;
}
