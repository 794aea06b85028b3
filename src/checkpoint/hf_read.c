#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "checkpoint/hf.h"
#include "checkpoint/st_dtype.h"
#include "core/arena.h"
#include "core/file.h"
#include "core/json_text.h"

#define SINGLE_FILE     "model.safetensors"
#define INDEX_FILE      "model.safetensors.index.json"
#define MAX_INDEX_BYTES ((size_t)1 << 30)

typedef struct named_tensor {
    const char *name; /* the plain one */
    const xp_st_tensor *tensor;
} named_tensor;

struct xp_hf_reader {
    xp_st_file **files;
    int64_t n_files;
    named_tensor *tensors; /* sorted by name */
    int64_t n_tensors;
    xp_arena *arena; /* names that are not as in the file */
};

static int compare_names(const void *a, const void *b) {
    const named_tensor *left = a, *right = b;
    return strcmp(left->name, right->name);
}

static xp_status no_memory(const char *path) {
    return xp_error(XP_ENOMEM, "no memory to open %s", path);
}

static xp_status open_single(const char *path, xp_hf_reader *reader) {
    reader->files = calloc(1, sizeof(xp_st_file *));
    if (reader->files == NULL)
        return no_memory(path);
    XP_TRY(xp_st_open(path, &reader->files[0]));
    reader->n_files = 1;
    int64_t n = xp_st_n_tensors(reader->files[0]);
    reader->tensors = calloc((size_t)n + 1, sizeof *reader->tensors);
    if (reader->tensors == NULL)
        return no_memory(path);
    for (int64_t i = 0; i < n; i++)
        reader->tensors[i].tensor = xp_st_tensor_at(reader->files[0], i);
    reader->n_tensors = n;
    return XP_OK;
}

/** A file of this folder and nothing else: no path, no hidden file, a safetensors file by name. */
static bool is_plain_file_name(const char *name) {
    static const char suffix[] = ".safetensors";
    size_t n = strlen(name), n_suffix = sizeof suffix - 1;
    return n > n_suffix && n < 256 && name[0] != '.' && strchr(name, '/') == NULL &&
           strchr(name, '\\') == NULL && xp_st_name_is_clean(name) &&
           strcmp(name + n - n_suffix, suffix) == 0;
}

static int compare_strings(const void *a, const void *b) {
    const char *const *left = a, *const *right = b;
    return strcmp(*left, *right);
}

/** The distinct file names of the weight map, sorted; borrowed from it. */
static xp_status list_files(const char *index, const json_t *map, const char **names,
                            int64_t *n_names) {
    const char *tensor;
    json_t *value;
    int64_t n = 0, n_unique = 0;
    json_object_foreach((json_t *)map, tensor, value) {
        const char *name = json_string_value(value);
        if (name == NULL || !is_plain_file_name(name))
            return xp_error(XP_EFORMAT,
                            "%s: the file of '%.200s' must be the plain name of a .safetensors "
                            "file in the same folder",
                            index, tensor);
        names[n++] = name;
    }
    if (n > 0)
        qsort(names, (size_t)n, sizeof *names, compare_strings);
    for (int64_t i = 0; i < n; i++) {
        if (i == 0 || strcmp(names[i], names[n_unique - 1]) != 0)
            names[n_unique++] = names[i];
    }
    *n_names = n_unique;
    return XP_OK;
}

static xp_status open_files(const char *folder, const char *index, const char *const *names,
                            int64_t n_names, xp_hf_reader *reader) {
    reader->files = calloc((size_t)n_names + 1, sizeof(xp_st_file *));
    if (reader->files == NULL)
        return no_memory(index);
    for (int64_t i = 0; i < n_names; i++) {
        char *path = xp_path_join(folder, names[i]);
        if (path == NULL)
            return no_memory(index);
        xp_status status = xp_st_open(path, &reader->files[i]);
        free(path);
        if (status == XP_ENOENT)
            return xp_error(XP_EFORMAT, "%s names %s, which is not there", index, names[i]);
        XP_TRY(status);
        reader->n_files++;
    }
    return XP_OK;
}

static xp_status take_map(const char *folder, const char *index, const json_t *map,
                          const char **names, xp_hf_reader *reader) {
    int64_t n_names = 0;
    XP_TRY(list_files(index, map, names, &n_names));
    XP_TRY(open_files(folder, index, names, n_names, reader));
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)map, tensor, value) {
        const char *name = json_string_value(value);
        const char **place = bsearch(&name, names, (size_t)n_names, sizeof *names, compare_strings);
        const xp_st_tensor *found = xp_st_find(reader->files[place - names], tensor);
        if (found == NULL)
            return xp_error(XP_EFORMAT, "%s says that '%.200s' is in %s, but it is not", index,
                            tensor, name);
        reader->tensors[reader->n_tensors++].tensor = found;
    }
    return XP_OK;
}

static xp_status take_index(const char *folder, const char *index, const json_t *root,
                            xp_hf_reader *reader) {
    const json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map))
        return xp_error(XP_EFORMAT, "%s: weight_map is missing or no object", index);
    size_t n = json_object_size(map) + 1;
    const char **names = calloc(n, sizeof *names);
    reader->tensors = calloc(n, sizeof *reader->tensors);
    xp_status status = names != NULL && reader->tensors != NULL
                           ? take_map(folder, index, map, names, reader)
                           : no_memory(index);
    free(names);
    return status;
}

static xp_status open_index(const char *folder, const char *index, xp_hf_reader *reader) {
    char *text;
    size_t n_bytes;
    XP_TRY(xp_file_read(index, MAX_INDEX_BYTES, &text, &n_bytes));
    xp_status clean = xp_json_refuse_nul(index, text, n_bytes);
    json_error_t error;
    json_t *root =
        clean == XP_OK ? json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error) : NULL;
    free(text);
    XP_TRY(clean);
    if (root == NULL)
        return xp_error(XP_EFORMAT, "%s:%d:%d: %s", index, error.line, error.column, error.text);
    xp_status status = take_index(folder, index, root, reader);
    json_decref(root);
    return status;
}

static xp_status open_folder(const char *folder, xp_hf_reader *reader) {
    char *single = xp_path_join(folder, SINGLE_FILE), *index = xp_path_join(folder, INDEX_FILE);
    bool has_single = false, has_index = false;
    xp_status status = single == NULL || index == NULL ? no_memory(folder) : XP_OK;
    if (status == XP_OK)
        status = xp_path_exists(single, &has_single);
    if (status == XP_OK)
        status = xp_path_exists(index, &has_index);
    if (status == XP_OK && has_single)
        status = open_single(single, reader);
    else if (status == XP_OK && has_index)
        status = open_index(folder, index, reader);
    else if (status == XP_OK)
        status = xp_error(XP_ENOENT, "%s holds neither " SINGLE_FILE " nor " INDEX_FILE, folder);
    free(single);
    free(index);
    return status;
}

/* Two tensors under one plain name: which one is meant is not for us to guess. */
static xp_status name_tensors(const char *folder, xp_hf_reader *reader) {
    char plain[1024];
    XP_TRY(xp_arena_create(&reader->arena));
    for (int64_t i = 0; i < reader->n_tensors; i++) {
        named_tensor *named = &reader->tensors[i];
        named->name = named->tensor->name;
        if (xp_hf_plain_name(named->name, sizeof plain, plain))
            named->name = xp_arena_strdup(reader->arena, plain);
        if (named->name == NULL)
            return no_memory(folder);
    }
    if (reader->n_tensors > 0)
        qsort(reader->tensors, (size_t)reader->n_tensors, sizeof *reader->tensors, compare_names);
    for (int64_t i = 1; i < reader->n_tensors; i++) {
        const named_tensor *a = &reader->tensors[i - 1], *b = &reader->tensors[i];
        if (strcmp(a->name, b->name) == 0)
            return xp_error(XP_EFORMAT,
                            "%s holds both %.200s and %.200s, which name the same tensor %.200s: "
                            "remove one of them",
                            folder, a->tensor->name, b->tensor->name, a->name);
    }
    return XP_OK;
}

xp_status xp_hf_open(const char *folder, xp_hf_reader **reader) {
    bool exists = false, is_folder = false;
    XP_TRY(xp_path_exists(folder, &exists));
    XP_TRY(xp_path_is_folder(folder, &is_folder));
    if (!exists)
        return xp_error(XP_ENOENT, "%s: no such file or folder", folder);
    xp_hf_reader *made = calloc(1, sizeof *made);
    if (made == NULL)
        return no_memory(folder);
    xp_status status = is_folder ? open_folder(folder, made) : open_single(folder, made);
    if (status == XP_OK)
        status = name_tensors(folder, made);
    if (status != XP_OK) {
        xp_hf_close(made);
        return status;
    }
    *reader = made;
    return XP_OK;
}

void xp_hf_close(xp_hf_reader *reader) {
    if (reader == NULL)
        return;
    for (int64_t i = 0; i < reader->n_files; i++)
        xp_st_close(reader->files[i]);
    free(reader->files);
    free(reader->tensors);
    xp_arena_destroy(reader->arena);
    free(reader);
}

int64_t xp_hf_index(const xp_hf_reader *reader, const char *name) {
    const named_tensor key = {.name = name};
    const named_tensor *found = bsearch(&key, reader->tensors, (size_t)reader->n_tensors,
                                        sizeof *reader->tensors, compare_names);
    return found == NULL ? -1 : found - reader->tensors;
}

const xp_st_tensor *xp_hf_find(const xp_hf_reader *reader, const char *name) {
    int64_t i = xp_hf_index(reader, name);
    return i < 0 ? NULL : reader->tensors[i].tensor;
}

int64_t xp_hf_n_tensors(const xp_hf_reader *reader) {
    return reader->n_tensors;
}

const xp_st_tensor *xp_hf_tensor_at(const xp_hf_reader *reader, int64_t i) {
    return reader->tensors[i].tensor;
}

const char *xp_hf_name_at(const xp_hf_reader *reader, int64_t i) {
    return reader->tensors[i].name;
}
