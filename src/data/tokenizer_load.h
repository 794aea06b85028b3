/** Reading tokenizer.json: what tokenizer_load.c (model, added tokens) and tokenizer_steps.c
 * (pipeline) share. */
#ifndef XP_DATA_TOKENIZER_LOAD_H
#define XP_DATA_TOKENIZER_LOAD_H

#include <jansson.h>
#include "data/tokenizer_internal.h"

/* tokenizer_json.c */
/** "place: what" as the last error; returns `code`. */
xp_status xp_tokenizer_refuse(xp_status code, const char *place, const char *what);
/** The string under `key`, "" when there is none. */
const char *xp_json_text(const json_t *object, const char *key);
/** Not missing, null, false, 0 or "". */
bool xp_json_is_set(const json_t *value);
/** `hash` continued over n bytes. */
uint64_t xp_tokenizer_hash_bytes(uint64_t hash, const void *data, size_t n);
/** Parse an object's file; *hash goes on over its bytes. Errors of the text name line and column, not the path. */
XP_NODISCARD xp_status xp_tokenizer_parse_json(const char *path, uint64_t *hash, json_t **root);
/* tokenizer_load.c */
/** The id of a token by its text, -1: none. */
int32_t xp_tokenizer_find(const xp_tokenizer *t, const char *text);

/* tokenizer_steps.c, tokenizer_names.c */
/** Normaliser and pre-tokeniser: fills nfc and steps. Errors name the JSON place. */
XP_NODISCARD xp_status xp_tokenizer_read_steps(xp_tokenizer *t, const json_t *root);
/** BOS and EOS from the files beside tokenizer.json, and border_note. After the template. */
XP_NODISCARD xp_status xp_tokenizer_read_names(xp_tokenizer *t, const char *folder);
/** Post-processor: fills prefix and suffix. */
XP_NODISCARD xp_status xp_tokenizer_read_template(xp_tokenizer *t, const json_t *root);

#endif
