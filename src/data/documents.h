/**
 * Documents of text files, one after the other: .txt (a file is a document), .jsonl, .json (a JSON
 * object a line, its text in one field), each also packed by gzip (.gz) or Zstandard (.zst). Lines may be of any length;
 * blank lines are skipped, and so is a byte order mark at a file's start.
 */
#ifndef XP_DATA_DOCUMENTS_H
#define XP_DATA_DOCUMENTS_H

#include <stdbool.h>
#include "data/data_files.h"

typedef struct xp_documents xp_documents;

typedef struct xp_documents_args {
    const xp_data_files *files; /* borrowed; standard input is read as JSON lines */
    const char *text_field;     /* NULL: "text" */
    bool skip_bad_lines;        /* count them instead of failing */
} xp_documents_args;

XP_NODISCARD xp_status xp_documents_open(const xp_documents_args *args, xp_documents **documents);
void xp_documents_close(xp_documents *documents);
/**
 * The next document as UTF-8 bytes; *text is NULL past the last. The caller frees *text.
 * @return XP_OK; XP_EIO; XP_EFORMAT with file and line
 */
XP_NODISCARD xp_status xp_documents_next(xp_documents *documents, char **text, size_t *n_bytes);
/** Bytes of the files read so far (as they lie on the disk), of xp_data_files.n_bytes: for
 * progress. */
int64_t xp_documents_position(const xp_documents *documents);
/** Lines that were left out, and what was wrong with the first ("FILE:LINE: ..."; "" when none was). */
int64_t xp_documents_n_bad(const xp_documents *documents);
const char *xp_documents_first_bad(const xp_documents *documents);

#endif
