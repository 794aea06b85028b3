#include "data/token_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define MAGIC       0x31434b5450585045U /* "EPXPTKC1" */
#define BATCH       256                 /* documents tokenised side by side */
#define BATCH_BYTES ((size_t)16 << 20)
#define PROGRESS_S  5.0

typedef struct header {
    uint64_t magic, key;
    int64_t n_tokens, n_documents;
    uint64_t reserved[4];
} header;

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash ^= value + 0x9e3779b97f4a7c15U + (hash << 6) + (hash >> 2);
    hash *= 0xff51afd7ed558ccdU;
    return hash ^ (hash >> 33);
}

static uint64_t cache_key(const xp_data_files *files, const xp_tokenizer *tokenizer) {
    uint64_t key = mix(MAGIC, xp_tokenizer_hash(tokenizer));
    for (int i = 0; i < files->n; i++) {
        for (const char *c = files->files[i].path; *c != '\0'; c++)
            key = mix(key, (unsigned char)*c);
        key = mix(mix(key, (uint64_t)files->files[i].n_bytes), (uint64_t)files->files[i].mtime_ns);
    }
    return key;
}

/* Check and map a finished cache; *found = false when there is none or it is not what it should be.
 */
static void map_existing(const char *path, uint64_t key, xp_token_cache *cache, bool *found) {
    *found = false;
    xp_file_map map;
    if (xp_file_map_open(path, &map) != XP_OK) /* what cannot be read is built anew */
        return;
    header head;
    if (map.n_bytes >= sizeof head) {
        memcpy(&head, map.data, sizeof head);
        uint64_t room = map.n_bytes - sizeof head;
        bool fits = head.magic == MAGIC && head.key == key && head.n_tokens >= 0 &&
                    head.n_documents >= 0 && (uint64_t)head.n_tokens <= room / 4 &&
                    (uint64_t)head.n_documents < room / 8;
        uint64_t token_bytes = fits ? ((uint64_t)head.n_tokens * 4 + 7) / 8 * 8 : 0;
        if (fits && token_bytes + ((uint64_t)head.n_documents + 1) * 8 == room) {
            *cache = (xp_token_cache){
                .map = map,
                .tokens = (const uint32_t *)(const void *)(map.data + sizeof head),
                .starts = (const int64_t *)(const void *)(map.data + sizeof head + token_bytes),
                .n_tokens = head.n_tokens,
                .n_documents = head.n_documents};
            *found = true;
            return;
        }
    }
    xp_file_map_close(&map);
}

typedef struct builder {
    const xp_tokenizer *tokenizer;
    FILE *file;
    const char *path;
    int64_t *starts;
    int64_t n_documents, capacity, n_tokens;
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

static xp_status put(builder *b, const void *data, size_t n_bytes) {
    if (n_bytes > 0 && fwrite(data, 1, n_bytes, b->file) != n_bytes)
        return xp_error(XP_EIO, "cannot write the token cache %s: %s", b->path, strerror(errno));
    return XP_OK;
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

static xp_status encode_all(builder *b, const xp_data_files *files, xp_pool *pool, xp_log *log) {
    xp_documents *documents;
    XP_TRY(xp_documents_open(files, &documents));
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
            status = flush_batch(b, pool);
            batch_bytes = 0;
            if (status != XP_OK)
                break;
            report(log, documents, files, start, &next);
        }
    }
    if (status == XP_OK)
        status = flush_batch(b, pool);
    for (int i = 0; i < b->n; i++)
        free(b->texts[i]);
    xp_documents_close(documents);
    return status;
}

static xp_status finish_file(builder *b, uint64_t key) {
    uint32_t padding = 0;
    if (b->n_tokens % 2 != 0)
        XP_TRY(put(b, &padding, sizeof padding));
    b->starts[b->n_documents] = b->n_tokens;
    XP_TRY(put(b, b->starts, (size_t)(b->n_documents + 1) * sizeof *b->starts));
    header head = {
        .magic = MAGIC, .key = key, .n_tokens = b->n_tokens, .n_documents = b->n_documents};
    if (fseek(b->file, 0, SEEK_SET) != 0)
        return xp_error(XP_EIO, "cannot write the token cache %s: %s", b->path, strerror(errno));
    XP_TRY(put(b, &head, sizeof head));
    if (fflush(b->file) != 0 || fsync(fileno(b->file)) != 0)
        return xp_error(XP_EIO, "cannot write the token cache %s: %s", b->path, strerror(errno));
    return XP_OK;
}

static xp_status build(const char *path, uint64_t key, const xp_data_files *files,
                       const xp_tokenizer *tokenizer, xp_pool *pool, xp_log *log) {
    char tmp[PATH_MAX];
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    builder *b = calloc(1, sizeof *b);
    if (b == NULL)
        return xp_error(XP_ENOMEM, "token cache: out of memory");
    b->tokenizer = tokenizer;
    b->path = tmp;
    b->file = fopen(tmp, "wbe");
    xp_status status = XP_OK;
    if (b->file == NULL)
        status = xp_error(XP_EIO, "cannot create the token cache %s: %s", tmp, strerror(errno));
    double start = xp_time_s();
    if (status == XP_OK) {
        header empty = {0};
        status = put(b, &empty, sizeof empty);
    }
    if (status == XP_OK)
        status = encode_all(b, files, pool, log);
    if (status == XP_OK && b->n_documents == 0)
        status = xp_error(XP_EFORMAT, "%s%s: the data holds no documents", files->files[0].path,
                          files->n > 1 ? " and the files after it" : "");
    if (status == XP_OK)
        status = finish_file(b, key);
    if (b->file != NULL && fclose(b->file) != 0 && status == XP_OK)
        status = xp_error(XP_EIO, "cannot write the token cache %s: %s", tmp, strerror(errno));
    if (status == XP_OK && rename(tmp, path) != 0)
        status = xp_error(XP_EIO, "cannot rename %s: %s", tmp, strerror(errno));
    if (status == XP_OK)
        xp_log_info(log, "tokenized %" PRId64 " documents into %" PRId64 " tokens in %.1f s",
                    b->n_documents, b->n_tokens, xp_time_s() - start);
    else
        unlink(tmp);
    for (int i = 0; i < BATCH; i++)
        xp_token_list_free(&b->lists[i]);
    free(b->starts);
    free(b);
    return status;
}

xp_status xp_token_cache_open(const char *folder, const xp_data_files *files,
                              const xp_tokenizer *tokenizer, xp_pool *pool, xp_log *log,
                              xp_token_cache *cache) {
    XP_TRY(xp_folder_create(folder));
    uint64_t key = cache_key(files, tokenizer);
    char path[PATH_MAX], lock_path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/%016" PRIx64 ".tokens", folder, key) >=
        sizeof path - 8)
        return xp_error(XP_EINVAL, "path too long: %s", folder);
    snprintf(lock_path, sizeof lock_path, "%s/lock", folder);
    bool found;
    map_existing(path, key, cache, &found);
    if (found)
        return XP_OK;
    int lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock < 0)
        return xp_error(XP_EIO, "cannot create %s: %s", lock_path, strerror(errno));
    while (flock(lock, LOCK_EX) != 0 && errno == EINTR) {
    }
    xp_status status = XP_OK;
    map_existing(path, key, cache, &found);
    if (!found) {
        status = build(path, key, files, tokenizer, pool, log);
        if (status == XP_OK) {
            map_existing(path, key, cache, &found);
            if (!found)
                status = xp_error(XP_EIO, "the token cache %s cannot be read back", path);
        }
    }
    close(lock);
    return status;
}

void xp_token_cache_close(xp_token_cache *cache) {
    xp_file_map_close(&cache->map);
    *cache = (xp_token_cache){0};
}
