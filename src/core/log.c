#include "core/log.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct xp_log {
    FILE *file;
    xp_log_level level;
    bool color;
};

xp_status xp_log_create(FILE *file, xp_log_level level, bool color, xp_log **log) {
    xp_log *made = malloc(sizeof *made);
    if (made == NULL)
        return xp_error(XP_ENOMEM, "log: out of memory");
    *made = (xp_log){.file = file, .level = level, .color = color};
    *log = made;
    return XP_OK;
}

void xp_log_destroy(xp_log *log) {
    free(log);
}

bool xp_log_has_color(const xp_log *log) {
    return log != NULL && log->color;
}

int xp_log_columns(const xp_log *log) {
    struct winsize size;
    if (log == NULL || ioctl(fileno(log->file), TIOCGWINSZ, &size) != 0)
        return 0;
    return size.ws_col;
}

/* stdio locks the stream for the one fputs, so lines of several threads never mix. */
static void XP_PRINTF(4, 0) put_line(xp_log *log, xp_log_level level, const char *prefix,
                                     const char *format, va_list args) {
    if (log == NULL || level > log->level)
        return;
    char line[4096];
    size_t used = (size_t)snprintf(line, sizeof line, "%s", prefix);
    int n = vsnprintf(line + used, sizeof line - used - 1, format, args);
    if (n > 0)
        used += (size_t)n < sizeof line - used - 1 ? (size_t)n : sizeof line - used - 2;
    line[used] = '\n';
    line[used + 1] = '\0';
    fputs(line, log->file);
    fflush(log->file);
}

void xp_log_info(xp_log *log, const char *format, ...) {
    va_list args;
    va_start(args, format);
    put_line(log, XP_LOG_INFO, "", format, args);
    va_end(args);
}

void xp_log_warn(xp_log *log, const char *format, ...) {
    va_list args;
    va_start(args, format);
    put_line(log, XP_LOG_WARN,
             xp_log_has_color(log) ? "\033[33mwarning:\033[0m " : "warning: ", format, args);
    va_end(args);
}
