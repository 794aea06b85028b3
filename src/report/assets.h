/** The files of assets/report, made a part of the program by cmake/embed.cmake. */
#ifndef XP_REPORT_ASSETS_H
#define XP_REPORT_ASSETS_H

#include <stddef.h>

extern const unsigned char xp_asset_page_html[], xp_asset_report_css[], xp_asset_charts_js[],
    xp_asset_report_js[], xp_asset_uplot_css[], xp_asset_uplot_js[];
extern const size_t xp_asset_page_html_bytes, xp_asset_report_css_bytes, xp_asset_charts_js_bytes,
    xp_asset_report_js_bytes, xp_asset_uplot_css_bytes, xp_asset_uplot_js_bytes;

#endif
