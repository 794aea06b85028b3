/**
 * Batches of packed token rows. One source of rows for every dataset kind: row n of the (seeded)
 * sequence is a pure function of the data, the seed and n, so resuming is setting n, and the same
 * global batch falls out at any number of ranks: row ((step * A + m) * W + r) * B + j is sample j
 * of microbatch m of data rank r (A microbatches, W ranks, B local batch).
 *
 * Text is tokenised once into a cache file (tokens and document borders) in parallel, and read from
 * there by memory map.
 */
#ifndef XP_DATA_LOADER_H
#define XP_DATA_LOADER_H

#include "core/log.h"
#include "core/pool.h"
#include "data/tokenizer.h"

typedef struct xp_dataset xp_dataset;
typedef struct xp_loader xp_loader;

/** One of several sources of rows. */
typedef struct xp_dataset_source {
    const char *path; /* a file, folder or glob */
    double weight;    /* of its rows; only the ratios count */
} xp_dataset_source;

typedef struct xp_dataset_args {
    const char *kind; /* "text" (by extension: .jsonl, .json.gz, .jsonl.zst, .txt) or "tokens"
                         (.bin); "c4*" = text */
    const char *path; /* a file, folder or glob */
    const xp_dataset_source *sources; /* [n_sources] instead of `path`; borrowed */
    int n_sources;
    const char *text_field;        /* text: the field of a JSON line; NULL = "text" */
    bool skip_bad_lines;           /* text: count lines that cannot be read instead of failing */
    const char *token_type;        /* tokens: "uint16", "uint32", NULL or "auto": recognised */
    const xp_tokenizer *tokenizer; /* text only; borrowed */
    const char *cache_folder;      /* where the token cache goes; made when missing */
    int64_t vocab_size;            /* every id must be below it */
    int64_t seq_len;               /* rows are seq_len + 1 tokens */
    bool shuffle;                  /* text: documents, tokens: rows; a new order each epoch */
    uint64_t seed;
    int32_t eos_id;          /* tokens only: ends a document; -1 = unknown */
    bool note_borders;       /* log what xp_tokenizer_border_note() says */
    bool document_attention; /* positions restart, doc_start set, no target crosses a document */
    xp_log *log;
    xp_pool *pool; /* for tokenising; NULL = inline */
} xp_dataset_args;

/** Opens the data, builds or reuses the cache. Errors name file and line. One process-wide dataset
 * may be shared by rank threads. */
XP_NODISCARD xp_status xp_dataset_open(const xp_dataset_args *args, xp_dataset **dataset);
void xp_dataset_close(xp_dataset *dataset);
int64_t xp_dataset_n_tokens(const xp_dataset *dataset);    /* of one epoch */
int64_t xp_dataset_n_rows(const xp_dataset *dataset);      /* of one epoch */
int64_t xp_dataset_n_documents(const xp_dataset *dataset); /* 0 for token files */
int64_t xp_dataset_seq_len(const xp_dataset *dataset);
/**
 * Row n (any n >= 0; epochs follow one another).
 * @param tokens, targets, positions, doc_start  [seq_len] each; targets -1 = not counted
 */
XP_NODISCARD xp_status xp_dataset_row(const xp_dataset *dataset, int64_t n, int32_t *tokens,
                                      int32_t *targets, int32_t *positions, int32_t *doc_start);

/** A line for every source that begins anew with one of the rows [first, first + n). */
void xp_dataset_log_restarts(const xp_dataset *dataset, int64_t first, int64_t n, xp_log *log);

typedef struct xp_batch {
    int64_t n_rows, seq_len;
    const int32_t *tokens, *targets, *positions,
        *doc_start;  /* [n_rows * seq_len] host memory, until the next call */
    int64_t n_valid; /* targets >= 0 */
} xp_batch;

typedef struct xp_loader_args {
    int64_t local_batch_size, n_microbatches; /* B, A */
    int data_rank, n_data_ranks;              /* r, W */
    int n_prefetch;                           /* batches read ahead by a thread; 0 = none */
    xp_log *
        log; /* says when data starts over, as its rows are handed out; NULL on all ranks but one */
} xp_loader_args;
XP_NODISCARD xp_status xp_loader_create(const xp_dataset *dataset, const xp_loader_args *args,
                                        xp_loader **loader);
void xp_loader_destroy(xp_loader *loader);
/** The position is the step: microbatch 0 of `step` comes next. */
XP_NODISCARD xp_status xp_loader_seek(xp_loader *loader, int64_t step);
/** The next microbatch. Borrowed until the next call. */
XP_NODISCARD xp_status xp_loader_next(xp_loader *loader, xp_batch *batch);

#endif
