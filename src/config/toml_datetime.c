/** Dates and times, RFC 3339 as TOML narrows it; kept as normalised text. */
#include "config/toml_reader.h"

#include <string.h>

static bool is_digit(int byte) {
    return byte >= '0' && byte <= '9';
}

static bool digits_at(const xp_toml_reader *r, size_t ahead, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!is_digit(xp_toml_peek(r, ahead + i)))
            return false;
    return true;
}

bool xp_toml_at_datetime(const xp_toml_reader *r) {
    return (digits_at(r, 0, 4) && xp_toml_peek(r, 4) == '-') ||
           (digits_at(r, 0, 2) && xp_toml_peek(r, 2) == ':');
}

/** `n` digits at the cursor as a number in [low, high]; copied and passed. */
static xp_status take_number(xp_toml_reader *r, const char *what, size_t n, int low, int high,
                             int *number) {
    if (!digits_at(r, 0, n) || is_digit(xp_toml_peek(r, n)))
        return xp_toml_fail(r, r->at, r->line, "a date or time needs exactly %d digits for the %s",
                            (int)n, what);
    int value = 0;
    for (size_t i = 0; i < n; i++)
        value = value * 10 + (r->text[r->at + i] - '0');
    if (value < low || value > high)
        return xp_toml_fail(r, r->at, r->line, "the %s must be %d to %d", what, low, high);
    xp_text_add(&r->scratch, r->text + r->at, n);
    r->at += n;
    *number = value;
    return XP_OK;
}

static xp_status take_byte(xp_toml_reader *r, char byte, const char *what) {
    if (xp_toml_peek(r, 0) != byte)
        return xp_toml_fail_expected(r, what);
    xp_text_add(&r->scratch, &byte, 1);
    r->at++;
    return XP_OK;
}

static xp_status take_date(xp_toml_reader *r) {
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int year = 0, month = 0, day = 0;
    XP_TRY(take_number(r, "year", 4, 0, 9999, &year));
    XP_TRY(take_byte(r, '-', "'-' and the month"));
    XP_TRY(take_number(r, "month", 2, 1, 12, &month));
    XP_TRY(take_byte(r, '-', "'-' and the day"));
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return take_number(r, "day", 2, 1, days[month - 1] + (month == 2 && leap), &day);
}

static xp_status take_time(xp_toml_reader *r) {
    int number = 0;
    XP_TRY(take_number(r, "hour", 2, 0, 23, &number));
    XP_TRY(take_byte(r, ':', "':' and the minute"));
    XP_TRY(take_number(r, "minute", 2, 0, 59, &number));
    XP_TRY(take_byte(r, ':', "':' and the second"));
    XP_TRY(take_number(r, "second", 2, 0, 60, &number)); /* 60: RFC 3339 knows leap seconds */
    if (xp_toml_peek(r, 0) != '.')
        return XP_OK;
    size_t n = 1;
    while (is_digit(xp_toml_peek(r, n)))
        n++;
    if (n == 1)
        return xp_toml_fail(r, r->at, r->line, "a fraction of a second needs digits");
    xp_text_add(&r->scratch, r->text + r->at, n);
    r->at += n;
    return XP_OK;
}

/** Z or +hh:mm; *found = false and nothing taken when there is none. */
static xp_status take_offset(xp_toml_reader *r, bool *found) {
    int byte = xp_toml_peek(r, 0), number = 0;
    *found = byte == 'Z' || byte == 'z' || byte == '+' || byte == '-';
    if (byte == 'Z' || byte == 'z') {
        xp_text_puts(&r->scratch, "Z");
        r->at++;
        return XP_OK;
    }
    if (!*found)
        return XP_OK;
    XP_TRY(take_byte(r, (char)byte, "an offset"));
    XP_TRY(take_number(r, "offset hour", 2, 0, 23, &number));
    XP_TRY(take_byte(r, ':', "':' and the offset's minutes"));
    return take_number(r, "offset minute", 2, 0, 59, &number);
}

/** 'T', 't', or one blank with a time behind it. */
static bool skip_separator(xp_toml_reader *r) {
    int byte = xp_toml_peek(r, 0);
    bool found = byte == 'T' || byte == 't' || (byte == ' ' && is_digit(xp_toml_peek(r, 1)));
    r->at += found;
    return found;
}

xp_status xp_toml_read_datetime(xp_toml_reader *r, xp_toml_value *value) {
    xp_text_clear(&r->scratch);
    if (xp_toml_peek(r, 2) == ':') {
        XP_TRY(take_time(r));
        value->type = XP_TOML_TIME_LOCAL;
    } else {
        XP_TRY(take_date(r));
        value->type = XP_TOML_DATE_LOCAL;
        if (skip_separator(r)) {
            bool offset = false;
            xp_text_puts(&r->scratch, "T");
            XP_TRY(take_time(r));
            XP_TRY(take_offset(r, &offset));
            value->type = offset ? XP_TOML_DATETIME : XP_TOML_DATETIME_LOCAL;
        }
    }
    char *copy = xp_arena_alloc(r->arena, r->scratch.length + 1);
    if (!copy || r->scratch.failed)
        return xp_toml_fail_memory(r);
    memcpy(copy, r->scratch.data, r->scratch.length);
    value->as.string.data = copy;
    value->as.string.n_bytes = r->scratch.length;
    return XP_OK;
}
