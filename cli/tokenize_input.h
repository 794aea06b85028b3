/** The documents that `expar tokenize` is given: read as training reads them. */
#ifndef XP_CLI_TOKENIZE_INPUT_H
#define XP_CLI_TOKENIZE_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

typedef struct tokenize_input {
    const char *text_field; /* NULL: "text" */
    bool skip_bad_lines;
    bool stdin_is_lines; /* JSON lines; false: one document */
    int64_t n_bad_lines; /* so far */
} tokenize_input;

typedef xp_status (*tokenize_document_fn)(void *context, const char *text, size_t n);

/** All documents of a file, folder, glob, or of standard input ("-"). Says on standard error what was skipped. */
XP_NODISCARD xp_status tokenize_each_document(tokenize_input *input, const char *path,
                                              tokenize_document_fn fn, void *context);
/** A whole file, or standard input ("-"). Caller frees *data. */
XP_NODISCARD xp_status tokenize_read_all(const char *path, char **data, size_t *n);

#endif
