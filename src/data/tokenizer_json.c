/* JSON as the readers of tokenizer.json want it: a parsed object, lenient about values, strict about text. */
#include "data/tokenizer_load.h"

#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/json_text.h"

#define MAX_FILE_BYTES ((size_t)512 << 20)

xp_status xp_tokenizer_refuse(xp_status code, const char *place, const char *what) {
    return xp_error(code, "%s: %s", place, what);
}

const char *xp_json_text(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

bool xp_json_is_set(const json_t *value) {
    return value && !json_is_null(value) && !json_is_false(value) &&
           !(json_is_string(value) && json_string_length(value) == 0) &&
           !(json_is_number(value) && json_number_value(value) == 0);
}

uint64_t xp_tokenizer_hash_bytes(uint64_t hash, const void *data, size_t n) {
    const unsigned char *bytes = data;
    for (; n >= 8; bytes += 8, n -= 8) {
        uint64_t chunk;
        memcpy(&chunk, bytes, 8);
        hash = (hash ^ chunk) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    for (; n > 0; bytes++, n--)
        hash = (hash ^ *bytes) * 0x100000001b3u;
    return hash;
}

xp_status xp_tokenizer_parse_json(const char *path, uint64_t *hash, json_t **root) {
    char *data = NULL;
    size_t n = 0;
    XP_TRY(xp_file_read(path, MAX_FILE_BYTES, &data, &n));
    json_error_t error = {0};
    *hash = xp_tokenizer_hash_bytes(*hash, data, n);
    *root = NULL;
    xp_text softened = {0};
    bool changed = false;
    xp_status status = xp_json_refuse_nul(path, data, n);
    if (status == XP_OK)
        xp_json_soften_numbers(data, n, &softened, &changed);
    if (status == XP_OK && softened.failed)
        status = xp_error(XP_ENOMEM, "%s: out of memory", path);
    if (status == XP_OK)
        *root = json_loadb(changed ? softened.data : data, changed ? softened.length : n,
                           JSON_REJECT_DUPLICATES, &error);
    free(data);
    xp_text_free(&softened);
    XP_TRY(status);
    if (!*root)
        return xp_error(XP_EFORMAT, "line %d, column %d: %s", error.line, error.column, error.text);
    if (!json_is_object(*root)) {
        json_decref(*root);
        *root = NULL;
        return xp_error(XP_EFORMAT, "not a JSON object");
    }
    return XP_OK;
}
