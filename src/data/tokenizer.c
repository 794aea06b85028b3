#include "data/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include "data/nfc.h"
#include "data/tokenizer_internal.h"

/* One encode call: everything that changes while it runs. */
typedef struct encoder {
    const xp_tokenizer *tokenizer;
    xp_token_list *out;
    xp_bpe_scratch *bpe;
    xp_pattern_scratch *patterns[XP_TOKENIZER_MAX_STEPS];
    xp_text prefixed[XP_TOKENIZER_MAX_STEPS];
    xp_text normalized;
} encoder;

/* A piece on its way through the steps. */
typedef struct stage {
    encoder *e;
    int step;
} stage;

static xp_status push(xp_token_list *list, int32_t id) {
    XP_TRY(xp_token_list_reserve(list, 1));
    list->ids[list->n++] = id;
    return XP_OK;
}

static xp_status run_step(encoder *e, int step, const char *text, size_t n);

static xp_status take_piece(void *context, const xp_pattern_piece *piece) {
    const stage *at = context;
    const xp_split_step *step = &at->e->tokenizer->steps[at->step];
    if (piece->matched ? !step->keep_matches : !step->keep_gaps)
        return XP_OK;
    return run_step(at->e, at->step + 1, piece->bytes, piece->n);
}

static xp_status run_step(encoder *e, int step, const char *text, size_t n) {
    const xp_tokenizer *t = e->tokenizer;
    if (step == t->n_steps)
        return xp_bpe_encode(t->bpe, e->bpe, text, n, e->out);
    const xp_pattern *pattern = t->steps[step].pattern;
    if (pattern) {
        stage at = {e, step};
        return xp_pattern_split(pattern, e->patterns[step], text, n, take_piece, &at);
    }
    if (text[0] == ' ')
        return run_step(e, step + 1, text, n);
    xp_text *with_space = &e->prefixed[step];
    xp_text_clear(with_space);
    xp_text_puts(with_space, " ");
    xp_text_add(with_space, text, n);
    if (with_space->failed)
        return xp_error(XP_ENOMEM, "no memory to tokenise %zu bytes", n);
    return run_step(e, step + 1, with_space->data, with_space->length);
}

static xp_status take_normalized(void *context, const xp_added_token *token, const char *text,
                                 size_t n) {
    encoder *e = context;
    return token ? push(e->out, token->id) : run_step(e, 0, text, n);
}

static xp_status take_raw(void *context, const xp_added_token *token, const char *text, size_t n) {
    encoder *e = context;
    if (token)
        return push(e->out, token->id);
    bool changed = false;
    if (e->tokenizer->nfc)
        XP_TRY(xp_nfc_normalize(text, n, &e->normalized, &changed));
    if (changed) {
        text = e->normalized.data;
        n = e->normalized.length;
    }
    return xp_added_tokens_split(e->tokenizer->added_normalized, text, n, take_normalized, e);
}

/* How many bytes at the invalid s[0] one U+FFFD stands for: the longest start of a valid sequence,
 * at least one byte. */
static size_t invalid_part(const char *s, size_t n) {
    const unsigned char *u = (const unsigned char *)s;
    size_t wanted = u[0] >= 0xf0 && u[0] <= 0xf4   ? 4
                    : u[0] >= 0xe0 && u[0] <= 0xef ? 3
                    : u[0] >= 0xc2 && u[0] <= 0xdf ? 2
                                                   : 1;
    unsigned low = u[0] == 0xe0 ? 0xa0 : u[0] == 0xf0 ? 0x90 : 0x80;
    unsigned high = u[0] == 0xed ? 0x9f : u[0] == 0xf4 ? 0x8f : 0xbf;
    size_t length = 1;
    while (length < wanted && length < n && u[length] >= low && u[length] <= high) {
        length++;
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

xp_status xp_tokenizer_repair_utf8(const char *text, size_t n, xp_text *out, bool *changed) {
    size_t valid = xp_utf8_valid_prefix(text, n), done = 0;
    *changed = valid < n;
    if (!*changed)
        return XP_OK;
    xp_text_clear(out);
    while (done < n) {
        xp_text_add(out, text + done, valid);
        done += valid;
        if (done < n) {
            xp_text_puts(out, "\xef\xbf\xbd");
            done += invalid_part(text + done, n - done);
        }
        valid = xp_utf8_valid_prefix(text + done, n - done);
    }
    return out->failed ? xp_error(XP_ENOMEM, "no memory to repair %zu bytes of text", n) : XP_OK;
}

static void encoder_free(encoder *e) {
    for (int i = 0; i < e->tokenizer->n_steps; i++) {
        xp_pattern_scratch_destroy(e->patterns[i]);
        xp_text_free(&e->prefixed[i]);
    }
    xp_text_free(&e->normalized);
    xp_bpe_scratch_destroy(e->bpe);
}

xp_status xp_tokenizer_encode(const xp_tokenizer *tokenizer, const char *text, size_t n_bytes,
                              xp_token_list *list) {
    if (n_bytes == 0)
        return XP_OK;
    encoder e = {.tokenizer = tokenizer, .out = list};
    int64_t n_before = list->n;
    xp_text repaired = {0};
    xp_status status = XP_OK;
    bool changed = false;
    XP_TRY_GOTO(status, xp_tokenizer_repair_utf8(text, n_bytes, &repaired, &changed), done);
    if (changed) {
        text = repaired.data;
        n_bytes = repaired.length;
    }
    XP_TRY_GOTO(status, xp_bpe_scratch_create(n_bytes, &e.bpe), done);
    for (int i = 0; i < tokenizer->n_steps; i++)
        if (tokenizer->steps[i].pattern)
            XP_TRY_GOTO(status,
                        xp_pattern_scratch_create(tokenizer->steps[i].pattern, &e.patterns[i]),
                        done);
    status = xp_added_tokens_split(tokenizer->added_raw, text, n_bytes, take_raw, &e);
done:
    if (status != XP_OK)
        list->n = n_before;
    encoder_free(&e);
    xp_text_free(&repaired);
    return status;
}

xp_status xp_tokenizer_encode_special(const xp_tokenizer *tokenizer, const char *text,
                                      size_t n_bytes, xp_token_list *list) {
    int64_t n_before = list->n;
    xp_status status = XP_OK;
    for (int i = 0; i < tokenizer->n_prefix && status == XP_OK; i++)
        status = push(list, tokenizer->prefix[i]);
    if (status == XP_OK)
        status = xp_tokenizer_encode(tokenizer, text, n_bytes, list);
    for (int i = 0; i < tokenizer->n_suffix && status == XP_OK; i++)
        status = push(list, tokenizer->suffix[i]);
    if (status != XP_OK)
        list->n = n_before;
    return status;
}

xp_status xp_tokenizer_encode_document(const xp_tokenizer *tokenizer, const char *text,
                                       size_t n_bytes, xp_token_list *list) {
    int64_t n_before = list->n;
    xp_status status = XP_OK;
    if (tokenizer->bos >= 0)
        status = push(list, tokenizer->bos);
    if (status == XP_OK)
        status = xp_tokenizer_encode(tokenizer, text, n_bytes, list);
    if (status == XP_OK && tokenizer->eos >= 0)
        status = push(list, tokenizer->eos);
    if (status != XP_OK)
        list->n = n_before;
    return status;
}

xp_status xp_tokenizer_decode(const xp_tokenizer *tokenizer, const int32_t *ids, int64_t n,
                              bool skip_special, char **text, size_t *n_bytes) {
    xp_text out = {0};
    xp_text_puts(&out, "");
    for (int64_t i = 0; i < n; i++) {
        int32_t id = ids[i];
        if (id < 0 || id >= tokenizer->n_tokens || tokenizer->kinds[id] == XP_TOKEN_ABSENT) {
            xp_text_free(&out);
            return xp_error(XP_EINVAL, "id %d at position %lld is no token of this tokenizer", id,
                            (long long)i);
        }
        if (skip_special && tokenizer->kinds[id] == XP_TOKEN_SPECIAL)
            continue;
        xp_text_add(&out, tokenizer->bytes + tokenizer->offsets[id],
                    (size_t)(tokenizer->offsets[id + 1] - tokenizer->offsets[id]));
    }
    if (out.failed) {
        xp_text_free(&out);
        return xp_error(XP_ENOMEM, "no memory for the text of %lld tokens", (long long)n);
    }
    *text = out.data;
    *n_bytes = out.length;
    return XP_OK;
}

int64_t xp_tokenizer_vocab_size(const xp_tokenizer *tokenizer) {
    return tokenizer->n_tokens;
}

int32_t xp_tokenizer_bos(const xp_tokenizer *tokenizer) {
    return tokenizer->bos;
}

int32_t xp_tokenizer_eos(const xp_tokenizer *tokenizer) {
    return tokenizer->eos;
}

uint64_t xp_tokenizer_hash(const xp_tokenizer *tokenizer) {
    return tokenizer->hash;
}

void xp_tokenizer_destroy(xp_tokenizer *tokenizer) {
    if (!tokenizer)
        return;
    for (int i = 0; i < tokenizer->n_steps; i++)
        xp_pattern_destroy(tokenizer->steps[i].pattern);
    xp_added_tokens_destroy(tokenizer->added_raw);
    xp_added_tokens_destroy(tokenizer->added_normalized);
    xp_bpe_destroy(tokenizer->bpe);
    free(tokenizer->bytes);
    free(tokenizer->offsets);
    free(tokenizer->kinds);
    free(tokenizer->model_bytes);
    free(tokenizer->model_offsets);
    free(tokenizer->prefix);
    free(tokenizer->suffix);
    free(tokenizer);
}
