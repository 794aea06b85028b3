/* Which tokens begin and end a document: the files beside tokenizer.json say so. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "data/tokenizer_load.h"

int32_t xp_tokenizer_find(const xp_tokenizer *t, const char *text) {
    size_t n = strlen(text);
    for (int32_t id = t->n_tokens - 1; id >= 0; id--)
        if (t->kinds[id] != XP_TOKEN_ABSENT && (size_t)(t->offsets[id + 1] - t->offsets[id]) == n &&
            !memcmp(t->bytes + t->offsets[id], text, n))
            return id;
    return -1;
}

/* The object in folder/name; *object stays NULL when there is no such file. */
static xp_status read_beside(const char *folder, const char *name, char **path, json_t **object) {
    uint64_t unused = 0;
    *object = NULL;
    *path = xp_path_join(folder, name);
    if (*path == NULL)
        return xp_error(XP_ENOMEM, "no memory for a path");
    xp_status status = xp_tokenizer_parse_json(*path, &unused, object);
    if (status != XP_ENOENT)
        return status == XP_OK || strstr(xp_last_error(), *path)
                   ? status
                   : xp_error_context(status, "%s", *path);
    xp_error_clear();
    return XP_OK;
}

/* "bos_token" and the like: a string, an added token's object, or null. */
static xp_status read_named_token(const xp_tokenizer *t, const json_t *config, const char *key,
                                  int32_t *id) {
    const json_t *value = json_object_get(config, key);
    if (json_is_object(value))
        value = json_object_get(value, "content");
    if (!xp_json_is_set(value))
        return XP_OK;
    if (!json_is_string(value))
        return xp_tokenizer_refuse(XP_EFORMAT, key,
                                   "neither a string nor an object with a content");
    *id = xp_tokenizer_find(t, json_string_value(value));
    if (*id < 0)
        return xp_error(XP_EFORMAT, "%s: \"%.60s\" is no token of tokenizer.json", key,
                        json_string_value(value));
    return XP_OK;
}

static void note_source(xp_tokenizer *t, const char *name) {
    int64_t n = t->offsets[t->eos + 1] - t->offsets[t->eos];
    snprintf(t->border_note, sizeof t->border_note, "the EOS token, %.*s, is the one of %s",
             (int)(n < 60 ? n : 60), t->bytes + t->offsets[t->eos], name);
}

/* tokenizer_config.json or special_tokens_map.json; *found: the file is there. */
static xp_status read_names(xp_tokenizer *t, const char *folder, const char *name, bool *found) {
    char *path = NULL;
    json_t *config = NULL;
    int32_t eos = t->eos;
    xp_status status = read_beside(folder, name, &path, &config);
    *found = config != NULL;
    if (status == XP_OK && config != NULL) {
        if (t->bos < 0)
            status = read_named_token(t, config, "bos_token", &t->bos);
        if (status == XP_OK && t->eos < 0)
            status = read_named_token(t, config, "eos_token", &t->eos);
        if (status != XP_OK)
            status = xp_error_context(status, "%s", path);
    }
    if (status == XP_OK && t->eos != eos && strcmp(name, "tokenizer_config.json") != 0)
        note_source(t, name);
    json_decref(config);
    free(path);
    return status;
}

/* "eos_token_id" of a model's configuration: a number or a list. No BOS from there: models name one that their tokenizer
 * does not use. */
static xp_status read_model_eos(xp_tokenizer *t, const char *folder, const char *name) {
    char *path = NULL;
    json_t *config = NULL;
    xp_status status = read_beside(folder, name, &path, &config);
    const json_t *value = json_object_get(config, "eos_token_id");
    if (json_is_array(value))
        value = json_array_get(value, 0);
    json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
    if (status == XP_OK && id >= 0 && id < t->n_tokens && t->kinds[id] != XP_TOKEN_ABSENT) {
        t->eos = (int32_t)id;
        note_source(t, name);
    }
    json_decref(config);
    free(path);
    return status;
}

xp_status xp_tokenizer_read_names(xp_tokenizer *t, const char *folder) {
    static const char *const model_files[] = {"config.json", "generation_config.json"};
    bool has_config, has_map;
    XP_TRY(read_names(t, folder, "tokenizer_config.json", &has_config));
    if (!has_config || t->eos < 0)
        XP_TRY(read_names(t, folder, "special_tokens_map.json", &has_map));
    if (!has_config && t->bos < 0)
        t->bos = t->n_prefix > 0 ? t->prefix[0] : -1;
    if (!has_config && t->eos < 0)
        t->eos = t->n_suffix > 0 ? t->suffix[t->n_suffix - 1] : -1;
    for (int i = 0; i < 2 && t->eos < 0; i++)
        XP_TRY(read_model_eos(t, folder, model_files[i]));
    if (t->eos < 0) {
        t->border_warns = true;
        snprintf(t->border_note, sizeof t->border_note,
                 "the tokenizer defines no EOS%s: documents are packed without a border token "
                 "behind them; name eos_token in tokenizer_config.json",
                 t->bos < 0 ? " and no BOS" : "");
    }
    return XP_OK;
}

const char *xp_tokenizer_border_note(const xp_tokenizer *t, bool *warning) {
    *warning = t->border_warns;
    return t->border_note[0] != '\0' ? t->border_note : NULL;
}

bool xp_tokenizer_has(const xp_tokenizer *t, int64_t id) {
    return id >= 0 && id < t->n_tokens && t->kinds[id] != XP_TOKEN_ABSENT;
}
