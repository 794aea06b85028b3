#include "fixture.h"

#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/file.h"
#include "core/text.h"

char *in_folder(const fixture *f, const char *name) {
    char *path = name[0] == '/' ? strdup(name) : xp_path_join(f->folder, name);
    assert_non_null(path);
    return path;
}

void write_file(const fixture *f, const char *name, const void *data, size_t n) {
    char *path = in_folder(f, name);
    assert_int_equal(xp_file_write_atomic(path, data, n), XP_OK);
    free(path);
}

void write_text(const fixture *f, const char *name, const char *text) {
    write_file(f, name, text, strlen(text));
}

/* The 256 bytes in the printable alphabet of byte-level BPE, no merges, and an end-of-text token
 * with id 256. */
static void write_byte_tokenizer(const fixture *f) {
    xp_text t = {0};
    xp_text_puts(&t,
                 "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":256,\"content\":\"<|endoftext|>\","
                 "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,"
                 "\"special\":true}],\"normalizer\":null,\"pre_tokenizer\":{\"type\":"
                 "\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":false,\"use_regex\":"
                 "true},\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
                 "\"vocab\":{");
    uint32_t extra = 256;
    for (uint32_t byte = 0; byte < 256; byte++) {
        bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
        char utf8[4];
        int n = xp_utf8_encode(printable ? byte : extra++, utf8);
        if (byte > 0)
            xp_text_puts(&t, ",");
        xp_text_add_json(&t, utf8, (size_t)n);
        xp_text_printf(&t, ":%" PRIu32, byte);
    }
    xp_text_puts(&t, "},\"merges\":[]}}");
    write_file(f, "tok/tokenizer.json", t.data, t.length);
    xp_text_free(&t);
    const char *config = "{\"eos_token\": \"<|endoftext|>\", \"bos_token\": null}";
    write_file(f, "tok/tokenizer_config.json", config, strlen(config));
}

int fixture_set_up(void **state) {
    fixture *f = calloc(1, sizeof *f);
    strcpy(f->folder, "/tmp/xp-data-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    char *tok = in_folder(f, "tok"), *text = in_folder(f, "text");
    assert_int_equal(xp_folder_create(tok), XP_OK);
    assert_int_equal(xp_folder_create(text), XP_OK);
    write_byte_tokenizer(f);
    if (xp_tokenizer_load(tok, &f->tokenizer) != XP_OK)
        fail_msg("%s", xp_last_error());
    f->log_file = open_memstream(&f->log_text, &f->n_log);
    assert_non_null(f->log_file);
    assert_int_equal(xp_log_create(f->log_file, XP_LOG_INFO, false, &f->log), XP_OK);
    free(tok);
    free(text);
    *state = f;
    return 0;
}

int fixture_tear_down(void **state) {
    fixture *f = *state;
    xp_tokenizer_destroy(f->tokenizer);
    xp_log_destroy(f->log);
    fclose(f->log_file);
    free(f->log_text);
    assert_int_equal(xp_folder_remove(f->folder), XP_OK);
    free(f);
    return 0;
}

const char *logged(fixture *f) {
    fflush(f->log_file);
    fputc('\0', f->log_file);
    fflush(f->log_file);
    fseek(f->log_file, 0, SEEK_SET);
    return f->log_text;
}

xp_dataset_args data_args(const fixture *f, const char *kind, const char *path) {
    return (xp_dataset_args){.kind = kind,
                             .path = in_folder(f, path),
                             .tokenizer = f->tokenizer,
                             .cache_folder = in_folder(f, "cache"),
                             .vocab_size = 257,
                             .seq_len = S,
                             .seed = 5,
                             .eos_id = 256,
                             .log = f->log};
}

void free_args(xp_dataset_args *args) {
    free((void *)(uintptr_t)args->path);
    free((void *)(uintptr_t)args->cache_folder);
}

xp_status open_data(const fixture *f, const char *kind, const char *path, bool shuffle,
                    bool document, xp_dataset **dataset) {
    xp_dataset_args args = data_args(f, kind, path);
    args.shuffle = shuffle;
    args.document_attention = document;
    xp_status status = xp_dataset_open(&args, dataset);
    free_args(&args);
    return status;
}

void assert_refused(const fixture *f, const char *kind, const char *path, xp_status code,
                    const char *words) {
    xp_dataset *d = NULL;
    xp_status status = open_data(f, kind, path, false, false, &d);
    if (status != code || strstr(xp_last_error(), words) == NULL)
        fail_msg("%s: %s \"%s\", expected %s with \"%s\"", path, xp_status_name(status),
                 xp_last_error(), xp_status_name(code), words);
    assert_null(d);
}

void run_command(const char *format, ...) {
    char command[2048];
    va_list words;
    va_start(words, format);
    vsnprintf(command, sizeof command, format, words);
    va_end(words);
    if (system(command) != 0)
        fail_msg("%s failed", command);
}
