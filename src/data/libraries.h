/** The libraries that read text, for `expar doctor`. */
#ifndef XP_DATA_LIBRARIES_H
#define XP_DATA_LIBRARIES_H

#include <stddef.h>

/** "PCRE2 10.42 2022-12-11, utf8proc 2.8.0, Jansson 2.14, zlib 1.2.13, Zstandard 1.5.4, xxHash 0.8.1": as they are loaded now. */
void xp_data_libraries(char *text, size_t n_text);

#endif
