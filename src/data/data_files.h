/**
 * The files of a data path: a file, a folder with all folders below it, or a glob. A name's ending, in small
 * letters or capitals, says what a file is.
 */
#ifndef XP_DATA_DATA_FILES_H
#define XP_DATA_DATA_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

/** Files in a fixed order (sorted by path), each with size and time for the token cache's key. */
typedef struct xp_data_file {
    char *path; /* "-": standard input */
    int64_t n_bytes, mtime_ns;
} xp_data_file;

#define XP_DATA_MAX_SKIPPED_KINDS 6
/** Files of a folder or glob that are no data of the kind asked for, counted by ending. */
typedef struct xp_data_skipped {
    char ending[24]; /* ".parquet"; "" = without an ending, or of kinds past the last slot */
    char example[256];
    int64_t n;
} xp_data_skipped;

typedef struct xp_data_files {
    xp_data_file *files;
    int n;
    int64_t n_bytes;
    xp_data_skipped skipped[XP_DATA_MAX_SKIPPED_KINDS];
    int n_skipped_kinds;
    int64_t n_skipped;
} xp_data_files;

/**
 * @param path  a file, a folder or a glob; folders are searched with all folders below them, names that start with a dot
 *              are left alone
 * @param endings  NULL-terminated list of accepted endings
 * @return XP_OK; XP_ENOENT when nothing matches, naming the path, the endings, and what turns the files that stand there
 *         into ones that are read; XP_EIO
 */
XP_NODISCARD xp_status xp_data_files_find(const char *path, const char *const *endings,
                                          xp_data_files *files);
/** Standard input as the one file. */
XP_NODISCARD xp_status xp_data_files_stdin(xp_data_files *files);
void xp_data_files_free(xp_data_files *files);
/** "skipped 3 files: 2 .parquet, 1 .md" into `text`; empty when nothing was skipped. */
void xp_data_files_describe_skipped(const xp_data_files *files, char *text, size_t n_text);

/** The endings of text, and of token files. */
const char *const *xp_data_text_endings(void);
const char *const *xp_data_token_endings(void);
/** Case does not count. */
bool xp_data_name_ends(const char *name, const char *ending);
/** What turns a file of this name into one that is read ("Parquet is not read here; ..."), NULL when nothing is known of
 * its kind. Caller frees. */
char *xp_data_advice(const char *path);

#endif
