#include "tokenize_input.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/text.h"
#include "data/documents.h"

#define MAX_BYTES ((size_t)1 << 40)

static bool is_stdin(const char *path) {
    return strcmp(path, "-") == 0;
}

static xp_status read_stream(FILE *stream, const char *name, char **data, size_t *n) {
    xp_text text = {0};
    char block[65536];
    xp_text_puts(&text, "");
    for (size_t got; (got = fread(block, 1, sizeof block, stream)) > 0;)
        xp_text_add(&text, block, got);
    if (ferror(stream) || text.failed) {
        xp_status status = text.failed
                               ? xp_error(XP_ENOMEM, "no memory to read %s", name)
                               : xp_error(XP_EIO, "cannot read %s: %s", name, strerror(errno));
        xp_text_free(&text);
        return status;
    }
    *data = text.data;
    *n = text.length;
    return XP_OK;
}

xp_status tokenize_read_all(const char *path, char **data, size_t *n) {
    return is_stdin(path) ? read_stream(stdin, "standard input", data, n)
                          : xp_file_read(path, MAX_BYTES, data, n);
}

static xp_status each_of(tokenize_input *input, const xp_data_files *files, tokenize_document_fn fn,
                         void *context) {
    xp_documents_args args = {
        .files = files, .text_field = input->text_field, .skip_bad_lines = input->skip_bad_lines};
    xp_documents *documents = NULL;
    xp_status status = xp_documents_open(&args, &documents);
    while (status == XP_OK) {
        char *text = NULL;
        size_t n = 0;
        status = xp_documents_next(documents, &text, &n);
        if (status != XP_OK || text == NULL)
            break;
        status = fn(context, text, n);
        free(text);
    }
    if (status == XP_OK && xp_documents_n_bad(documents) > 0) {
        input->n_bad_lines += xp_documents_n_bad(documents);
        fprintf(stderr, "warning: skipped %lld bad lines; the first: %s\n",
                (long long)xp_documents_n_bad(documents), xp_documents_first_bad(documents));
    }
    xp_documents_close(documents);
    return status;
}

static xp_status find(const char *path, xp_data_files *files) {
    if (is_stdin(path))
        return xp_data_files_stdin(files);
    XP_TRY(xp_data_files_find(path, xp_data_text_endings(), files));
    char skipped[256];
    xp_data_files_describe_skipped(files, skipped, sizeof skipped);
    if (skipped[0] != '\0')
        fprintf(stderr, "warning: %s: %s\n", path, skipped);
    return XP_OK;
}

xp_status tokenize_each_document(tokenize_input *input, const char *path, tokenize_document_fn fn,
                                 void *context) {
    if (is_stdin(path) && !input->stdin_is_lines) {
        char *text = NULL;
        size_t n = 0;
        XP_TRY(tokenize_read_all(path, &text, &n));
        xp_status status = fn(context, text, n);
        free(text);
        return status;
    }
    xp_data_files files = {0};
    XP_TRY(find(path, &files));
    xp_status status = each_of(input, &files, fn, context);
    xp_data_files_free(&files);
    return status;
}
