#include "data/token_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "data/chunk_hash.h"
#include "data/token_cache_file.h"

#define BATCH       256 /* documents tokenised side by side */
#define BATCH_BYTES ((size_t)16 << 20)
#define PROGRESS_S  5.0

typedef struct builder {
    const xp_tokenizer *tokenizer;
    FILE *file;
    const char *path;
    xp_chunk_hash *hash; /* of what was put */
    int64_t *starts;
    int64_t n_documents, capacity, n_tokens, n_bad_lines;
    /* the batch */
    char *texts[BATCH];
    size_t n_bytes[BATCH];
    xp_token_list lists[BATCH];
    xp_status statuses[BATCH];
    char errors[BATCH][256];
    int n;
} builder;

static void encode_document(void *context, int64_t tile, int worker) {
    (void)worker;
    builder *b = context;
    xp_token_list *list = &b->lists[tile];
    list->n = 0;
    b->statuses[tile] = xp_tokenizer_encode(b->tokenizer, b->texts[tile], b->n_bytes[tile], list);
    if (b->statuses[tile] != XP_OK)
        snprintf(b->errors[tile], sizeof b->errors[tile], "%s", xp_last_error());
}

static xp_status cannot_write(const builder *b) {
    return xp_error(XP_EIO, "cannot write the token cache %s: %s", b->path, strerror(errno));
}

static xp_status put(builder *b, const void *data, size_t n_bytes) {
    if (n_bytes > 0 && fwrite(data, 1, n_bytes, b->file) != n_bytes)
        return cannot_write(b);
    return xp_chunk_hash_add(b->hash, data, n_bytes);
}

static xp_status put_document(builder *b, const xp_token_list *list) {
    if (b->n_documents + 1 >= b->capacity) {
        int64_t capacity = b->capacity == 0 ? 1024 : 2 * b->capacity;
        int64_t *grown = realloc(b->starts, (size_t)capacity * sizeof *grown);
        if (grown == NULL)
            return xp_error(XP_ENOMEM, "token cache: out of memory");
        b->starts = grown;
        b->capacity = capacity;
    }
    int32_t bos = xp_tokenizer_bos(b->tokenizer), eos = xp_tokenizer_eos(b->tokenizer);
    b->starts[b->n_documents++] = b->n_tokens;
    if (bos >= 0)
        XP_TRY(put(b, &bos, sizeof bos));
    XP_TRY(put(b, list->ids, (size_t)list->n * sizeof *list->ids));
    if (eos >= 0)
        XP_TRY(put(b, &eos, sizeof eos));
    b->n_tokens += list->n + (bos >= 0) + (eos >= 0);
    return XP_OK;
}

/* Tokenise the batch side by side, write it in order. */
static xp_status flush_batch(builder *b, xp_pool *pool) {
    if (pool != NULL)
        xp_pool_run(pool, encode_document, b, b->n);
    else
        for (int i = 0; i < b->n; i++)
            encode_document(b, i, 0);
    xp_status status = XP_OK;
    for (int i = 0; i < b->n; i++) {
        if (status == XP_OK && b->statuses[i] != XP_OK)
            status = xp_error(b->statuses[i], "%s", b->errors[i]);
        if (status == XP_OK)
            status = put_document(b, &b->lists[i]);
        free(b->texts[i]);
    }
    b->n = 0;
    return status;
}

static void report(xp_log *log, const xp_documents *documents, const xp_data_files *files,
                   double start, double *next) {
    double now = xp_time_s();
    if (now < *next)
        return;
    *next = now + PROGRESS_S;
    double part = files->n_bytes == 0
                      ? 1.0
                      : (double)xp_documents_position(documents) / (double)files->n_bytes;
    xp_log_info(log, "tokenizing: %3.0f%%, %.0f s left", 100.0 * part,
                part > 0 ? (now - start) * (1.0 - part) / part : 0.0);
}

static void report_bad(xp_log *log, const xp_documents *documents, const builder *b) {
    if (b->n_bad_lines > 0)
        xp_log_warn(log, "skipped %" PRId64 " bad lines, kept %" PRId64 " documents; the first: %s",
                    b->n_bad_lines, b->n_documents, xp_documents_first_bad(documents));
}

static xp_status encode_all(builder *b, const xp_token_cache_args *args) {
    const xp_data_files *files = args->documents.files;
    xp_documents *documents;
    XP_TRY(xp_documents_open(&args->documents, &documents));
    double start = xp_time_s(), next = start + PROGRESS_S;
    size_t batch_bytes = 0;
    xp_status status = XP_OK;
    for (;;) {
        char *text;
        size_t n_bytes;
        status = xp_documents_next(documents, &text, &n_bytes);
        if (status != XP_OK || text == NULL)
            break;
        b->texts[b->n] = text;
        b->n_bytes[b->n++] = n_bytes;
        batch_bytes += n_bytes;
        if (b->n == BATCH || batch_bytes >= BATCH_BYTES) {
            status = flush_batch(b, args->pool);
            batch_bytes = 0;
            if (status != XP_OK)
                break;
            report(args->log, documents, files, start, &next);
        }
    }
    if (status == XP_OK)
        status = flush_batch(b, args->pool);
    for (int i = 0; i < b->n; i++)
        free(b->texts[i]);
    b->n_bad_lines = xp_documents_n_bad(documents);
    if (status == XP_OK)
        report_bad(args->log, documents, b);
    xp_documents_close(documents);
    return status;
}

static xp_status finish_file(builder *b, uint64_t key) {
    uint32_t padding = 0;
    if (b->n_tokens % 2 != 0)
        XP_TRY(put(b, &padding, sizeof padding));
    b->starts[b->n_documents] = b->n_tokens;
    XP_TRY(put(b, b->starts, (size_t)(b->n_documents + 1) * sizeof *b->starts));
    xp_token_cache_header head = {.magic = XP_TOKEN_CACHE_MAGIC,
                                  .key = key,
                                  .n_tokens = b->n_tokens,
                                  .n_documents = b->n_documents,
                                  .n_bad_lines = b->n_bad_lines};
    XP_TRY(xp_chunk_hash_finish(b->hash, &head.body_hash));
    XP_TRY(xp_chunk_hash_of(&head, offsetof(xp_token_cache_header, header_hash), NULL,
                            &head.header_hash));
    if (fseek(b->file, 0, SEEK_SET) != 0 || fwrite(&head, sizeof head, 1, b->file) != 1 ||
        fflush(b->file) != 0 || fsync(fileno(b->file)) != 0)
        return cannot_write(b);
    return XP_OK;
}

static xp_status no_documents(const xp_data_files *files, const builder *b) {
    char bad[64] = "";
    if (b->n_bad_lines > 0)
        snprintf(bad, sizeof bad, ", only %" PRId64 " bad lines", b->n_bad_lines);
    return xp_error(XP_EFORMAT, "%s%s: the data holds no documents%s", files->files[0].path,
                    files->n > 1 ? " and the files after it" : "", bad);
}

static xp_status write_body(builder *b, uint64_t key, const xp_token_cache_args *args) {
    const xp_token_cache_header empty = {0};
    b->file = fopen(b->path, "wbe");
    if (b->file == NULL)
        return xp_error(XP_EIO, "cannot create the token cache %s: %s", b->path, strerror(errno));
    XP_TRY(xp_chunk_hash_create(&b->hash));
    if (fwrite(&empty, sizeof empty, 1, b->file) != 1)
        return cannot_write(b);
    XP_TRY(encode_all(b, args));
    if (b->n_documents == 0)
        return no_documents(args->documents.files, b);
    return finish_file(b, key);
}

static xp_status build(const char *path, uint64_t key, const xp_token_cache_args *args) {
    char tmp[PATH_MAX];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    builder *b = calloc(1, sizeof *b);
    if (b == NULL)
        return xp_error(XP_ENOMEM, "token cache: out of memory");
    b->tokenizer = args->tokenizer;
    b->path = tmp;
    double start = xp_time_s();
    xp_status status = write_body(b, key, args);
    if (b->file != NULL && fclose(b->file) != 0 && status == XP_OK)
        status = cannot_write(b);
    if (status == XP_OK && rename(tmp, path) != 0)
        status = xp_error(XP_EIO, "cannot rename %s: %s", tmp, strerror(errno));
    if (status == XP_OK)
        xp_log_info(args->log, "tokenized %" PRId64 " documents into %" PRId64 " tokens in %.1f s",
                    b->n_documents, b->n_tokens, xp_time_s() - start);
    else
        unlink(tmp);
    for (int i = 0; i < BATCH; i++)
        xp_token_list_free(&b->lists[i]);
    xp_chunk_hash_destroy(b->hash);
    free(b->starts);
    free(b);
    return status;
}

/* *found = false: missing or damaged. */
static xp_status look(const char *path, uint64_t key, const xp_token_cache_args *args,
                      xp_token_cache *cache, bool *found) {
    int64_t vocab = xp_tokenizer_vocab_size(args->tokenizer);
    xp_status status = xp_token_cache_map(path, key, vocab, args->pool, cache);
    *found = status == XP_OK;
    if (status == XP_ENOENT || status == XP_EFORMAT) {
        if (status == XP_EFORMAT)
            xp_log_warn(args->log, "%s: the text is tokenized again", xp_last_error());
        xp_error_clear();
        return XP_OK;
    }
    return status;
}

/* Under the lock, another process may have built it meanwhile. */
static xp_status find_or_build(const char *path, uint64_t key, const xp_token_cache_args *args,
                               xp_token_cache *cache) {
    bool found = false;
    xp_token_cache_args quiet = *args;
    quiet.log = NULL;
    XP_TRY(look(path, key, &quiet, cache, &found));
    if (found)
        return XP_OK;
    XP_TRY(build(path, key, args));
    XP_TRY(look(path, key, args, cache, &found));
    return found ? XP_OK : xp_error(XP_EIO, "the token cache %s cannot be read back", path);
}

xp_status xp_token_cache_open(const xp_token_cache_args *args, xp_token_cache *cache) {
    XP_TRY(xp_folder_create(args->folder));
    uint64_t key = xp_token_cache_key(args);
    char path[PATH_MAX], lock_path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/%016" PRIx64 ".tokens", args->folder, key) >=
        sizeof path - 8)
        return xp_error(XP_EINVAL, "path too long: %s", args->folder);
    snprintf(lock_path, sizeof lock_path, "%s/lock", args->folder);
    bool found = false;
    XP_TRY(look(path, key, args, cache, &found));
    if (found && cache->n_bad_lines > 0)
        xp_log_warn(args->log, "%" PRId64 " bad lines were skipped when the text was tokenized",
                    cache->n_bad_lines);
    if (found)
        return XP_OK;
    int lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock < 0)
        return xp_error(XP_EIO, "cannot create %s: %s", lock_path, strerror(errno));
    while (flock(lock, LOCK_EX) != 0 && errno == EINTR) {
    }
    xp_status status = find_or_build(path, key, args, cache);
    close(lock);
    return status;
}
