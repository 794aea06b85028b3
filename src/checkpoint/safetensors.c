#include "checkpoint/safetensors.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>
#include "checkpoint/st_dtype.h"
#include "core/arena.h"
#include "core/file.h"
#include "core/json_text.h"

#define HASH_CHUNK ((size_t)1 << 24)

struct xp_st_file {
    const char *path;
    xp_file_map map;
    xp_arena *arena;
    json_t *metadata; /* NULL when the file has none */
    xp_st_tensor *tensors;
    const xp_st_tensor *
        *by_name; /* sorted: lookups stay fast whatever names a file was built with */
    int64_t n_tensors;
};

static int compare_names(const void *a, const void *b) {
    const xp_st_tensor *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

static int compare_places(const void *a, const void *b) {
    const xp_st_tensor *left = a, *right = b;
    if (left->data != right->data)
        return (const char *)left->data < (const char *)right->data ? -1 : 1;
    if (left->n_bytes != right->n_bytes)
        return left->n_bytes < right->n_bytes ? -1 : 1;
    return strcmp(left->name, right->name);
}

/** Where the header's JSON lies: behind its 8-byte length, without the padding. */
static xp_status find_header(const xp_st_file *file, size_t *json_bytes, size_t *data_offset) {
    const unsigned char *bytes = file->map.data;
    size_t total = file->map.n_bytes;
    if (total < 8)
        return xp_error(XP_EFORMAT, "%s: %zu bytes are too few for a safetensors file", file->path,
                        total);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | bytes[i];
    if (length > XP_ST_MAX_HEADER)
        return xp_error(XP_EFORMAT, "%s: header of %llu bytes, the limit is %d", file->path,
                        (unsigned long long)length, XP_ST_MAX_HEADER);
    if (length > total - 8)
        return xp_error(XP_EFORMAT, "%s: header of %llu bytes in a file of %zu: truncated?",
                        file->path, (unsigned long long)length, total);
    size_t end = (size_t)length;
    while (end > 0 && bytes[8 + end - 1] == ' ')
        end--;
    if (end < 2 || bytes[8] != '{' || bytes[8 + end - 1] != '}')
        return xp_error(XP_EFORMAT, "%s: the header is no JSON object: not a safetensors file?",
                        file->path);
    *json_bytes = end;
    *data_offset = 8 + (size_t)length;
    return XP_OK;
}

static xp_status take_metadata(xp_st_file *file, json_t *object) {
    const char *key;
    json_t *value;
    if (!json_is_object(object))
        return xp_error(XP_EFORMAT, "%s: __metadata__ is no object", file->path);
    json_object_foreach(object, key, value) {
        if (!json_is_string(value))
            return xp_error(XP_EFORMAT, "%s: __metadata__ value of '%.100s' is no string",
                            file->path, key);
    }
    file->metadata = json_incref(object);
    return XP_OK;
}

static xp_status tensor_error(const xp_st_file *file, const char *name, const char *what) {
    return xp_error(XP_EFORMAT, "%s: tensor '%.200s': %s", file->path, name, what);
}

static xp_status take_shape(const xp_st_file *file, const xp_st_dtype *type, const json_t *shape,
                            xp_st_tensor *tensor) {
    if (!json_is_array(shape))
        return tensor_error(file, tensor->name, "shape is no list");
    if (json_array_size(shape) > XP_ST_MAX_DIMS)
        return xp_error(XP_EFORMAT, "%s: tensor '%.200s' has %zu dimensions, at most %d are read",
                        file->path, tensor->name, json_array_size(shape), XP_ST_MAX_DIMS);
    tensor->n_dims = (int)json_array_size(shape);
    for (int i = 0; i < tensor->n_dims; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return tensor_error(file, tensor->name, "a dimension is no non-negative integer");
        tensor->shape[i] = json_integer_value(dim);
    }
    if (!xp_st_shape_sizes(type, tensor->n_dims, tensor->shape, &tensor->n_elements,
                           &tensor->n_bytes))
        return tensor_error(file, tensor->name, "the product of its shape is too large");
    return XP_OK;
}

static xp_status take_offsets(const xp_st_file *file, const json_t *offsets, size_t data_offset,
                              xp_st_tensor *tensor) {
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return tensor_error(file, tensor->name, "data_offsets are not two integers");
    int64_t begin = json_integer_value(first), end = json_integer_value(last);
    int64_t n_data = (int64_t)(file->map.n_bytes - data_offset);
    if (begin < 0 || end < begin || end > n_data)
        return xp_error(
            XP_EFORMAT, "%s: tensor '%.200s' claims bytes [%lld, %lld) of %lld: truncated file?",
            file->path, tensor->name, (long long)begin, (long long)end, (long long)n_data);
    if (end - begin != tensor->n_bytes)
        return xp_error(
            XP_EFORMAT, "%s: tensor '%.200s' has %lld bytes, its type and shape make %lld",
            file->path, tensor->name, (long long)(end - begin), (long long)tensor->n_bytes);
    tensor->data = file->map.data + data_offset + begin;
    return XP_OK;
}

static xp_status take_tensor(xp_st_file *file, const char *name, const json_t *info,
                             size_t data_offset) {
    xp_st_tensor *tensor = &file->tensors[file->n_tensors];
    if (!xp_st_name_is_clean(name))
        return xp_error(XP_EFORMAT, "%s: the name of tensor %lld holds a control character",
                        file->path, (long long)file->n_tensors);
    tensor->name = xp_arena_strdup(file->arena, name);
    if (tensor->name == NULL)
        return xp_error(XP_ENOMEM, "no memory for the tensor names of %s", file->path);
    const json_t *dtype = json_object_get(info, "dtype");
    if (json_object_size(info) != 3 || !json_is_string(dtype))
        return tensor_error(file, name, "must be an object of dtype, shape and data_offsets");
    const xp_st_dtype *type = xp_st_dtype_find(json_string_value(dtype));
    if (type == NULL)
        return xp_error(XP_EFORMAT, "%s: tensor '%.200s' has the unknown type '%.40s'", file->path,
                        name, json_string_value(dtype));
    tensor->dtype = type->dtype;
    memcpy(tensor->dtype_name, type->name, strlen(type->name) + 1);
    XP_TRY(take_shape(file, type, json_object_get(info, "shape"), tensor));
    XP_TRY(take_offsets(file, json_object_get(info, "data_offsets"), data_offset, tensor));
    file->n_tensors++;
    return XP_OK;
}

/** The tensors, sorted by place, must follow each other without overlap or hole up to the last
 * byte. */
static xp_status check_coverage(const xp_st_file *file, size_t data_offset) {
    const unsigned char *base = file->map.data + data_offset;
    int64_t cursor = 0, n_data = (int64_t)(file->map.n_bytes - data_offset);
    for (int64_t i = 0; i < file->n_tensors; i++) {
        const xp_st_tensor *tensor = &file->tensors[i];
        int64_t begin = (const unsigned char *)tensor->data - base;
        if (begin < cursor)
            return tensor_error(file, tensor->name, "its bytes overlap those of another tensor");
        if (begin > cursor)
            return tensor_error(file, tensor->name, "there are unused bytes before it");
        cursor = begin + tensor->n_bytes;
    }
    if (cursor != n_data)
        return xp_error(XP_EFORMAT, "%s: %lld bytes after the last tensor", file->path,
                        (long long)(n_data - cursor));
    return XP_OK;
}

static xp_status take_header(xp_st_file *file, json_t *root, size_t data_offset) {
    const char *name;
    json_t *info;
    size_t n = json_object_size(root);
    file->tensors = calloc(n + 1, sizeof *file->tensors);
    file->by_name = calloc(n + 1, sizeof *file->by_name);
    if (file->tensors == NULL || file->by_name == NULL)
        return xp_error(XP_ENOMEM, "no memory for the %zu tensors of %s", n, file->path);
    json_object_foreach(root, name, info) {
        if (strcmp(name, "__metadata__") == 0)
            XP_TRY(take_metadata(file, info));
        else
            XP_TRY(take_tensor(file, name, info, data_offset));
    }
    qsort(file->tensors, (size_t)file->n_tensors, sizeof *file->tensors, compare_places);
    XP_TRY(check_coverage(file, data_offset));
    for (int64_t i = 0; i < file->n_tensors; i++)
        file->by_name[i] = &file->tensors[i];
    qsort(file->by_name, (size_t)file->n_tensors, sizeof *file->by_name, compare_names);
    return XP_OK;
}

static xp_status read_header(xp_st_file *file) {
    size_t json_bytes = 0, data_offset = 0;
    XP_TRY(find_header(file, &json_bytes, &data_offset));
    XP_TRY(xp_json_refuse_nul(file->path, (const char *)file->map.data + 8, json_bytes));
    json_error_t error;
    json_t *root =
        json_loadb((const char *)file->map.data + 8, json_bytes, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL)
        return xp_error(XP_EFORMAT, "%s: header: %s (byte %d)", file->path, error.text,
                        error.position);
    xp_status status = take_header(file, root, data_offset);
    json_decref(root);
    return status;
}

xp_status xp_st_open(const char *path, xp_st_file **file) {
    xp_st_file *opened = calloc(1, sizeof *opened);
    if (opened == NULL)
        return xp_error(XP_ENOMEM, "no memory to open %s", path);
    xp_status status;
    XP_TRY_GOTO(status, xp_arena_create(&opened->arena), fail);
    opened->path = xp_arena_strdup(opened->arena, path);
    if (opened->path == NULL) {
        status = xp_error(XP_ENOMEM, "no memory to open %s", path);
        goto fail;
    }
    XP_TRY_GOTO(status, xp_file_map_open(path, &opened->map), fail);
    XP_TRY_GOTO(status, read_header(opened), fail);
    *file = opened;
    return XP_OK;
fail:
    xp_st_close(opened);
    return status;
}

void xp_st_close(xp_st_file *file) {
    if (file == NULL)
        return;
    json_decref(file->metadata);
    xp_file_map_close(&file->map);
    xp_arena_destroy(file->arena);
    free(file->by_name);
    free(file->tensors);
    free(file);
}

int64_t xp_st_n_tensors(const xp_st_file *file) {
    return file->n_tensors;
}

const xp_st_tensor *xp_st_tensor_at(const xp_st_file *file, int64_t i) {
    return &file->tensors[i];
}

const xp_st_tensor *xp_st_find(const xp_st_file *file, const char *name) {
    const xp_st_tensor key = {.name = name}, *pointer = &key;
    const xp_st_tensor *const *found = bsearch(&pointer, file->by_name, (size_t)file->n_tensors,
                                               sizeof *file->by_name, compare_names);
    return found == NULL ? NULL : *found;
}

const char *xp_st_metadata(const xp_st_file *file, const char *key) {
    return json_string_value(json_object_get(file->metadata, key));
}

int64_t xp_st_n_bytes(const xp_st_file *file) {
    return (int64_t)file->map.n_bytes;
}

/** Whole pages inside the range: its neighbours' stay. The map is read-only, so nothing can be
 * lost. */
static void release_range(const void *data, size_t n_bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)data + n_bytes) / page * page;
    /* Only advice: when the system declines it, the pages stay and nothing is wrong. */
    if (begin < end && madvise((void *)begin, end - begin, MADV_DONTNEED) != 0)
        errno = 0;
}

void xp_st_release(const xp_st_tensor *tensor) {
    release_range(tensor->data, (size_t)tensor->n_bytes);
}

xp_status xp_st_xxh64(const xp_st_file *file, uint64_t *hash) {
    XXH64_state_t *state = XXH64_createState();
    if (state == NULL)
        return xp_error(XP_ENOMEM, "no memory to check a safetensors file");
    XXH64_reset(state, 0);
    for (size_t at = 0, n; at < file->map.n_bytes; at += n) {
        n = file->map.n_bytes - at < HASH_CHUNK ? file->map.n_bytes - at : HASH_CHUNK;
        XXH64_update(state, file->map.data + at, n);
        release_range(file->map.data + at, n);
    }
    *hash = XXH64_digest(state);
    XXH64_freeState(state);
    return XP_OK;
}
