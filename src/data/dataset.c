#include "data/loader.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/rng.h"
#include "data/documents.h"
#include "data/token_cache.h"

/* One epoch's document order: where each document starts in the epoch's token stream. */
typedef struct epoch_order {
    int64_t epoch;  /* -1: unused */
    int64_t *begin; /* [n_documents + 1] in the shuffled stream */
    uint64_t last_use;
} epoch_order;

#define N_ORDERS 3 /* ranks read ahead of one another by less than an epoch */

struct xp_dataset {
    xp_data_files files;
    bool is_text, shuffle, document_attention;
    int64_t seq_len, vocab_size, n_tokens, n_rows, n_documents;
    uint64_t seed;
    int32_t eos_id;
    xp_token_cache cache; /* text */
    xp_file_map *maps;    /* tokens: one a file */
    int64_t *first_token; /* tokens: [files + 1] */
    pthread_mutex_t lock; /* orders */
    epoch_order orders[N_ORDERS];
    uint64_t n_uses;
};

static xp_status open_text(xp_dataset *d, const xp_dataset_args *args) {
    if (args->tokenizer == NULL)
        return xp_error(XP_ECONFIG,
                        "text data needs a tokenizer: set model.hf_assets_path to a folder that "
                        "holds tokenizer.json");
    int64_t vocab = xp_tokenizer_vocab_size(args->tokenizer);
    if (vocab > d->vocab_size)
        return xp_error(XP_ECONFIG,
                        "the tokenizer has %" PRId64 " tokens but the model's vocabulary %" PRId64
                        "; use another model.hf_assets_path or set model.vocab_size",
                        vocab, d->vocab_size);
    if (args->document_attention && xp_tokenizer_eos(args->tokenizer) < 0 &&
        xp_tokenizer_bos(args->tokenizer) < 0)
        xp_log_warn(args->log, "the tokenizer defines neither BOS nor EOS: documents are packed "
                               "without a border token");
    XP_TRY(xp_data_files_find(args->path, xp_data_text_endings(), &d->files));
    XP_TRY(xp_token_cache_open(args->cache_folder, &d->files, args->tokenizer, args->pool,
                               args->log, &d->cache));
    d->n_tokens = d->cache.n_tokens;
    d->n_documents = d->cache.n_documents;
    return XP_OK;
}

static xp_status open_tokens(xp_dataset *d, const xp_dataset_args *args) {
    XP_TRY(xp_data_files_find(args->path, xp_data_token_endings(), &d->files));
    if (args->document_attention && d->eos_id < 0)
        return xp_error(XP_ECONFIG, "training.attention = \"document\" on token files needs a "
                                    "tokenizer with an EOS token (model.hf_assets_path)");
    d->maps = calloc((size_t)d->files.n, sizeof *d->maps);
    d->first_token = calloc((size_t)d->files.n + 1, sizeof *d->first_token);
    if (d->maps == NULL || d->first_token == NULL)
        return xp_error(XP_ENOMEM, "data: out of memory");
    for (int i = 0; i < d->files.n; i++) {
        const char *path = d->files.files[i].path;
        XP_TRY(xp_file_map_open(path, &d->maps[i]));
        if (d->maps[i].n_bytes % 4 != 0)
            return xp_error(XP_EFORMAT,
                            "%s has %zu bytes, no multiple of 4: token files are raw "
                            "little-endian uint32",
                            path, d->maps[i].n_bytes);
        d->first_token[i + 1] = d->first_token[i] + (int64_t)(d->maps[i].n_bytes / 4);
    }
    d->n_tokens = d->first_token[d->files.n];
    return XP_OK;
}

xp_status xp_dataset_open(const xp_dataset_args *args, xp_dataset **dataset) {
    bool is_text = strcmp(args->kind, "text") == 0 || strncmp(args->kind, "c4", 2) == 0;
    if (!is_text && strcmp(args->kind, "tokens") != 0)
        return xp_error(XP_ECONFIG, "no dataset kind \"%s\"; there are text, tokens and c4",
                        args->kind);
    if (args->path == NULL || args->path[0] == '\0')
        return xp_error(XP_ECONFIG, "training.dataset_path is not set: give a file, a folder or a "
                                    "glob");
    xp_dataset *d = calloc(1, sizeof *d);
    if (d == NULL)
        return xp_error(XP_ENOMEM, "data: out of memory");
    pthread_mutex_init(&d->lock, NULL);
    d->is_text = is_text;
    d->shuffle = args->shuffle;
    d->document_attention = args->document_attention;
    d->seq_len = args->seq_len;
    d->vocab_size = args->vocab_size;
    d->seed = args->seed;
    d->eos_id = args->eos_id;
    for (int i = 0; i < N_ORDERS; i++)
        d->orders[i].epoch = -1;
    xp_status status = is_text ? open_text(d, args) : open_tokens(d, args);
    if (status == XP_OK) {
        d->n_rows = d->n_tokens / (d->seq_len + 1);
        if (d->n_rows == 0)
            status =
                xp_error(XP_ECONFIG,
                         "%s has %" PRId64 " tokens, fewer than one row of training.seq_len + 1 "
                         "= %" PRId64,
                         args->path, d->n_tokens, d->seq_len + 1);
    }
    if (status != XP_OK) {
        xp_dataset_close(d);
        return status;
    }
    *dataset = d;
    return XP_OK;
}

void xp_dataset_close(xp_dataset *d) {
    if (d == NULL)
        return;
    xp_token_cache_close(&d->cache);
    for (int i = 0; d->maps != NULL && i < d->files.n; i++)
        xp_file_map_close(&d->maps[i]);
    free(d->maps);
    free(d->first_token);
    for (int i = 0; i < N_ORDERS; i++)
        free(d->orders[i].begin);
    xp_data_files_free(&d->files);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

int64_t xp_dataset_n_tokens(const xp_dataset *d) {
    return d->n_tokens;
}

int64_t xp_dataset_n_rows(const xp_dataset *d) {
    return d->n_rows;
}

int64_t xp_dataset_n_documents(const xp_dataset *d) {
    return d->n_documents;
}

static int64_t document_at(const xp_dataset *d, int64_t epoch, int64_t i) {
    return (int64_t)xp_rng_permute(d->seed, xp_rng_stream("documents") + (uint64_t)epoch,
                                   (uint64_t)d->n_documents, (uint64_t)i);
}

/* The epoch's order, built when it is not among the last few. Under the lock. */
static xp_status get_order(xp_dataset *d, int64_t epoch, const epoch_order **order) {
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
static void read_stream(const xp_dataset *d, int64_t epoch, const int64_t *begin, int64_t at,
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

static xp_status read_text_row(xp_dataset *d, int64_t epoch, int64_t at, int64_t n, int32_t *row,
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

static xp_status read_token_row(const xp_dataset *d, int64_t at, int64_t n, int32_t *row,
                                char *new_document) {
    int64_t file = find_document(d->first_token, d->files.n, at);
    for (int64_t i = 0; i < n; i++) {
        while (at + i >= d->first_token[file + 1])
            file++;
        uint32_t id;
        memcpy(&id, d->maps[file].data + 4 * (at + i - d->first_token[file]), sizeof id);
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

/* Inputs, targets, positions and document starts from a row of seq_len + 1 tokens. */
static void cut_row(const xp_dataset *d, const int32_t *row, const char *new_document,
                    int32_t *tokens, int32_t *targets, int32_t *positions, int32_t *doc_start) {
    int32_t start = 0;
    for (int64_t i = 0; i < d->seq_len; i++) {
        bool crosses = d->document_attention && new_document[i + 1];
        if (d->document_attention && new_document[i])
            start = (int32_t)i;
        tokens[i] = row[i];
        targets[i] = crosses ? -1 : row[i + 1];
        positions[i] = (int32_t)i - start;
        doc_start[i] = start;
    }
}

xp_status xp_dataset_row(const xp_dataset *dataset, int64_t n, int32_t *tokens, int32_t *targets,
                         int32_t *positions, int32_t *doc_start) {
    xp_dataset *d = (xp_dataset *)(uintptr_t)dataset; /* the orders behind the lock are a cache */
    int64_t length = d->seq_len + 1;
    int64_t epoch = n / d->n_rows, at = n % d->n_rows;
    if (d->shuffle)
        at = (int64_t)xp_rng_permute(d->seed, xp_rng_stream("rows") + (uint64_t)epoch,
                                     (uint64_t)d->n_rows, (uint64_t)at);
    int32_t *row = malloc((size_t)length * (sizeof *row + 1));
    if (row == NULL)
        return xp_error(XP_ENOMEM, "data: out of memory");
    char *new_document = (char *)(row + length);
    xp_status status = d->is_text ? read_text_row(d, epoch, at * length, length, row, new_document)
                                  : read_token_row(d, at * length, length, row, new_document);
    if (status == XP_OK)
        cut_row(d, row, new_document, tokens, targets, positions, doc_start);
    free(row);
    return status;
}

int64_t xp_dataset_seq_len(const xp_dataset *d) {
    return d->seq_len;
}
