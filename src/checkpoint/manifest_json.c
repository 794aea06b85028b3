#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "checkpoint/manifest.h"
#include "checkpoint/st_dtype.h"
#include "core/json_text.h"

#define FORMAT_NAME "expar-checkpoint"
/* The last line: ` "xxh64": "0123456789abcdef"}` and a newline; the hash is of everything before
 * it. */
#define TAIL_BYTES  30
#define TAIL_PREFIX " \"xxh64\": \""

static void add_head(const xp_manifest *manifest, xp_text *text) {
    xp_text_printf(text, "{\"format\": \"%s\",\n \"version\": %d,\n \"expar\": ", FORMAT_NAME,
                   XP_MANIFEST_VERSION);
    xp_text_add_json(text, manifest->expar, strlen(manifest->expar));
    xp_text_printf(text, ",\n \"step\": %lld,\n \"values\": {", (long long)manifest->step);
    for (int i = 0; i < manifest->n_values; i++) {
        const xp_ckpt_value *value = &manifest->values[i];
        xp_text_puts(text, i > 0 ? ",\n  " : "\n  ");
        xp_text_add_json(text, value->key, strlen(value->key));
        xp_text_puts(text, ": ");
        xp_text_add_json(text, value->value, strlen(value->value));
    }
    xp_text_puts(text, "},\n \"files\": [");
    for (int64_t i = 0; i < manifest->n_files; i++) {
        const xp_manifest_file *file = &manifest->files[i];
        xp_text_printf(text,
                       "%s\n  {\"name\": \"%s\", \"bytes\": %lld, \"xxh64\": \"%016" PRIx64 "\"}",
                       i > 0 ? "," : "", file->name, (long long)file->n_bytes, file->xxh64);
    }
    xp_text_puts(text, "],\n");
}

static void add_tensor(const xp_manifest *manifest, const xp_manifest_tensor *tensor,
                       xp_text *text) {
    xp_text_puts(text, "\n  {\"name\": ");
    xp_text_add_json(text, tensor->name, strlen(tensor->name));
    xp_text_printf(text, ", \"dtype\": \"%s\", \"shape\": [", xp_st_dtype_of(tensor->dtype)->name);
    for (int d = 0; d < tensor->n_dims; d++)
        xp_text_printf(text, "%s%lld", d > 0 ? ", " : "", (long long)tensor->shape[d]);
    xp_text_puts(text, "], \"pieces\": [");
    for (int64_t i = 0; i < tensor->n_pieces; i++) {
        const xp_manifest_piece *piece = &manifest->pieces[tensor->first_piece + i];
        xp_text_printf(text, "%s\n    {\"file\": %lld, \"tensor\": ", i > 0 ? "," : "",
                       (long long)piece->file);
        xp_text_add_json(text, piece->tensor, strlen(piece->tensor));
        xp_text_printf(text, ", \"first\": %lld, \"n\": %lld, \"xxh64\": \"%016" PRIx64 "\"}",
                       (long long)piece->first, (long long)piece->n, piece->xxh64);
    }
    xp_text_puts(text, "]}");
}

xp_status xp_manifest_to_json(const xp_manifest *manifest, xp_text *text) {
    add_head(manifest, text);
    xp_text_puts(text, " \"tensors\": [");
    for (int64_t i = 0; i < manifest->n_tensors; i++) {
        if (i > 0)
            xp_text_puts(text, ",");
        add_tensor(manifest, &manifest->tensors[i], text);
    }
    xp_text_puts(text, "],\n");
    if (!text->failed)
        xp_text_printf(text, TAIL_PREFIX "%016" PRIx64 "\"}\n", XXH64(text->data, text->length, 0));
    return text->failed ? xp_error(XP_ENOMEM, "no memory for a checkpoint's manifest") : XP_OK;
}

/** Where the parser is, for messages; and the first thing that is wrong. */
typedef struct parser {
    const char *path;
    xp_manifest *manifest;
} parser;

static xp_status bad(const parser *p, const char *what) {
    return xp_error(XP_EFORMAT, "%s: %s: damaged or changed after it was written", p->path, what);
}

static bool get_int(const json_t *object, const char *key, int64_t *value) {
    const json_t *item = json_object_get(object, key);
    *value = json_integer_value(item);
    return json_is_integer(item) && *value >= 0;
}

/** A clean string of the object, copied into the manifest's arena; NULL otherwise. */
static const char *get_name(const parser *p, const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    if (text == NULL || !xp_st_name_is_clean(text))
        return NULL;
    return xp_arena_strdup(p->manifest->arena, text);
}

static bool get_hash(const json_t *object, uint64_t *hash) {
    const char *text = json_string_value(json_object_get(object, "xxh64"));
    if (text == NULL || strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16)
        return false;
    *hash = strtoull(text, NULL, 16);
    return true;
}

static xp_status parse_values(const parser *p, const json_t *object) {
    xp_manifest *m = p->manifest;
    size_t n = json_object_size(object);
    m->values = xp_arena_alloc(m->arena, (n + 1) * sizeof *m->values);
    if (!json_is_object(object) || m->values == NULL)
        return bad(p, "values");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value) {
        if (!json_is_string(value))
            return bad(p, "values");
        xp_ckpt_value *out = &m->values[m->n_values++];
        out->key = xp_arena_strdup(m->arena, key);
        out->value = xp_arena_strdup(m->arena, json_string_value(value));
        if (out->key == NULL || out->value == NULL)
            return xp_error(XP_ENOMEM, "no memory to read %s", p->path);
    }
    return XP_OK;
}

static xp_status parse_files(const parser *p, const json_t *list) {
    xp_manifest *m = p->manifest;
    m->n_files = (int64_t)json_array_size(list);
    m->files = xp_arena_alloc(m->arena, ((size_t)m->n_files + 1) * sizeof *m->files);
    if (!json_is_array(list) || m->files == NULL)
        return bad(p, "files");
    for (int64_t i = 0; i < m->n_files; i++) {
        const json_t *item = json_array_get(list, (size_t)i);
        xp_manifest_file *file = &m->files[i];
        file->name = get_name(p, item, "name");
        /* The only names ever written: nothing else may become a path. */
        const char *expected = xp_manifest_shard_name(m->arena, (int)i);
        if (file->name == NULL || expected == NULL || strcmp(file->name, expected) != 0 ||
            !get_int(item, "bytes", &file->n_bytes) || !get_hash(item, &file->xxh64))
            return bad(p, "files");
    }
    return XP_OK;
}

static xp_status parse_pieces(const parser *p, const json_t *list, xp_manifest_tensor *tensor) {
    xp_manifest *m = p->manifest;
    int64_t cursor = 0;
    if (!json_is_array(list))
        return bad(p, "pieces");
    tensor->first_piece = m->n_pieces;
    tensor->n_pieces = (int64_t)json_array_size(list);
    for (int64_t i = 0; i < tensor->n_pieces; i++) {
        const json_t *item = json_array_get(list, (size_t)i);
        xp_manifest_piece *piece = &m->pieces[m->n_pieces++];
        piece->tensor = get_name(p, item, "tensor");
        if (piece->tensor == NULL || !get_int(item, "file", &piece->file) ||
            !get_int(item, "first", &piece->first) || !get_int(item, "n", &piece->n) ||
            !get_hash(item, &piece->xxh64) || piece->file >= m->n_files || piece->first != cursor ||
            piece->n < 1 || piece->n > tensor->n_elements - cursor)
            return bad(p, "pieces");
        cursor += piece->n;
    }
    return cursor == tensor->n_elements ? XP_OK : bad(p, "pieces");
}

static xp_status parse_tensor(const parser *p, const json_t *item, xp_manifest_tensor *tensor) {
    tensor->name = get_name(p, item, "name");
    const char *dtype = json_string_value(json_object_get(item, "dtype"));
    const json_t *shape = json_object_get(item, "shape");
    const xp_st_dtype *type = dtype == NULL ? NULL : xp_st_dtype_find(dtype);
    if (tensor->name == NULL || type == NULL || type->dtype == XP_N_DTYPES ||
        !json_is_array(shape) || json_array_size(shape) > XP_MANIFEST_DIMS)
        return bad(p, "tensors");
    tensor->dtype = type->dtype;
    tensor->n_dims = (int)json_array_size(shape);
    for (int d = 0; d < tensor->n_dims; d++) {
        const json_t *dim = json_array_get(shape, (size_t)d);
        tensor->shape[d] = json_integer_value(dim);
        if (!json_is_integer(dim))
            return bad(p, "tensors");
    }
    int64_t n_bytes;
    if (!xp_st_shape_sizes(type, tensor->n_dims, tensor->shape, &tensor->n_elements, &n_bytes))
        return bad(p, "tensors");
    return parse_pieces(p, json_object_get(item, "pieces"), tensor);
}

static xp_status parse_tensors(const parser *p, const json_t *list) {
    xp_manifest *m = p->manifest;
    size_t n = json_array_size(list), n_pieces = 0;
    if (!json_is_array(list))
        return bad(p, "tensors");
    for (size_t i = 0; i < n; i++)
        n_pieces += json_array_size(json_object_get(json_array_get(list, i), "pieces"));
    m->tensors = xp_arena_alloc(m->arena, (n + 1) * sizeof *m->tensors);
    m->pieces = xp_arena_alloc(m->arena, (n_pieces + 1) * sizeof *m->pieces);
    if (m->tensors == NULL || m->pieces == NULL)
        return xp_error(XP_ENOMEM, "no memory to read %s", p->path);
    for (size_t i = 0; i < n; i++) {
        XP_TRY(parse_tensor(p, json_array_get(list, i), &m->tensors[i]));
        /* Sorted and unique, as written: lookups search by bisection. */
        if (i > 0 && strcmp(m->tensors[i - 1].name, m->tensors[i].name) >= 0)
            return bad(p, "tensors");
        m->n_tensors++;
    }
    return XP_OK;
}

static xp_status parse_root(const parser *p, const json_t *root) {
    const char *format = json_string_value(json_object_get(root, "format"));
    int64_t version;
    if (format == NULL || strcmp(format, FORMAT_NAME) != 0)
        return xp_error(XP_EFORMAT, "%s: no manifest of an expar checkpoint", p->path);
    if (!get_int(root, "version", &version))
        return bad(p, "version");
    if (version != XP_MANIFEST_VERSION)
        return xp_error(XP_EFORMAT,
                        "%s: checkpoint format version %lld; this expar reads version %d", p->path,
                        (long long)version, XP_MANIFEST_VERSION);
    p->manifest->expar = get_name(p, root, "expar");
    if (p->manifest->expar == NULL || !get_int(root, "step", &p->manifest->step))
        return bad(p, "step");
    XP_TRY(parse_values(p, json_object_get(root, "values")));
    XP_TRY(parse_files(p, json_object_get(root, "files")));
    return parse_tensors(p, json_object_get(root, "tensors"));
}

static xp_status check_tail(const char *path, const char *text, size_t n_bytes) {
    char expected[TAIL_BYTES + 1];
    if (n_bytes > TAIL_BYTES) {
        snprintf(expected, sizeof expected, TAIL_PREFIX "%016" PRIx64 "\"}\n",
                 XXH64(text, n_bytes - TAIL_BYTES, 0));
        if (memcmp(text + n_bytes - TAIL_BYTES, expected, TAIL_BYTES) == 0)
            return XP_OK;
    }
    return xp_error(XP_EFORMAT,
                    "%s: its checksum is missing or wrong: damaged or changed after it was written",
                    path);
}

xp_status xp_manifest_parse(const char *path, const char *text, size_t n_bytes,
                            xp_manifest **manifest) {
    XP_TRY(check_tail(path, text, n_bytes));
    XP_TRY(xp_json_refuse_nul(path, text, n_bytes));
    json_error_t error;
    json_t *root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL)
        return xp_error(XP_EFORMAT, "%s:%d:%d: %s", path, error.line, error.column, error.text);
    parser p = {.path = path};
    xp_status status = xp_manifest_create(&p.manifest);
    if (status == XP_OK)
        status = parse_root(&p, root);
    json_decref(root);
    if (status != XP_OK) {
        xp_manifest_destroy(p.manifest);
        return status;
    }
    *manifest = p.manifest;
    return XP_OK;
}
