#include "report/page.h"

#include <string.h>
#include "report/assets.h"

static void put_asset(xp_text *out, const unsigned char *data, size_t n_bytes) {
    xp_text_add(out, (const char *)data, n_bytes);
}

/* What stands for one @NAME@ of page.html. */
static void put_part(const char *name, size_t n, const xp_text *data, bool live, xp_text *out) {
    const char *const names[] = {"@STYLE@",  "@LIBRARY@", "@DATA@",
                                 "@SCRIPT@", "@CONNECT@", "@LIVE@"};
    size_t which = 0;
    while (which < sizeof names / sizeof names[0] &&
           (strlen(names[which]) != n || memcmp(names[which], name, n) != 0))
        which++;
    switch (which) {
    case 0:
        put_asset(out, xp_asset_uplot_css, xp_asset_uplot_css_bytes);
        put_asset(out, xp_asset_report_css, xp_asset_report_css_bytes);
        break;
    case 1:
        put_asset(out, xp_asset_uplot_js, xp_asset_uplot_js_bytes);
        break;
    case 2:
        xp_text_add(out, data->data, data->length);
        break;
    case 3:
        put_asset(out, xp_asset_charts_js, xp_asset_charts_js_bytes);
        put_asset(out, xp_asset_report_js, xp_asset_report_js_bytes);
        break;
    case 4:
        xp_text_puts(out, live ? "'self'" : "'none'");
        break;
    case 5:
        xp_text_puts(out, live ? "yes" : "no");
        break;
    default:
        xp_text_add(out, name, n);
    }
}

xp_status xp_report_page(const xp_text *data, bool live, xp_text *out) {
    const char *at = (const char *)xp_asset_page_html;
    const char *end = at + xp_asset_page_html_bytes;
    while (at < end) {
        const char *mark = memchr(at, '@', (size_t)(end - at));
        const char *close = mark ? memchr(mark + 1, '@', (size_t)(end - mark - 1)) : NULL;
        if (!close) {
            xp_text_add(out, at, (size_t)(end - at));
            break;
        }
        xp_text_add(out, at, (size_t)(mark - at));
        put_part(mark, (size_t)(close + 1 - mark), data, live, out);
        at = close + 1;
    }
    return out->failed ? xp_error(XP_ENOMEM, "no memory for the page") : XP_OK;
}
