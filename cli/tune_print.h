/** What `expar tune` says and writes. */
#ifndef XP_CLI_TUNE_PRINT_H
#define XP_CLI_TUNE_PRINT_H

#include "core/text.h"
#include "tune.h"
#include "tune_gemm.h"

/* How every tuned file begins. */
#define TUNE_FILE_START "# Written by `expar tune`"

typedef struct tune_result {
    const xp_tune_args *args;
    const xp_tune_report *report;
    const char *tuned_for, *path; /* path: of the tuned file; NULL: nothing is written */
    const xp_tune_gemms *gemms;   /* NULL: not on a GPU */
    const char *gemm_for;
} tune_result;

void tune_print_head(const xp_tune_args *args, const xp_tune_report *report);
/** A row of the table, when it has been measured. */
void tune_print_row(const xp_tune_candidate *candidate);
/** What won and by how much; then what the user may set besides. */
void tune_print_verdict(const tune_result *r);
/** tune_print_gemms.c: the GEMM shapes of a step, and which algorithm won. */
void tune_print_gemms(const xp_tune_gemms *gemms);
void tune_add_gemms_json(xp_text *text, const tune_result *r);
void tune_add_gemms_toml(xp_text *text, const tune_result *r);
/** One JSON object. */
void tune_add_json(xp_text *text, const tune_result *r);
/** The tuned file. */
void tune_add_toml(xp_text *text, const tune_result *r);

#endif
