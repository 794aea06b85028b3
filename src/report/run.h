/**
 * A run as a report sees it: metrics.jsonl in columns, the effective configuration, the checkpoints.
 *
 * A run that is going on is read again by xp_report_run_refresh(): only what the file has gained.
 */
#ifndef XP_REPORT_RUN_H
#define XP_REPORT_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

/** The numbers of a step that a report uses. The keys are metrics.jsonl's: xp_report_column_key(). */
typedef enum xp_report_column {
    XP_COLUMN_STEP,
    XP_COLUMN_LOSS,
    XP_COLUMN_GRAD_NORM,
    XP_COLUMN_LR,
    XP_COLUMN_AUX_LOSS,
    XP_COLUMN_Z_LOSS,
    XP_COLUMN_MEMORY_GIB,
    XP_COLUMN_TPS,
    XP_COLUMN_TFLOPS,
    XP_COLUMN_MFU,
    XP_COLUMN_TOKENS,
    XP_COLUMN_TIME,
    XP_COLUMN_DATA,
    XP_COLUMN_FORWARD_BACKWARD,
    XP_COLUMN_OPTIMIZER,
    XP_COLUMN_CHECKPOINT,
    XP_COLUMN_VALIDATION,
    XP_COLUMN_VALIDATION_LOSS,
    XP_COLUMN_EP_BYTES,
    XP_COLUMN_EP_OVERFLOW,
    XP_COLUMN_EP_WAIT,
    XP_COLUMN_RECOMPUTED,
    XP_COLUMN_RESUMED, /* the step a process resumed from, at its first step; NaN at all others */
    XP_COLUMN_ELAPSED, /* sum of the steps' times up to here; not in the file */
    XP_N_COLUMNS
} xp_report_column;

/** "loss"; NULL for what is not in the file. */
const char *xp_report_column_key(xp_report_column column);

/** Two values for each layer and step. */
typedef enum xp_report_load { XP_LOAD_MAX, XP_LOAD_SHARE, XP_N_LOADS } xp_report_load;
const char *xp_report_load_key(xp_report_load load);

typedef struct xp_report_setting {
    char *key;   /* "training.seq_len" */
    char *value; /* as the file has it */
} xp_report_setting;

/** One line of metrics.jsonl, read. */
typedef struct xp_report_row {
    double values[XP_N_COLUMNS];    /* NaN: not there, or not a number */
    const float *loads[XP_N_LOADS]; /* [n_layers] */
    int n_layers;
} xp_report_row;

typedef struct xp_report_run {
    char *name; /* as it was given, without slashes at its end */
    char *metrics_path;
    char *folder; /* NULL: a metrics file alone was given */

    int64_t n_steps;
    double *columns[XP_N_COLUMNS]; /* [n_steps]; NaN: not there, or not a number */
    int n_layers;                  /* with experts; 0: a dense model */
    float *loads[XP_N_LOADS];      /* [n_steps, n_layers] */
    int64_t n_damaged;             /* lines that are no step */
    int64_t first_damaged;         /* number of the first one, from 1 */

    xp_report_setting *settings; /* [n_settings] of config.toml, defaults included */
    int n_settings;
    int64_t *checkpoints; /* [n_checkpoints] steps, ascending */
    int64_t n_checkpoints;

    int64_t capacity, n_lines;
    int64_t read_bytes; /* whole lines of the file */
    uint64_t file_id;   /* of the file that they are from */
    char tail[32];      /* its last bytes up to there: a file that was written anew has others */
    int tail_bytes;
} xp_report_run;

/**
 * Read a run.
 * @param path    a dump folder or a metrics file
 * @param follow  a last line without its newline is left for later; otherwise it counts as a line
 * @param[out] run  set only on success; xp_report_run_close() it
 * @return XP_OK; XP_ENOENT: no such path, or no metrics in it; XP_EFORMAT: not one line is a step;
 *         XP_EIO, XP_ENOMEM. With follow a folder without metrics, or a file without a step, is XP_OK
 */
XP_NODISCARD xp_status xp_report_run_open(const char *path, bool follow, xp_report_run **run);
/**
 * Read what is new. A file that was replaced or cut is read from its beginning.
 * @param[out] changed  something is new
 * @return XP_OK; XP_ENOENT, XP_EIO, XP_ENOMEM: the run is as it was or holds a part of what is new
 */
XP_NODISCARD xp_status xp_report_run_refresh(xp_report_run *run, bool *changed);
/** NULL is accepted. */
void xp_report_run_close(xp_report_run *run);

/**
 * One line.
 * @param loads  [XP_N_LOADS][max_layers], what row->loads will point to
 * @return false: it is no step
 */
#define XP_REPORT_MAX_LAYERS 1024
bool xp_report_parse_line(const char *line, size_t n_bytes,
                          float loads[XP_N_LOADS][XP_REPORT_MAX_LAYERS], xp_report_row *row);
/** Rows of later steps, and of the same one, go: a run that went back writes them again. */
XP_NODISCARD xp_status xp_report_add_row(xp_report_run *run, const xp_report_row *row);

/** "key = value" and "# key: default" lines under "[section]", as `expar train` writes them. */
XP_NODISCARD xp_status xp_report_parse_config(const char *text, xp_report_setting **settings,
                                              int *n_settings);

#endif
