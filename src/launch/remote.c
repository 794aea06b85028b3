#include "launch/remote.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MARK "@expar-rank "

static uint32_t checksum(const unsigned char *bytes, size_t n) {
    uint32_t hash = 0x811c9dc5U;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ bytes[i]) * 0x01000193U;
    return hash;
}

int xp_remote_print(const xp_launch_message *message, char line[XP_REMOTE_LINE]) {
    static const char digits[] = "0123456789abcdef";
    /* The text's unused end is not sent. */
    const size_t n = offsetof(xp_launch_message, end.text) + strlen(message->end.text) + 1;
    unsigned char bytes[sizeof *message];
    memcpy(bytes, message, n);
    int length = snprintf(line, XP_REMOTE_LINE, MARK "%08x ", checksum(bytes, n));
    for (size_t i = 0; i < n; i++) {
        line[length++] = digits[bytes[i] >> 4];
        line[length++] = digits[bytes[i] & 15];
    }
    line[length++] = '\n';
    return length;
}

void xp_remote_write(const xp_launch_message *message) {
    char line[XP_REMOTE_LINE];
    const int n = xp_remote_print(message, line);
    for (int i = 0; i < 2; i++)
        if (write(STDERR_FILENO, line, (size_t)n) != n)
            return; /* nobody listens any more */
}

static int digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool xp_remote_parse(const char *line, xp_launch_message *message, bool *whole) {
    const char *at = strstr(line, MARK);
    uint32_t sum = 0;
    unsigned char bytes[sizeof *message];
    size_t n = 0;
    *whole = false;
    if (!at)
        return false;
    at += strlen(MARK);
    for (int i = 0; i < 8; i++, at++) {
        if (digit(*at) < 0)
            return true;
        sum = sum << 4 | (uint32_t)digit(*at);
    }
    if (*at++ != ' ')
        return true;
    for (; at[0] && at[1] && n < sizeof bytes; at += 2) {
        if (digit(at[0]) < 0 || digit(at[1]) < 0)
            return true;
        bytes[n++] = (unsigned char)(digit(at[0]) << 4 | digit(at[1]));
    }
    if (*at || n <= offsetof(xp_launch_message, end.text) || checksum(bytes, n) != sum)
        return true;
    memset(message, 0, sizeof *message);
    memcpy(message, bytes, n);
    message->end.text[XP_LAUNCH_TEXT - 1] = '\0';
    *whole = true;
    return true;
}
