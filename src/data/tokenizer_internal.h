/** What a loaded tokenizer is: shared by tokenizer_load.c (reads it) and tokenizer.c (uses it). */
#ifndef XP_DATA_TOKENIZER_INTERNAL_H
#define XP_DATA_TOKENIZER_INTERNAL_H

#include "core/text.h"
#include "data/added_tokens.h"
#include "data/bpe.h"
#include "data/pattern.h"
#include "data/tokenizer.h"

#define XP_TOKENIZER_MAX_STEPS 16
#define XP_TOKENIZER_MAX_ID    ((int32_t)1 << 24)

/** One step of pre-tokenisation; every piece that a step gives goes through the next. */
typedef struct xp_split_step {
    xp_pattern *pattern; /* NULL: put a space in front of a piece that has none */
    bool keep_matches, keep_gaps;
} xp_split_step;

/** What a token is apart from its bytes. */
enum { XP_TOKEN_ABSENT = 0, XP_TOKEN_MODEL, XP_TOKEN_ADDED, XP_TOKEN_SPECIAL };

struct xp_tokenizer {
    char *bytes;      /* all tokens' bytes, by id */
    int64_t *offsets; /* [n_tokens + 1] */
    uint8_t *kinds;   /* [n_tokens] */
    int32_t n_tokens; /* one past the largest id */

    char *model_bytes; /* the same without added tokens, and without tokens that are no byte string:
                          what merging sees */
    int64_t *model_offsets; /* [n_tokens + 1] */
    xp_bpe *bpe;

    bool nfc;
    xp_split_step steps[XP_TOKENIZER_MAX_STEPS];
    int n_steps;
    xp_added_tokens *added_raw;        /* looked for in the text as it is */
    xp_added_tokens *added_normalized; /* looked for after normalisation */

    int32_t *prefix, *suffix; /* what the post-processor puts around a text */
    int n_prefix, n_suffix;
    int32_t bos, eos;
    char border_note[256]; /* "": nothing to say */
    bool border_warns;
    uint64_t hash;
};

/** @param out gets the text with every maximal invalid part replaced by U+FFFD; left alone when
 * *changed is false */
XP_NODISCARD xp_status xp_tokenizer_repair_utf8(const char *text, size_t n, xp_text *out,
                                                bool *changed);

/** The character that stands for a byte in the files of byte-level BPE. */
uint32_t xp_byte_level_char(unsigned char byte);
/** Inverse of xp_byte_level_char() over a whole string. @return false when a character stands for
 * no byte */
bool xp_byte_level_decode(const char *string, size_t n, xp_text *out);

#endif
