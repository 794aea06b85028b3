/** What mpirun writes: lines of ranks on other nodes, messages of their shims, and its own words,
 * which are kept and shown only when nobody else can say what went wrong. */
#ifndef XP_LAUNCH_OUTPUT_H
#define XP_LAUNCH_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include "launch/message.h"

#define XP_OUTPUT_LINE 8192
#define XP_OUTPUT_KEPT 16384

/** One of mpirun's two streams, cut into lines. */
typedef struct xp_output {
    int fd; /* -1 after its end */
    size_t n;
    char line[XP_OUTPUT_LINE];
} xp_output;

/** The first of mpirun's own words. */
typedef struct xp_kept {
    size_t n;
    char text[XP_OUTPUT_KEPT];
} xp_kept;

/** Read what is there and call `take` with each line, NUL-terminated without its newline. */
void xp_output_read(xp_output *output, void (*take)(void *context, char *line), void *context);
/** True for lines that mean nothing to the user: rules, blank lines, PMIX's own complaints. */
bool xp_output_is_noise(const char *line);
void xp_kept_add(xp_kept *kept, const char *line);
void xp_kept_show(const xp_kept *kept, FILE *file);

#endif
