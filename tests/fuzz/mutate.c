#include <stdio.h>
#include <string.h>
#include "core/rng.h"
#include "fuzz.h"

uint64_t fuzz_draw(fuzz_state *state, uint64_t n) {
    return xp_rng_below(state->seed, 1, state->n_draws++, n);
}

static size_t splice(unsigned char *data, size_t n, size_t at, size_t removed, const void *bytes,
                     size_t n_bytes) {
    if (removed > n - at)
        removed = n - at;
    if (n - removed + n_bytes > FUZZ_MAX_BYTES)
        return n;
    memmove(data + at + n_bytes, data + at + removed, n - at - removed);
    memcpy(data + at, bytes, n_bytes);
    return n - removed + n_bytes;
}

static size_t put_number(fuzz_state *s, unsigned char *data, size_t n, size_t at) {
    static const int64_t edges[] = {0,         1,         -1,        2,           127,
                                    128,       255,       256,       32767,       65535,
                                    65536,     INT32_MAX, INT32_MIN, UINT32_MAX,  INT64_MAX,
                                    INT64_MIN, 16777216,  1 << 20,   4294967296LL};
    int64_t value = edges[fuzz_draw(s, sizeof edges / sizeof edges[0])];
    size_t width = (size_t)1 << fuzz_draw(s, 4);
    return splice(data, n, at, fuzz_draw(s, 4) == 0 ? 0 : width, &value, width);
}

static size_t put_decimal(fuzz_state *s, unsigned char *data, size_t n) {
    static const char *const numbers[] = {
        "-1",  "0",     "1",    "2147483648", "9223372036854775807",
        "1e9", "1e400", "0.5",  "4294967296", "99999999999999999999",
        "01",  "-0",    "1e-9", "65536"};
    size_t start = n == 0 ? 0 : fuzz_draw(s, n);
    for (size_t i = start; i < n; i++)
        if (data[i] >= '0' && data[i] <= '9') {
            size_t length = 1;
            while (i + length < n && data[i + length] >= '0' && data[i + length] <= '9')
                length++;
            const char *number = numbers[fuzz_draw(s, sizeof numbers / sizeof numbers[0])];
            return splice(data, n, i, length, number, strlen(number));
        }
    return n;
}

static size_t once(fuzz_state *s, const fuzz_target *t, unsigned char *data, size_t n,
                   const unsigned char *other, size_t n_other) {
    size_t at = n == 0 ? 0 : fuzz_draw(s, n + 1), n_words = 0;
    while (t->words != NULL && t->words[n_words] != NULL)
        n_words++;
    const char *word = n_words > 0 ? t->words[fuzz_draw(s, n_words)] : "";
    switch (fuzz_draw(s, 11)) {
    case 0:
        if (n > 0)
            data[at % n] ^= (unsigned char)(1 << fuzz_draw(s, 8));
        return n;
    case 1:
        if (n > 0)
            data[at % n] = (unsigned char)fuzz_draw(s, 256);
        return n;
    case 2: /* a piece goes */
        return splice(data, n, at, 1 + fuzz_draw(s, 1 + fuzz_draw(s, 64)), "", 0);
    case 3:
        return splice(data, n, at, 0, word, strlen(word));
    case 4:
        return splice(data, n, at, strlen(word), word, strlen(word));
    case 5: /* a piece is doubled */ {
        unsigned char copy[256];
        size_t length = fuzz_draw(s, sizeof copy);
        length = length < n - at ? length : n - at;
        memcpy(copy, data + at, length);
        return splice(data, n, at, 0, copy, length);
    }
    case 6:
        return put_number(s, data, n, at);
    case 7:
        return put_decimal(s, data, n);
    case 8: /* the end goes */
        return fuzz_draw(s, 4) == 0 ? at : n;
    case 9: { /* a piece of another input */
        size_t from = n_other == 0 ? 0 : fuzz_draw(s, n_other);
        size_t length = n_other == 0 ? 0 : fuzz_draw(s, n_other - from + 1);
        return splice(data, n, at, fuzz_draw(s, length + 1), other + from, length);
    }
    default: { /* one byte many times */
        unsigned char run[128];
        memset(run, (int)fuzz_draw(s, 256), sizeof run);
        return splice(data, n, at, 0, run, fuzz_draw(s, sizeof run));
    }
    }
}

size_t fuzz_mutate(fuzz_state *s, const fuzz_target *target, unsigned char *data, size_t n,
                   const unsigned char *other, size_t n_other) {
    for (uint64_t i = fuzz_draw(s, 8); i > 0; i--)
        n = once(s, target, data, n, other, n_other);
    return n;
}

fuzz_verdict fuzz_wrong(fuzz_state *state, const char *why) {
    snprintf(state->why, sizeof state->why, "%s", why);
    return FUZZ_WRONG;
}

fuzz_verdict fuzz_judge(fuzz_state *state, xp_status status) {
    if (status == XP_OK)
        return FUZZ_ACCEPTED;
    if (xp_last_error()[0] == '\0')
        return fuzz_wrong(state, "refused without a word");
    bool fits = status == XP_EFORMAT || status == XP_ECONFIG || status == XP_ENOTSUP ||
                status == XP_ENOENT || status == XP_EINVAL;
    return fits ? FUZZ_REFUSED : fuzz_wrong(state, xp_last_error());
}
