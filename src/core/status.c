#include "core/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_ERROR 1024

/* The last error, the one thread-local of the library. */
static _Thread_local char last_error[MAX_ERROR];
static _Thread_local int last_error_rank = -1;

#define STATUS_NAME(name, value, text)                                                             \
    case name:                                                                                     \
        return #name;
const char *xp_status_name(xp_status status) {
    switch (status) { XP_STATUS_LIST(STATUS_NAME) }
    return "XP_?";
}

#define STATUS_TEXT(name, value, text)                                                             \
    case name:                                                                                     \
        return text;
const char *xp_status_text(xp_status status) {
    switch (status) { XP_STATUS_LIST(STATUS_TEXT) }
    return "unknown status";
}

const char *xp_last_error(void) {
    return last_error;
}

void xp_error_set_rank(int rank) {
    last_error_rank = rank;
}

int xp_last_error_rank(void) {
    return last_error_rank;
}

void xp_error_clear(void) {
    last_error[0] = '\0';
    last_error_rank = -1;
}

/* One line, valid UTF-8 or not: control characters become spaces. */
static void make_one_line(char *text) {
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < 0x20)
            *text = ' ';
}

xp_status xp_error(xp_status code, const char *format, ...) {
    char text[MAX_ERROR];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    make_one_line(text);
    memcpy(last_error, text, strlen(text) + 1);
    last_error_rank = -1;
    return code;
}

xp_status xp_error_context(xp_status code, const char *format, ...) {
    char text[MAX_ERROR];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t used = n < 0 ? 0 : ((size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
    snprintf(text + used, sizeof text - used, ": %s", last_error);
    make_one_line(text);
    memcpy(last_error, text, strlen(text) + 1);
    return code;
}
