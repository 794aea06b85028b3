/** A scratch folder with a tokenizer whose ids are the 256 bytes and <|endoftext|> = 256. */
#ifndef XP_TESTS_DATA_FIXTURE_H
#define XP_TESTS_DATA_FIXTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include "data/loader.h"

#define S     7 /* seq_len of open_data() */
#define FILES XP_SOURCE_DIR "/tests/unit/data/files/"

typedef struct fixture {
    char folder[64];
    xp_tokenizer *tokenizer;
    xp_log *log; /* into log_text */
    char *log_text;
    size_t n_log;
    FILE *log_file;
} fixture;

int fixture_set_up(void **state);
int fixture_tear_down(void **state);
/** A path inside the folder; caller frees. */
char *in_folder(const fixture *f, const char *name);
void write_file(const fixture *f, const char *name, const void *data, size_t n);
void write_text(const fixture *f, const char *name, const char *text);
/** What was logged since the last call; lives until the next. */
const char *logged(fixture *f);
/** Arguments for a path inside the folder (or absolute): the path and the cache folder are owned by the caller. */
xp_dataset_args data_args(const fixture *f, const char *kind, const char *path);
void free_args(xp_dataset_args *args);
xp_status open_data(const fixture *f, const char *kind, const char *path, bool shuffle,
                    bool document, xp_dataset **dataset);
void assert_refused(const fixture *f, const char *kind, const char *path, xp_status code,
                    const char *words);
/** Run a command in a shell; the test fails when it does. */
void run_command(const char *format, ...) XP_PRINTF(1, 2);

#endif
