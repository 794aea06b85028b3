/** Curves of one run as text. */
#ifndef XP_REPORT_TERMINAL_H
#define XP_REPORT_TERMINAL_H

#include <stdbool.h>
#include "core/text.h"
#include "report/run.h"

typedef struct xp_report_terminal {
    int columns; /* characters of a line */
    bool utf8;   /* dots of Braille; otherwise ASCII */
    bool color;
} xp_report_terminal;

/** @return XP_OK; XP_ENOMEM */
XP_NODISCARD xp_status xp_report_draw(const xp_report_run *run, const xp_report_terminal *terminal,
                                      xp_text *out);

#endif
