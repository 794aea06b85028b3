/**
 * Documents of text files, one after the other: .txt (a file is a document), .jsonl, .json (a JSON
 * object a line, field "text"), each also with .gz behind it. Lines may be of any length; blank
 * lines are skipped.
 */
#ifndef XP_DATA_DOCUMENTS_H
#define XP_DATA_DOCUMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

/** Files of a data path in a fixed order (sorted by name), each with size and time for the cache's
 * key. */
typedef struct xp_data_file {
    char *path;
    int64_t n_bytes, mtime_ns;
} xp_data_file;
typedef struct xp_data_files {
    xp_data_file *files;
    int n;
    int64_t n_bytes;
} xp_data_files;

/**
 * @param path  a file, a folder (its files with a known ending, not recursive) or a glob
 * @param endings  NULL-terminated list of accepted endings
 * @return XP_OK; XP_ENOENT when nothing matches, naming the path and the endings
 */
XP_NODISCARD xp_status xp_data_files_find(const char *path, const char *const *endings,
                                          xp_data_files *files);
void xp_data_files_free(xp_data_files *files);
/** The endings of text, and of token files. */
const char *const *xp_data_text_endings(void);
const char *const *xp_data_token_endings(void);

typedef struct xp_documents xp_documents;
XP_NODISCARD xp_status xp_documents_open(const xp_data_files *files, xp_documents **documents);
void xp_documents_close(xp_documents *documents);
/**
 * The next document as UTF-8 bytes; *text is NULL past the last. The caller frees *text.
 * @return XP_OK; XP_EIO; XP_EFORMAT with file and line
 */
XP_NODISCARD xp_status xp_documents_next(xp_documents *documents, char **text, size_t *n_bytes);
/** Bytes of the files read so far (compressed bytes for .gz), of xp_data_files.n_bytes: for
 * progress. */
int64_t xp_documents_position(const xp_documents *documents);

#endif
