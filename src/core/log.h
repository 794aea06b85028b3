/** Where messages for people go. Made by the program, handed down; a NULL log is silent.
 * Thread-safe: a line is one write. */
#ifndef XP_CORE_LOG_H
#define XP_CORE_LOG_H

#include <stdbool.h>
#include <stdio.h>
#include "expar/status.h"

typedef enum xp_log_level { XP_LOG_ERROR = 0, XP_LOG_WARN, XP_LOG_INFO, XP_LOG_DEBUG } xp_log_level;

typedef struct xp_log xp_log;

/** @param file borrowed. @param color ANSI colours. Lines are "[rank] " prefixed when show_rank. */
XP_NODISCARD xp_status xp_log_create(FILE *file, xp_log_level level, bool color, xp_log **log);
void xp_log_destroy(xp_log *log);
/** Columns of the terminal that the log goes to; 0: it goes to none. */
int xp_log_columns(const xp_log *log);
bool xp_log_has_color(const xp_log *log);
/** A line without prefix at INFO, "warning: " and "error: " at the others. `format` carries no
 * newline. */
XP_API void xp_log_info(xp_log *log, const char *format, ...) XP_PRINTF(2, 3);
XP_API void xp_log_warn(xp_log *log, const char *format, ...) XP_PRINTF(2, 3);

#endif
