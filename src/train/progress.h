/** A progress bar with an ETA on a terminal's last line; nothing anywhere else. */
#ifndef XP_TRAIN_PROGRESS_H
#define XP_TRAIN_PROGRESS_H

#include <stdint.h>
#include <stdio.h>
#include "expar/status.h"

typedef struct xp_progress xp_progress;

/** @param file borrowed; when it is no terminal the bar stays silent. @param first steps done
 * before */
XP_NODISCARD xp_status xp_progress_create(FILE *file, int64_t first, int64_t total,
                                          xp_progress **progress);
/** Redraw, at most ten times a second. @param note shown after the counter ("loss 4.21") */
void xp_progress_update(xp_progress *progress, int64_t done, const char *note);
/** Take the bar off the screen, before a line is printed. NULL is accepted. */
void xp_progress_clear(xp_progress *progress);
/** Clears too. NULL is accepted. */
void xp_progress_destroy(xp_progress *progress);

/** 3725 -> "1h02m05s", 65 -> "1m05s", 5 -> "5s" */
void xp_format_duration(double seconds, char out[32]);

#endif
