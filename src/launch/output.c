#include "launch/output.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static void take_lines(xp_output *o, void (*take)(void *context, char *line), void *context) {
    char *start = o->line, *end = o->line + o->n, *newline;
    while ((newline = memchr(start, '\n', (size_t)(end - start))) != NULL) {
        *newline = '\0';
        take(context, start);
        start = newline + 1;
    }
    o->n = (size_t)(end - start);
    memmove(o->line, start, o->n);
}

void xp_output_read(xp_output *o, void (*take)(void *context, char *line), void *context) {
    const ssize_t n = read(o->fd, o->line + o->n, sizeof o->line - 1 - o->n);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n > 0) {
        o->n += (size_t)n;
        take_lines(o, take, context);
    }
    if (o->n > 0 && (n <= 0 || o->n == sizeof o->line - 1)) { /* too long, or the last one */
        o->line[o->n] = '\0';
        o->n = 0;
        take(context, o->line);
    }
    if (n <= 0) {
        close(o->fd);
        o->fd = -1;
    }
}

bool xp_output_is_noise(const char *line) {
    return line[strspn(line, "- \t")] == '\0' || strstr(line, "PMIX ERROR: ") != NULL ||
           strstr(line, "ORTE_ERROR_LOG: ") != NULL;
}

void xp_kept_add(xp_kept *kept, const char *line) {
    const size_t n = strlen(line) + 1;
    if (xp_output_is_noise(line) || kept->n + n > sizeof kept->text)
        return;
    memcpy(kept->text + kept->n, line, n - 1);
    kept->text[kept->n + n - 1] = '\n';
    kept->n += n;
}

void xp_kept_show(const xp_kept *kept, FILE *file) {
    if (kept->n > 0)
        fprintf(file, "mpirun says:\n%.*s", (int)kept->n, kept->text);
}
