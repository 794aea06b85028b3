/** One HTML file that needs nothing else: styles, plotting library, numbers, script. */
#ifndef XP_REPORT_PAGE_H
#define XP_REPORT_PAGE_H

#include <stdbool.h>
#include "core/text.h"

/**
 * @param data  from xp_report_data()
 * @param live  the page asks its server for what is new; otherwise it may not ask anybody for
 * anything, which its Content-Security-Policy makes sure of
 */
XP_NODISCARD xp_status xp_report_page(const xp_text *data, bool live, xp_text *out);

#endif
