#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "checkpoint/outfile.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/st_dtype.h"
#include "core/arena.h"
#include "core/text.h"

struct xp_st_writer {
    const char *path;
    xp_arena *arena;
    xp_outfile *out;
    xp_text metadata, tensors; /* members of the header's JSON, growing */
    const char **names;        /* declared, to find duplicates */
    size_t n_names, names_capacity;
    int64_t declared_bytes, written_bytes;
    bool header_written;
    xp_status header_status; /* without a header no data may follow */
};

xp_status xp_st_writer_create(const char *path, xp_st_writer **writer) {
    xp_st_writer *made = calloc(1, sizeof *made);
    if (made == NULL)
        return xp_error(XP_ENOMEM, "no memory to write %s", path);
    xp_status status;
    XP_TRY_GOTO(status, xp_arena_create(&made->arena), fail);
    made->path = xp_arena_strdup(made->arena, path);
    if (made->path == NULL) {
        status = xp_error(XP_ENOMEM, "no memory to write %s", path);
        goto fail;
    }
    XP_TRY_GOTO(status, xp_outfile_open(path, &made->out), fail);
    *writer = made;
    return XP_OK;
fail:
    xp_st_writer_destroy(made);
    return status;
}

static xp_status check_open_for_names(const xp_st_writer *writer, const char *name) {
    if (writer->header_written)
        return xp_error(XP_EINVAL, "%s: '%.200s' comes after the first data", writer->path, name);
    size_t n = strlen(name);
    if (xp_utf8_valid_prefix(name, n) != n || !xp_st_name_is_clean(name))
        return xp_error(XP_EINVAL, "%s: a name is no UTF-8 or holds a control character",
                        writer->path);
    return XP_OK;
}

xp_status xp_st_writer_add_metadata(xp_st_writer *writer, const char *key, const char *value) {
    XP_TRY(check_open_for_names(writer, key));
    if (writer->metadata.length > 0)
        xp_text_puts(&writer->metadata, ",");
    xp_text_add_json(&writer->metadata, key, strlen(key));
    xp_text_puts(&writer->metadata, ":");
    xp_text_add_json(&writer->metadata, value, strlen(value));
    return XP_OK;
}

static xp_status remember_name(xp_st_writer *writer, const char *name) {
    if (writer->n_names == writer->names_capacity) {
        size_t capacity = writer->names_capacity == 0 ? 64 : 2 * writer->names_capacity;
        const char **grown = realloc(writer->names, capacity * sizeof *grown);
        if (grown == NULL)
            return xp_error(XP_ENOMEM, "no memory for the tensor names of %s", writer->path);
        writer->names = grown;
        writer->names_capacity = capacity;
    }
    char *copy = xp_arena_strdup(writer->arena, name);
    if (copy == NULL)
        return xp_error(XP_ENOMEM, "no memory for the tensor names of %s", writer->path);
    writer->names[writer->n_names++] = copy;
    return XP_OK;
}

xp_status xp_st_writer_declare(xp_st_writer *writer, const char *name, xp_dtype dtype, int n_dims,
                               const int64_t *shape) {
    XP_TRY(check_open_for_names(writer, name));
    const xp_st_dtype *type = xp_st_dtype_of(dtype);
    int64_t n_elements, n_bytes, end;
    if (type == NULL || n_dims < 0 || n_dims > XP_ST_MAX_DIMS || strcmp(name, "__metadata__") == 0)
        return xp_error(XP_EINVAL, "%s: tensor '%.200s' cannot be written: bad type, rank or name",
                        writer->path, name);
    if (!xp_st_shape_sizes(type, n_dims, shape, &n_elements, &n_bytes) ||
        __builtin_add_overflow(writer->declared_bytes, n_bytes, &end))
        return xp_error(XP_EINVAL, "%s: tensor '%.200s' has a negative or too large shape",
                        writer->path, name);
    XP_TRY(remember_name(writer, name));
    xp_text *text = &writer->tensors;
    if (text->length > 0)
        xp_text_puts(text, ",");
    xp_text_add_json(text, name, strlen(name));
    xp_text_printf(text, ":{\"dtype\":\"%s\",\"shape\":[", type->name);
    for (int i = 0; i < n_dims; i++)
        xp_text_printf(text, "%s%lld", i > 0 ? "," : "", (long long)shape[i]);
    xp_text_printf(text, "],\"data_offsets\":[%lld,%lld]}", (long long)writer->declared_bytes,
                   (long long)end);
    writer->declared_bytes = end;
    return XP_OK;
}

static int compare_names(const void *a, const void *b) {
    const char *const *left = a, *const *right = b;
    return strcmp(*left, *right);
}

static xp_status check_duplicates(xp_st_writer *writer) {
    if (writer->n_names > 0)
        qsort(writer->names, writer->n_names, sizeof *writer->names, compare_names);
    for (size_t i = 1; i < writer->n_names; i++) {
        if (strcmp(writer->names[i - 1], writer->names[i]) == 0)
            return xp_error(XP_EINVAL, "%s: tensor '%.200s' is declared twice", writer->path,
                            writer->names[i]);
    }
    return XP_OK;
}

static xp_status emit_header(xp_st_writer *writer, xp_text *header) {
    xp_text_puts(header, "{");
    if (writer->metadata.length > 0) {
        xp_text_puts(header, "\"__metadata__\":{");
        xp_text_add(header, writer->metadata.data, writer->metadata.length);
        xp_text_puts(header, writer->tensors.length > 0 ? "}," : "}");
    }
    if (writer->tensors.length > 0)
        xp_text_add(header, writer->tensors.data, writer->tensors.length);
    xp_text_puts(header, "}");
    while (header->length % 8 != 0 && !header->failed)
        xp_text_puts(header, " ");
    if (header->failed || writer->metadata.failed || writer->tensors.failed)
        return xp_error(XP_ENOMEM, "no memory for the header of %s", writer->path);
    if (header->length > XP_ST_MAX_HEADER)
        return xp_error(XP_EINVAL, "%s: header of %zu bytes, the format's limit is %d",
                        writer->path, header->length, XP_ST_MAX_HEADER);
    unsigned char length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (unsigned char)(header->length >> (8 * i));
    int64_t total;
    if (__builtin_add_overflow(writer->declared_bytes, (int64_t)header->length + 8, &total))
        return xp_error(XP_EINVAL, "%s: the tensors are too large for one file", writer->path);
    XP_TRY(xp_outfile_reserve(writer->out, total));
    XP_TRY(xp_outfile_write(writer->out, length, sizeof length));
    return xp_outfile_write(writer->out, header->data, header->length);
}

static xp_status write_header(xp_st_writer *writer) {
    if (writer->header_written)
        return writer->header_status;
    writer->header_written = true;
    writer->header_status = check_duplicates(writer);
    if (writer->header_status != XP_OK)
        return writer->header_status;
    xp_text header = {0};
    writer->header_status = emit_header(writer, &header);
    xp_text_free(&header);
    return writer->header_status;
}

xp_status xp_st_writer_data(xp_st_writer *writer, const void *data, size_t n_bytes) {
    XP_TRY(write_header(writer));
    if (n_bytes > (size_t)(writer->declared_bytes - writer->written_bytes))
        return xp_error(XP_EINVAL, "%s: more bytes than the declared tensors have", writer->path);
    writer->written_bytes += (int64_t)n_bytes;
    return xp_outfile_write(writer->out, data, n_bytes);
}

xp_status xp_st_writer_finish(xp_st_writer *writer) {
    XP_TRY(write_header(writer));
    if (writer->written_bytes != writer->declared_bytes)
        return xp_error(XP_EINVAL, "%s: %lld bytes were declared, %lld given", writer->path,
                        (long long)writer->declared_bytes, (long long)writer->written_bytes);
    return xp_outfile_commit(writer->out);
}

void xp_st_writer_result(const xp_st_writer *writer, int64_t *n_bytes, uint64_t *xxh64) {
    *n_bytes = xp_outfile_n_bytes(writer->out);
    *xxh64 = xp_outfile_xxh64(writer->out);
}

void xp_st_writer_destroy(xp_st_writer *writer) {
    if (writer == NULL)
        return;
    xp_outfile_close(writer->out);
    xp_text_free(&writer->metadata);
    xp_text_free(&writer->tensors);
    free(writer->names);
    xp_arena_destroy(writer->arena);
    free(writer);
}
