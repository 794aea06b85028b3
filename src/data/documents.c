#include "data/documents.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/text.h"
#include "data/byte_source.h"
#include "data/json_line.h"

struct xp_documents {
    xp_documents_args args;
    int next_file; /* after the open one */
    xp_byte_source *source;
    const char *name; /* of the open file */
    bool whole;       /* a file is a document */
    bool at_start;    /* nothing of the open file was looked at */
    int64_t line, done_bytes;
    char *buffer; /* read but not used yet: [start, end) */
    size_t start, end;
    int64_t n_bad;
    char first_bad[512];
};

#define BUFFER_BYTES ((size_t)1 << 20)

xp_status xp_documents_open(const xp_documents_args *args, xp_documents **documents) {
    xp_documents *d = calloc(1, sizeof *d);
    if (d == NULL || (d->buffer = malloc(BUFFER_BYTES)) == NULL) {
        free(d);
        return xp_error(XP_ENOMEM, "documents: out of memory");
    }
    d->args = *args;
    if (d->args.text_field == NULL)
        d->args.text_field = "text";
    *documents = d;
    return XP_OK;
}

void xp_documents_close(xp_documents *documents) {
    if (documents == NULL)
        return;
    xp_byte_source_close(documents->source);
    free(documents->buffer);
    free(documents);
}

int64_t xp_documents_position(const xp_documents *documents) {
    int64_t position = documents->done_bytes;
    if (documents->source != NULL)
        position += xp_byte_source_position(documents->source);
    return position;
}

int64_t xp_documents_n_bad(const xp_documents *documents) {
    return documents->n_bad;
}

const char *xp_documents_first_bad(const xp_documents *documents) {
    return documents->first_bad;
}

static bool is_whole(const char *path) {
    return xp_data_name_ends(path, ".txt") || xp_data_name_ends(path, ".txt.gz") ||
           xp_data_name_ends(path, ".txt.zst");
}

static xp_status open_next(xp_documents *d) {
    const char *path = d->args.files->files[d->next_file].path;
    d->name = strcmp(path, "-") == 0 ? "standard input" : path;
    XP_TRY(xp_byte_source_open(path, &d->source));
    d->next_file++;
    d->line = 0;
    d->start = d->end = 0;
    d->at_start = true;
    d->whole = is_whole(path);
    return XP_OK;
}

static void close_current(xp_documents *d) {
    xp_byte_source_close(d->source);
    d->source = NULL;
    d->done_bytes += d->args.files->files[d->next_file - 1].n_bytes;
}

/* What a file that is no text in UTF-8 begins with. */
static const struct {
    const char *bytes;
    size_t n;
    const char *what;
} foreign[] = {
    {"\xff\xfe", 2, "UTF-16 text; iconv -f UTF-16 -t UTF-8 makes it readable"},
    {"\xfe\xff", 2, "UTF-16 text; iconv -f UTF-16 -t UTF-8 makes it readable"},
    {"PAR1", 4,
     "a Parquet file, whatever its name says; name it .parquet to be told how to read it"},
    {"ARROW1", 6, "an Arrow file, whatever its name says"},
    {"PK\x03\x04", 4, "a zip archive, whatever its name says"},
    {"BZh", 3, "bzip2, whatever its name says"},
    {"\xfd"
     "7zXZ",
     5, "xz, whatever its name says"},
    {"\x1f\x8b", 2, "gzip inside the packing that was taken off"},
    {"version https://git-lfs", 23, "a Git LFS pointer, not the data: `git lfs pull` fetches it"},
};

/* The first bytes of a file: a byte order mark is skipped, other kinds of files are refused. */
static xp_status look_at_start(xp_documents *d) {
    const char *at = d->buffer + d->start;
    size_t n = d->end - d->start;
    d->at_start = false;
    if (n >= 3 && memcmp(at, "\xef\xbb\xbf", 3) == 0) {
        d->start += 3;
        return XP_OK;
    }
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (n >= foreign[i].n && memcmp(at, foreign[i].bytes, foreign[i].n) == 0)
            return xp_error(XP_EFORMAT, "%s is %s", d->name, foreign[i].what);
    return XP_OK;
}

/* Refill the empty buffer; *n = 0 at the end of the file. */
static xp_status refill(xp_documents *d, size_t *n) {
    XP_TRY(xp_byte_source_read(d->source, d->buffer, BUFFER_BYTES, n));
    d->start = 0;
    d->end = *n;
    return d->at_start ? look_at_start(d) : XP_OK;
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
        size_t left = d->end - d->start;
        const char *newline = d->whole || left == 0 ? NULL : memchr(from, '\n', left);
        size_t n = newline == NULL ? left : (size_t)(newline - from);
        xp_text_add(text, from, n);
        if (text->failed)
            return xp_error(XP_ENOMEM, "%s: out of memory", d->name);
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

static const char *first_line_hint(const xp_documents *d, const xp_text *line) {
    if (d->line != 1 || d->args.skip_bad_lines)
        return "";
    if (line->data[0] == '[')
        return "; a JSON array becomes lines by jq -c '.[]'";
    return line->data[0] == '{' ? "" : "; a document needs one JSON object on one line";
}

/* The text of a JSON line, moved into malloc'd memory; *text stays NULL when the line is bad and such lines are skipped. */
static xp_status take_json(xp_documents *d, const xp_text *line, char **text, size_t *n_bytes) {
    xp_text value = {0};
    xp_json_line_error error;
    xp_status status =
        xp_json_line_string(line->data, line->length, d->args.text_field, &value, &error);
    if (status == XP_OK) {
        *text = value.data;
        *n_bytes = value.length;
        return XP_OK;
    }
    xp_text_free(&value);
    if (status != XP_EFORMAT)
        return status;
    if (d->n_bad == 0 || !d->args.skip_bad_lines)
        snprintf(d->first_bad, sizeof d->first_bad, "%.200s:%lld:%zu: %s", d->name,
                 (long long)d->line, error.offset + 1, error.text);
    d->n_bad++;
    if (d->args.skip_bad_lines)
        return XP_OK;
    return xp_error(XP_EFORMAT, "%s:%lld:%zu: %s%s", d->name, (long long)d->line, error.offset + 1,
                    error.text, first_line_hint(d, line));
}

xp_status xp_documents_next(xp_documents *d, char **text, size_t *n_bytes) {
    *text = NULL;
    *n_bytes = 0;
    for (;;) {
        if (d->source == NULL) {
            if (d->next_file == d->args.files->n)
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
        if (status != XP_OK || *text != NULL)
            return status;
    }
}
