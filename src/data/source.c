#include "data/source.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "data/documents.h"
#include "data/token_cache.h"
#include "data/token_file.h"

/* One epoch's document order: where each document starts in the epoch's token stream. */
typedef struct epoch_order {
    int64_t epoch;  /* -1: unused */
    int64_t *begin; /* [n_documents + 1] in the shuffled stream */
    uint64_t last_use;
} epoch_order;

#define N_ORDERS 3 /* ranks read ahead of one another by less than an epoch */

struct xp_source {
    xp_data_files files;
    bool is_text, shuffle;
    int64_t row_length, vocab_size, n_tokens, n_rows, n_documents;
    uint64_t seed;
    int32_t eos_id;
    xp_token_cache cache; /* text */
    xp_token_file *maps;  /* tokens: one a file */
    int64_t *first_token; /* tokens: [files + 1] */
    pthread_mutex_t lock; /* orders */
    epoch_order orders[N_ORDERS];
    uint64_t n_uses;
};

static void say_skipped(const xp_source *d, const xp_dataset_args *args, const char *path) {
    char skipped[256];
    xp_data_files_describe_skipped(&d->files, skipped, sizeof skipped);
    if (skipped[0] != '\0')
        xp_log_warn(args->log, "%s: %s", path, skipped);
}

static xp_status open_text(xp_source *d, const xp_dataset_args *args, const char *path) {
    XP_TRY(xp_data_files_find(path, xp_data_text_endings(), &d->files));
    say_skipped(d, args, path);
    xp_token_cache_args cache = {.folder = args->cache_folder,
                                 .documents = {.files = &d->files,
                                               .text_field = args->text_field,
                                               .skip_bad_lines = args->skip_bad_lines},
                                 .tokenizer = args->tokenizer,
                                 .pool = args->pool,
                                 .log = args->log};
    XP_TRY(xp_token_cache_open(&cache, &d->cache));
    d->n_tokens = d->cache.n_tokens;
    d->n_documents = d->cache.n_documents;
    return XP_OK;
}

static xp_status open_tokens(xp_source *d, const xp_dataset_args *args, const char *path) {
    XP_TRY(xp_data_files_find(path, xp_data_token_endings(), &d->files));
    say_skipped(d, args, path);
    d->maps = calloc((size_t)d->files.n, sizeof *d->maps);
    d->first_token = calloc((size_t)d->files.n + 1, sizeof *d->first_token);
    if (d->maps == NULL || d->first_token == NULL)
        return xp_error(XP_ENOMEM, "data: out of memory");
    const char *type = args->token_type != NULL ? args->token_type : "auto";
    int64_t n_other = 0;
    for (int i = 0; i < d->files.n; i++) {
        XP_TRY(xp_token_file_open(d->files.files[i].path, type, d->vocab_size, &d->maps[i]));
        d->first_token[i + 1] = d->first_token[i] + d->maps[i].n;
        if (strcmp(d->maps[i].kind, "32-bit ids") != 0 && n_other++ == 0)
            xp_log_info(args->log, "data: %s: %s", d->files.files[i].path, d->maps[i].kind);
    }
    if (n_other > 1)
        xp_log_info(args->log, "data: %" PRId64 " more files of ids that are not raw uint32",
                    n_other - 1);
    d->n_tokens = d->first_token[d->files.n];
    return XP_OK;
}

xp_status xp_source_open(const xp_dataset_args *args, const char *path, xp_source **source) {
    xp_source *d = calloc(1, sizeof *d);
    if (d == NULL)
        return xp_error(XP_ENOMEM, "data: out of memory");
    pthread_mutex_init(&d->lock, NULL);
    d->is_text = strcmp(args->kind, "tokens") != 0;
    d->shuffle = args->shuffle;
    d->row_length = args->seq_len + 1;
    d->vocab_size = args->vocab_size;
    d->seed = args->seed;
    d->eos_id = args->eos_id;
    for (int i = 0; i < N_ORDERS; i++)
        d->orders[i].epoch = -1;
    xp_status status = d->is_text ? open_text(d, args, path) : open_tokens(d, args, path);
    if (status == XP_OK) {
        d->n_rows = d->n_tokens / d->row_length;
        if (d->n_rows == 0)
            status =
                xp_error(XP_ECONFIG,
                         "%s has %" PRId64 " tokens, fewer than one row of training.seq_len + 1 "
                         "= %" PRId64,
                         path, d->n_tokens, d->row_length);
    }
    if (status != XP_OK) {
        xp_source_close(d);
        return status;
    }
    *source = d;
    return XP_OK;
}

void xp_source_close(xp_source *d) {
    if (d == NULL)
        return;
    xp_token_cache_close(&d->cache);
    for (int i = 0; d->maps != NULL && i < d->files.n; i++)
        xp_token_file_close(&d->maps[i]);
    free(d->maps);
    free(d->first_token);
    for (int i = 0; i < N_ORDERS; i++)
        free(d->orders[i].begin);
    xp_data_files_free(&d->files);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

int64_t xp_source_n_tokens(const xp_source *d) {
    return d->n_tokens;
}

int64_t xp_source_n_rows(const xp_source *d) {
    return d->n_rows;
}

int64_t xp_source_n_documents(const xp_source *d) {
    return d->n_documents;
}

static int64_t document_at(const xp_source *d, int64_t epoch, int64_t i) {
    return (int64_t)xp_rng_permute(d->seed, xp_rng_stream("documents") + (uint64_t)epoch,
                                   (uint64_t)d->n_documents, (uint64_t)i);
}

/* The epoch's order, built when it is not among the last few. Under the lock. */
static xp_status get_order(xp_source *d, int64_t epoch, const epoch_order **order) {
    epoch_order *slot = &d->orders[0];
    for (int i = 0; i < N_ORDERS; i++) {
        if (d->orders[i].epoch == epoch) {
            slot = &d->orders[i];
            break;
        }
        if (d->orders[i].last_use < slot->last_use)
            slot = &d->orders[i];
    }
    slot->last_use = ++d->n_uses;
    *order = slot;
    if (slot->epoch == epoch)
        return XP_OK;
    if (slot->begin == NULL) {
        slot->begin = malloc((size_t)(d->n_documents + 1) * sizeof *slot->begin);
        if (slot->begin == NULL)
            return xp_error(XP_ENOMEM, "data: out of memory");
    }
    slot->begin[0] = 0;
    for (int64_t i = 0; i < d->n_documents; i++) {
        int64_t doc = document_at(d, epoch, i);
        slot->begin[i + 1] = slot->begin[i] + d->cache.starts[doc + 1] - d->cache.starts[doc];
    }
    slot->epoch = epoch;
    return XP_OK;
}

/* Largest i with begin[i] <= at. */
static int64_t find_document(const int64_t *begin, int64_t n, int64_t at) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (begin[middle] <= at)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Tokens [at, at + n) of the epoch's stream into `row`, and 1 in new_document[i] where a document
 * starts. */
static void read_stream(const xp_source *d, int64_t epoch, const int64_t *begin, int64_t at,
                        int64_t n, int32_t *row, char *new_document) {
    int64_t i = find_document(begin, d->n_documents, at);
    for (int64_t done = 0; done < n; i++) {
        int64_t skip = at + done - begin[i];
        int64_t left = begin[i + 1] - begin[i] - skip;
        if (left <= 0)
            continue;
        int64_t take = left < n - done ? left : n - done;
        int64_t doc = d->shuffle ? document_at(d, epoch, i) : i;
        memcpy(row + done, d->cache.tokens + d->cache.starts[doc] + skip,
               (size_t)take * sizeof *row);
        memset(new_document + done, 0, (size_t)take);
        new_document[done] = skip == 0;
        done += take;
    }
}

static xp_status read_text_row(xp_source *d, int64_t epoch, int64_t at, int64_t n, int32_t *row,
                               char *new_document) {
    if (!d->shuffle) {
        read_stream(d, epoch, d->cache.starts, at, n, row, new_document);
        return XP_OK;
    }
    /* Held while reading: another rank may replace the oldest order. */
    pthread_mutex_lock(&d->lock);
    const epoch_order *order;
    xp_status status = get_order(d, epoch, &order);
    if (status == XP_OK)
        read_stream(d, epoch, order->begin, at, n, row, new_document);
    pthread_mutex_unlock(&d->lock);
    return status;
}

static xp_status read_token_row(const xp_source *d, int64_t at, int64_t n, int32_t *row,
                                char *new_document) {
    int64_t file = find_document(d->first_token, d->files.n, at);
    for (int64_t i = 0; i < n; i++) {
        while (at + i >= d->first_token[file + 1])
            file++;
        uint32_t id = xp_token_file_id(&d->maps[file], at + i - d->first_token[file]);
        if ((int64_t)id >= d->vocab_size)
            return xp_error(XP_EFORMAT,
                            "%s: token %" PRIu32 " at index %" PRId64
                            " is not below the model's vocabulary of %" PRId64,
                            d->files.files[file].path, id, at + i - d->first_token[file],
                            d->vocab_size);
        row[i] = (int32_t)id;
        new_document[i] = i > 0 && row[i - 1] == d->eos_id;
    }
    return XP_OK;
}

xp_status xp_source_row(xp_source *d, int64_t n, int32_t *row, char *new_document) {
    int64_t epoch = n / d->n_rows, at = n % d->n_rows;
    if (d->shuffle)
        at = (int64_t)xp_rng_permute(d->seed, xp_rng_stream("rows") + (uint64_t)epoch,
                                     (uint64_t)d->n_rows, (uint64_t)at);
    at *= d->row_length;
    return d->is_text ? read_text_row(d, epoch, at, d->row_length, row, new_document)
                      : read_token_row(d, at, d->row_length, row, new_document);
}
