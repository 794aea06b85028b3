#include "data/tokenizer_internal.h"

/* Printable characters of Latin-1 stand for themselves; the other 68 bytes, in order, are U+0100
 * and up. */
static bool is_itself(uint32_t c) {
    return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

uint32_t xp_byte_level_char(unsigned char byte) {
    if (is_itself(byte))
        return byte;
    if (byte <= 0x20)
        return 0x100u + byte;
    return byte == 0xad ? 0x143 : 0x121u + byte - 0x7f;
}

bool xp_byte_level_decode(const char *string, size_t n, xp_text *out) {
    for (size_t i = 0; i < n;) {
        uint32_t c = 0;
        int used = xp_utf8_decode(string + i, n - i, &c);
        if (used == 0)
            return false;
        i += (size_t)used;
        char byte;
        if (is_itself(c))
            byte = (char)c;
        else if (c >= 0x100 && c <= 0x120)
            byte = (char)(c - 0x100);
        else if (c >= 0x121 && c <= 0x142)
            byte = (char)(c - 0x121 + 0x7f);
        else if (c == 0x143)
            byte = (char)0xad;
        else
            return false;
        xp_text_add(out, &byte, 1);
    }
    return true;
}
