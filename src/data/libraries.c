#include "data/libraries.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <pcre2.h>
#include <stdio.h>
#include <utf8proc.h>
#include <xxhash.h>
#include <zlib.h>
#include <zstd.h>

void xp_data_libraries(char *text, size_t n_text) {
    char pcre2[64] = "?";
    if (pcre2_config(PCRE2_CONFIG_VERSION, NULL) < (int)sizeof pcre2)
        pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    unsigned xxhash = XXH_versionNumber();
    snprintf(text, n_text,
             "PCRE2 %s, utf8proc %s, Jansson %s, zlib %s, Zstandard %s, xxHash %u.%u.%u", pcre2,
             utf8proc_version(), jansson_version_str(), zlibVersion(), ZSTD_versionString(),
             xxhash / 10000, xxhash / 100 % 100, xxhash % 100);
}
