/** Rows of seq_len + 1 tokens from one path: text behind its token cache, or token files. Inside src/data. */
#ifndef XP_DATA_SOURCE_H
#define XP_DATA_SOURCE_H

#include "data/loader.h"

typedef struct xp_source xp_source;

/** @param args kind, and how to read; `path` of it is not looked at
 *  @return as xp_dataset_open() */
XP_NODISCARD xp_status xp_source_open(const xp_dataset_args *args, const char *path,
                                      xp_source **source);
void xp_source_close(xp_source *source);
int64_t xp_source_n_tokens(const xp_source *source); /* of one epoch */
int64_t xp_source_n_rows(const xp_source *source);   /* of one epoch */
int64_t xp_source_n_documents(const xp_source *source);
/**
 * Row n (any n >= 0; epochs follow one another). From many threads at once.
 * @param row          [seq_len + 1]
 * @param new_document [seq_len + 1] 1 where a document starts
 */
XP_NODISCARD xp_status xp_source_row(xp_source *source, int64_t n, int32_t *row,
                                     char *new_document);

#endif
