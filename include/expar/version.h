/** The version: of these headers at compile time, of the loaded library at run time. */
#ifndef EXPAR_VERSION_H
#define EXPAR_VERSION_H

#include "expar/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The build reads the version here; it stands nowhere else. */
#define XP_VERSION_MAJOR 0
#define XP_VERSION_MINOR 1
#define XP_VERSION_PATCH 0

#define XP_VERSION_WORD(n)  #n
#define XP_VERSION_QUOTE(n) XP_VERSION_WORD(n)
/** "0.1.0" */
#define XP_VERSION                                                                                 \
    XP_VERSION_QUOTE(XP_VERSION_MAJOR)                                                             \
    "." XP_VERSION_QUOTE(XP_VERSION_MINOR) "." XP_VERSION_QUOTE(XP_VERSION_PATCH)
/** One number that grows with the version, for #if: 0.1.0 is 100. */
#define XP_VERSION_NUMBER (XP_VERSION_MAJOR * 10000 + XP_VERSION_MINOR * 100 + XP_VERSION_PATCH)

/** XP_VERSION of the library that is loaded, which may differ from the headers'. Static storage. */
XP_API const char *xp_version(void);
/** Its XP_VERSION_NUMBER. */
XP_API int xp_version_number(void);

#ifdef __cplusplus
}
#endif
#endif
