#include "data/documents.h"

#include <errno.h>
#include <glob.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "core/file.h"
#include "core/text.h"

static const char *const text_endings[] = {".txt",      ".jsonl",   ".json", ".txt.gz",
                                           ".jsonl.gz", ".json.gz", NULL};
static const char *const token_endings[] = {".bin", NULL};

const char *const *xp_data_text_endings(void) {
    return text_endings;
}

const char *const *xp_data_token_endings(void) {
    return token_endings;
}

static bool ends_with(const char *name, const char *ending) {
    size_t n = strlen(name), m = strlen(ending);
    return n > m && strcmp(name + n - m, ending) == 0;
}

static bool has_ending(const char *name, const char *const *endings) {
    for (; *endings != NULL; endings++)
        if (ends_with(name, *endings))
            return true;
    return false;
}

static xp_status add_file(xp_data_files *files, const char *path) {
    struct stat st;
    if (stat(path, &st) != 0)
        return xp_error(errno == ENOENT ? XP_ENOENT : XP_EIO, "cannot read %s: %s", path,
                        strerror(errno));
    xp_data_file *grown = realloc(files->files, (size_t)(files->n + 1) * sizeof *grown);
    if (grown == NULL)
        return xp_error(XP_ENOMEM, "%s: out of memory", path);
    files->files = grown;
    char *copy = strdup(path);
    if (copy == NULL)
        return xp_error(XP_ENOMEM, "%s: out of memory", path);
    files->files[files->n++] =
        (xp_data_file){.path = copy,
                       .n_bytes = st.st_size,
                       .mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec};
    files->n_bytes += st.st_size;
    return XP_OK;
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const xp_data_file *)a)->path, ((const xp_data_file *)b)->path);
}

typedef struct folder_search {
    xp_data_files *files;
    const char *const *endings;
} folder_search;

static xp_status add_entry(void *context, const char *folder, const char *name) {
    const folder_search *search = context;
    if (name[0] == '.' || !has_ending(name, search->endings))
        return XP_OK;
    char *child = xp_path_join(folder, name);
    xp_status status = child == NULL ? xp_error(XP_ENOMEM, "%s: out of memory", folder)
                                     : add_file(search->files, child);
    free(child);
    return status;
}

static xp_status add_folder(xp_data_files *files, const char *path, const char *const *endings) {
    folder_search search = {.files = files, .endings = endings};
    return xp_folder_each(path, add_entry, &search);
}

static xp_status add_glob(xp_data_files *files, const char *pattern, const char *const *endings) {
    glob_t found;
    int result = glob(pattern, 0, NULL, &found);
    if (result == GLOB_NOMATCH)
        return XP_OK;
    if (result != 0)
        return xp_error(XP_EIO, "cannot search for %s", pattern);
    xp_status status = XP_OK;
    for (size_t i = 0; i < found.gl_pathc && status == XP_OK; i++) {
        bool is_folder = false;
        status = xp_path_is_folder(found.gl_pathv[i], &is_folder);
        if (status == XP_OK && !is_folder && has_ending(found.gl_pathv[i], endings))
            status = add_file(files, found.gl_pathv[i]);
    }
    globfree(&found);
    return status;
}

static xp_status none_found(const char *path, const char *const *endings) {
    xp_text list = {0};
    for (; *endings != NULL; endings++)
        xp_text_printf(&list, "%s%s", list.length > 0 ? ", " : "", *endings);
    xp_status status =
        xp_error(XP_ENOENT, "no data at %s: give a file, a folder or a glob of files ending in %s",
                 path, list.data == NULL ? "?" : list.data);
    xp_text_free(&list);
    return status;
}

xp_status xp_data_files_find(const char *path, const char *const *endings, xp_data_files *files) {
    xp_data_files found = {0};
    bool is_folder = false, exists = false;
    XP_TRY(xp_path_is_folder(path, &is_folder));
    XP_TRY(xp_path_exists(path, &exists));
    xp_status status = XP_OK;
    if (is_folder)
        status = add_folder(&found, path, endings);
    else if (exists)
        status = has_ending(path, endings) ? add_file(&found, path) : XP_OK;
    else
        status = add_glob(&found, path, endings);
    if (status == XP_OK && found.n == 0)
        status = none_found(path, endings);
    if (status != XP_OK) {
        xp_data_files_free(&found);
        return status;
    }
    qsort(found.files, (size_t)found.n, sizeof *found.files, by_path);
    *files = found;
    return XP_OK;
}

void xp_data_files_free(xp_data_files *files) {
    for (int i = 0; i < files->n; i++)
        free(files->files[i].path);
    free(files->files);
    *files = (xp_data_files){0};
}

struct xp_documents {
    const xp_data_files *files;
    int next_file;    /* after the open one */
    gzFile file;      /* zlib reads plain files as they are */
    const char *path; /* of the open file */
    bool whole;       /* a file is a document */
    int64_t line, done_bytes;
    char *buffer; /* read but not used yet: [start, end) */
    size_t start, end;
};

#define BUFFER_BYTES ((size_t)1 << 20)

xp_status xp_documents_open(const xp_data_files *files, xp_documents **documents) {
    xp_documents *d = calloc(1, sizeof *d);
    if (d == NULL || (d->buffer = malloc(BUFFER_BYTES)) == NULL) {
        free(d);
        return xp_error(XP_ENOMEM, "documents: out of memory");
    }
    d->files = files;
    *documents = d;
    return XP_OK;
}

void xp_documents_close(xp_documents *documents) {
    if (documents == NULL)
        return;
    if (documents->file != NULL)
        gzclose(documents->file);
    free(documents->buffer);
    free(documents);
}

int64_t xp_documents_position(const xp_documents *documents) {
    int64_t position = documents->done_bytes;
    if (documents->file != NULL)
        position += (int64_t)gzoffset(documents->file);
    return position;
}

static xp_status open_next(xp_documents *d) {
    const xp_data_file *file = &d->files->files[d->next_file++];
    d->file = gzopen(file->path, "rb");
    if (d->file == NULL)
        return xp_error(XP_EIO, "cannot open %s: %s", file->path, strerror(errno));
    gzbuffer(d->file, 1 << 18);
    d->path = file->path;
    d->line = 0;
    d->start = d->end = 0;
    d->whole = ends_with(file->path, ".txt") || ends_with(file->path, ".txt.gz");
    return XP_OK;
}

static void close_current(xp_documents *d) {
    gzclose(d->file);
    d->file = NULL;
    d->done_bytes += d->files->files[d->next_file - 1].n_bytes;
}

/* Refill the empty buffer; *n = 0 at the end of the file. */
static xp_status refill(xp_documents *d, size_t *n) {
    int got = gzread(d->file, d->buffer, (unsigned)BUFFER_BYTES);
    int code = Z_OK;
    const char *reason = got < 0 ? gzerror(d->file, &code) : "";
    /* A truncated stream reads as a short file: zlib tells at the end. */
    if (got == 0) {
        reason = gzerror(d->file, &code);
        if (code == Z_OK || code == Z_STREAM_END)
            reason = "";
    }
    if (reason[0] != '\0')
        return xp_error(code == Z_ERRNO ? XP_EIO : XP_EFORMAT, "cannot read %s: %s", d->path,
                        code == Z_ERRNO ? strerror(errno) : reason);
    d->start = 0;
    d->end = *n = (size_t)got;
    return XP_OK;
}

/* Append to `text` up to the next newline (not included), or the whole rest; *end: the file has no
 * more. */
static xp_status read_unit(xp_documents *d, xp_text *text, bool *end) {
    *end = false;
    for (;;) {
        if (d->start == d->end) {
            size_t n = 0;
            XP_TRY(refill(d, &n));
            if (n == 0) {
                *end = true;
                return XP_OK;
            }
        }
        const char *from = d->buffer + d->start;
        const char *newline = d->whole ? NULL : memchr(from, '\n', d->end - d->start);
        size_t n = newline == NULL ? d->end - d->start : (size_t)(newline - from);
        xp_text_add(text, from, n);
        if (text->failed)
            return xp_error(XP_ENOMEM, "%s: out of memory", d->path);
        d->start += n + (newline != NULL);
        if (newline != NULL)
            return XP_OK;
    }
}

static bool is_blank(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (strchr(" \t\r", s[i]) == NULL || s[i] == '\0')
            return false;
    return true;
}

/* The "text" of a JSON line, moved into malloc'd memory. */
static xp_status take_json(const xp_documents *d, const xp_text *line, char **text,
                           size_t *n_bytes) {
    json_error_t where;
    json_t *object =
        json_loadb(line->data, line->length, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
    if (object == NULL)
        return xp_error(XP_EFORMAT, "%s:%lld:%d: not a JSON object: %s", d->path,
                        (long long)d->line, where.column, where.text);
    json_t *value = json_object_get(object, "text");
    xp_status status = XP_OK;
    if (!json_is_string(value)) {
        status = xp_error(XP_EFORMAT, "%s:%lld: no string field \"text\" in the JSON object",
                          d->path, (long long)d->line);
    } else {
        *n_bytes = json_string_length(value);
        *text = malloc(*n_bytes + 1);
        if (*text == NULL)
            status = xp_error(XP_ENOMEM, "%s: out of memory", d->path);
        else
            memcpy(*text, json_string_value(value), *n_bytes + 1);
    }
    json_decref(object);
    return status;
}

xp_status xp_documents_next(xp_documents *d, char **text, size_t *n_bytes) {
    *text = NULL;
    *n_bytes = 0;
    for (;;) {
        if (d->file == NULL) {
            if (d->next_file == d->files->n)
                return XP_OK;
            XP_TRY(open_next(d));
        }
        xp_text unit = {0};
        bool end;
        xp_status status = read_unit(d, &unit, &end);
        if (status != XP_OK) {
            xp_text_free(&unit);
            return status;
        }
        d->line++;
        if (end)
            close_current(d);
        if (unit.length == 0 || (!d->whole && is_blank(unit.data, unit.length))) {
            xp_text_free(&unit);
            continue;
        }
        if (d->whole) {
            *text = unit.data; /* ownership moves to the caller */
            *n_bytes = unit.length;
            return XP_OK;
        }
        status = take_json(d, &unit, text, n_bytes);
        xp_text_free(&unit);
        return status;
    }
}
