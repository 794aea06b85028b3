/** The cursor: blanks, newlines, comments, and errors that say where. */
#include "config/toml_reader.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int xp_toml_column(const xp_toml *toml, size_t offset) {
    size_t start = offset < toml->n_bytes ? offset : toml->n_bytes;
    int column = 1;
    while (start > 0 && toml->text[start - 1] != '\n') {
        start--;
        column += ((unsigned char)toml->text[start] & 0xC0U) != 0x80U;
    }
    return column;
}

xp_status xp_toml_fail(const xp_toml_reader *reader, size_t offset, int line, const char *format,
                       ...) {
    char what[512];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return xp_error(XP_ECONFIG, "%s:%d:%d: %s", reader->toml->name, line,
                    xp_toml_column(reader->toml, offset), what);
}

xp_status xp_toml_fail_expected(const xp_toml_reader *reader, const char *what) {
    int byte = xp_toml_peek(reader, 0);
    if (byte < 0)
        return xp_toml_fail(reader, reader->at, reader->line, "expected %s, found the end of file",
                            what);
    if (byte == '\n' || (byte == '\r' && xp_toml_peek(reader, 1) == '\n'))
        return xp_toml_fail(reader, reader->at, reader->line,
                            "expected %s, found the end of the line", what);
    if (xp_toml_is_control(byte))
        return xp_toml_fail(reader, reader->at, reader->line,
                            "expected %s, found the control character 0x%02x", what,
                            (unsigned)byte);
    uint32_t code_point = 0;
    int n = xp_utf8_decode(reader->text + reader->at, reader->n_bytes - reader->at, &code_point);
    return xp_toml_fail(reader, reader->at, reader->line, "expected %s, found '%.*s'", what, n,
                        reader->text + reader->at);
}

xp_status xp_toml_fail_memory(const xp_toml_reader *reader) {
    return xp_error(XP_ENOMEM, "%s: out of memory while reading TOML", reader->toml->name);
}

int xp_toml_peek(const xp_toml_reader *reader, size_t ahead) {
    size_t left = reader->n_bytes - reader->at;
    return ahead < left ? (unsigned char)reader->text[reader->at + ahead] : -1;
}

void xp_toml_skip_blanks(xp_toml_reader *reader) {
    while (xp_toml_peek(reader, 0) == ' ' || xp_toml_peek(reader, 0) == '\t')
        reader->at++;
}

bool xp_toml_skip_newline(xp_toml_reader *reader) {
    int byte = xp_toml_peek(reader, 0);
    size_t n = byte == '\n' ? 1 : byte == '\r' && xp_toml_peek(reader, 1) == '\n' ? 2 : 0;
    reader->at += n;
    reader->line += n > 0;
    return n > 0;
}

bool xp_toml_is_control(int byte) {
    return (byte >= 0 && byte < 0x20 && byte != '\t') || byte == 0x7F;
}

xp_status xp_toml_skip_comment(xp_toml_reader *reader) {
    if (xp_toml_peek(reader, 0) != '#')
        return XP_OK;
    for (;;) {
        int byte = xp_toml_peek(reader, 0);
        if (byte < 0 || byte == '\n' || (byte == '\r' && xp_toml_peek(reader, 1) == '\n'))
            return XP_OK;
        if (xp_toml_is_control(byte))
            return xp_toml_fail(reader, reader->at, reader->line,
                                "control character 0x%02x in a comment", (unsigned)byte);
        reader->at++;
    }
}

xp_status xp_toml_skip_lines(xp_toml_reader *reader) {
    do {
        xp_toml_skip_blanks(reader);
        XP_TRY(xp_toml_skip_comment(reader));
    } while (xp_toml_skip_newline(reader));
    return XP_OK;
}
