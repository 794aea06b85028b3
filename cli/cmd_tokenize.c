/* expar tokenize: text to token ids and back. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cli.h"
#include "core/file.h"
#include "core/text.h"
#include "data/data_files.h"
#include "data/tokenizer.h"
#include "options.h"
#include "tokenize_input.h"

#define MAX_FILES     1024
#define BENCH_SECONDS 2.0

typedef struct tokenize_options {
    const char *tokenizer, *out, *bench, *text_field, *bad_lines;
    bool decode, skip_special, special, json;
} tokenize_options;

/* Where documents go, one after the other. */
typedef struct sink {
    const tokenize_options *o;
    const xp_tokenizer *tokenizer;
    tokenize_input *input;
    FILE *file; /* of ids (--out), or NULL: print */
    xp_token_list list;
    int64_t n_documents, n_tokens;
    size_t n_bytes;
} sink;

static void print_ids(const xp_token_list *list, bool json) {
    fputs(json ? "{\"ids\": [" : "", stdout);
    for (int64_t i = 0; i < list->n; i++)
        printf("%s%d", i == 0 ? "" : json ? ", " : " ", list->ids[i]);
    fputs(json ? "]}\n" : "\n", stdout);
}

static xp_status write_ids(FILE *file, const xp_token_list *list) {
    unsigned char block[4096];
    for (int64_t i = 0; i < list->n;) {
        size_t n = 0;
        for (; i < list->n && n < sizeof block; i++, n += 4)
            for (int b = 0; b < 4; b++)
                block[n + (size_t)b] = (unsigned char)((uint32_t)list->ids[i] >> (8 * b));
        if (fwrite(block, 1, n, file) != n)
            return xp_error(XP_EIO, "cannot write token ids: %s", strerror(errno));
    }
    return XP_OK;
}

static xp_status take_document(void *context, const char *text, size_t n) {
    sink *s = context;
    s->list.n = 0;
    if (s->file != NULL)
        XP_TRY(xp_tokenizer_encode_document(s->tokenizer, text, n, &s->list));
    else if (s->o->special)
        XP_TRY(xp_tokenizer_encode_special(s->tokenizer, text, n, &s->list));
    else
        XP_TRY(xp_tokenizer_encode(s->tokenizer, text, n, &s->list));
    s->n_documents++;
    s->n_tokens += s->list.n;
    s->n_bytes += n;
    if (s->file != NULL)
        return write_ids(s->file, &s->list);
    print_ids(&s->list, s->o->json);
    return XP_OK;
}

static xp_status push_id(xp_token_list *list, int64_t id) {
    if (list->n == list->capacity) {
        int64_t capacity = list->capacity == 0 ? 1024 : 2 * list->capacity;
        int32_t *ids = realloc(list->ids, (size_t)capacity * sizeof *ids);
        if (ids == NULL)
            return xp_error(XP_ENOMEM, "no memory for %lld token ids", (long long)capacity);
        list->ids = ids;
        list->capacity = capacity;
    }
    list->ids[list->n++] = (int32_t)id;
    return XP_OK;
}

/* Numbers between anything of white space, commas and brackets. */
static xp_status parse_ids(const char *text, size_t n, xp_token_list *list) {
    static const char between[] = " \t\r\n,[]";
    for (size_t i = 0; i < n;) {
        if (text[i] != '\0' && strchr(between, text[i]) != NULL) {
            i++;
            continue;
        }
        size_t start = i;
        int64_t id = 0;
        for (; i < n && text[i] >= '0' && text[i] <= '9' && id <= INT32_MAX; i++)
            id = id * 10 + (text[i] - '0');
        bool ends = i == n || (text[i] != '\0' && strchr(between, text[i]) != NULL);
        if (i == start || !ends || id > INT32_MAX)
            return xp_error(XP_EFORMAT,
                            "byte %zu: not a token id; give numbers, or a .bin file of uint32",
                            start);
        XP_TRY(push_id(list, id));
    }
    return XP_OK;
}

static xp_status unpack_ids(const char *data, size_t n, xp_token_list *list) {
    if (n % 4 != 0)
        return xp_error(XP_EFORMAT, "%zu bytes are no whole number of uint32 ids", n);
    const unsigned char *b = (const unsigned char *)data;
    for (size_t i = 0; i < n; i += 4) {
        uint32_t id =
            b[i] | (uint32_t)b[i + 1] << 8 | (uint32_t)b[i + 2] << 16 | (uint32_t)b[i + 3] << 24;
        if (id > INT32_MAX)
            return xp_error(XP_EFORMAT, "byte %zu: %u is no token id", i, id);
        XP_TRY(push_id(list, id));
    }
    return XP_OK;
}

static xp_status decode_file(const sink *s, const char *path) {
    char *data = NULL, *text = NULL;
    size_t n = 0, n_text = 0;
    xp_token_list list = {0};
    bool is_stdin = strcmp(path, "-") == 0;
    XP_TRY(tokenize_read_all(path, &data, &n));
    xp_status status =
        xp_data_name_ends(path, ".bin") ? unpack_ids(data, n, &list) : parse_ids(data, n, &list);
    if (status == XP_OK)
        status =
            xp_tokenizer_decode(s->tokenizer, list.ids, list.n, s->o->skip_special, &text, &n_text);
    if (status != XP_OK)
        status = xp_error_context(status, "%s", is_stdin ? "standard input" : path);
    if (status == XP_OK && s->o->json) {
        xp_text line = {0};
        xp_text_puts(&line, "{\"text\": ");
        xp_text_add_json(&line, text, n_text);
        xp_text_puts(&line, "}\n");
        fwrite(line.data, 1, line.length, stdout);
        xp_text_free(&line);
    } else if (status == XP_OK) {
        fwrite(text, 1, n_text, stdout);
    }
    free(text);
    xp_token_list_free(&list);
    free(data);
    return status;
}

typedef struct corpus {
    char **texts;
    size_t *sizes;
    int64_t n, capacity;
    size_t n_bytes;
} corpus;

static xp_status keep_document(void *context, const char *text, size_t n) {
    corpus *c = context;
    if (c->n == c->capacity) {
        int64_t capacity = c->capacity == 0 ? 256 : 2 * c->capacity;
        char **texts = realloc(c->texts, (size_t)capacity * sizeof *texts);
        if (texts != NULL)
            c->texts = texts;
        size_t *sizes = texts ? realloc(c->sizes, (size_t)capacity * sizeof *sizes) : NULL;
        if (sizes == NULL)
            return xp_error(XP_ENOMEM, "no memory for %lld documents", (long long)capacity);
        c->sizes = sizes;
        c->capacity = capacity;
    }
    char *copy = malloc(n + 1);
    if (copy == NULL)
        return xp_error(XP_ENOMEM, "no memory for a document of %zu bytes", n);
    memcpy(copy, text, n);
    c->texts[c->n] = copy;
    c->sizes[c->n++] = n;
    c->n_bytes += n;
    return XP_OK;
}

/* Rounds over all documents until two seconds are over (three at least); the best one counts. */
static xp_status time_encoding(const sink *s, const corpus *c) {
    xp_token_list list = {0};
    xp_status status = XP_OK;
    double best = 0, begin = xp_time_s();
    int rounds = 0;
    for (; status == XP_OK && (rounds < 3 || xp_time_s() - begin < BENCH_SECONDS); rounds++) {
        list.n = 0;
        double start = xp_time_s();
        for (int64_t i = 0; i < c->n && status == XP_OK; i++)
            status = xp_tokenizer_encode(s->tokenizer, c->texts[i], c->sizes[i], &list);
        double seconds = xp_time_s() - start;
        if (rounds == 0 || seconds < best)
            best = seconds;
    }
    double bytes = (double)c->n_bytes, tokens = (double)list.n;
    if (status == XP_OK && s->o->json)
        printf("{\"documents\": %lld, \"bytes\": %zu, \"tokens\": %lld, \"rounds\": %d, "
               "\"best_s\": %.6f, \"mb_per_s\": %.3f, \"tokens_per_s\": %.0f}\n",
               (long long)c->n, c->n_bytes, (long long)list.n, rounds, best, bytes / best / 1e6,
               tokens / best);
    else if (status == XP_OK)
        printf("%.2f MB/s on one core: %lld documents, %.3f MB, %lld tokens (%.2f bytes each), "
               "best of %d rounds\n",
               bytes / best / 1e6, (long long)c->n, bytes / 1e6, (long long)list.n,
               list.n > 0 ? bytes / tokens : 0.0, rounds);
    xp_token_list_free(&list);
    return status;
}

static xp_status bench(const sink *s) {
    corpus c = {0};
    xp_status status = tokenize_each_document(s->input, s->o->bench, keep_document, &c);
    if (status == XP_OK && c.n_bytes == 0)
        status = xp_error(XP_EFORMAT, "%s: no text to measure with", s->o->bench);
    if (status == XP_OK)
        status = time_encoding(s, &c);
    for (int64_t i = 0; i < c.n; i++)
        free(c.texts[i]);
    free(c.texts);
    free(c.sizes);
    return status;
}

static xp_status each_input(sink *s, const char *const *paths) {
    static const char *const standard_input[] = {"-", NULL};
    for (paths = paths[0] != NULL ? paths : standard_input; *paths != NULL; paths++)
        XP_TRY(s->o->decode ? decode_file(s, *paths)
                            : tokenize_each_document(s->input, *paths, take_document, s));
    return XP_OK;
}

static bool is_text_name(const char *name) {
    for (const char *const *ending = xp_data_text_endings(); *ending; ending++)
        if (xp_data_name_ends(name, *ending))
            return true;
    return false;
}

/* The file appears under its name when it is whole. */
static xp_status write_out(sink *s, const char *const *paths) {
    struct stat info;
    if (stat(s->o->out, &info) == 0 && !S_ISREG(info.st_mode))
        return xp_error(XP_EINVAL, "--out %s: a folder or device; give the name of a file",
                        s->o->out);
    if (is_text_name(s->o->out))
        return xp_error(XP_EINVAL,
                        "--out %s: ids are no text, and a file of this name is read as text; "
                        "choose a name that ends in .bin",
                        s->o->out);
    xp_text tmp = {0};
    xp_text_printf(&tmp, "%s.tmp", s->o->out);
    if (tmp.failed) {
        xp_text_free(&tmp);
        return xp_error(XP_ENOMEM, "no memory for a path");
    }
    xp_status status = XP_OK;
    s->file = fopen(tmp.data, "wbe");
    if (s->file == NULL) {
        status = xp_error(XP_EIO, "cannot create %s: %s", tmp.data, strerror(errno));
        xp_text_free(&tmp);
        return status;
    }
    status = each_input(s, paths);
    if (status == XP_OK && (fflush(s->file) != 0 || fsync(fileno(s->file)) != 0))
        status = xp_error(XP_EIO, "cannot write %s: %s", tmp.data, strerror(errno));
    if (fclose(s->file) != 0 && status == XP_OK)
        status = xp_error(XP_EIO, "cannot write %s: %s", tmp.data, strerror(errno));
    if (status == XP_OK && rename(tmp.data, s->o->out) != 0)
        status = xp_error(XP_EIO, "cannot rename %s: %s", tmp.data, strerror(errno));
    if (status != XP_OK)
        unlink(tmp.data);
    xp_text_free(&tmp);
    if (status == XP_OK)
        fprintf(stderr, "%s: %lld tokens of %lld documents, %.1f MB of text\n", s->o->out,
                (long long)s->n_tokens, (long long)s->n_documents, (double)s->n_bytes / 1e6);
    return status;
}

static xp_status run(const tokenize_options *o, const char *const *paths) {
    xp_tokenizer *tokenizer = NULL;
    XP_TRY(xp_tokenizer_load(o->tokenizer, &tokenizer));
    tokenize_input input = {.text_field = o->text_field,
                            .skip_bad_lines = o->bad_lines && strcmp(o->bad_lines, "skip") == 0,
                            .stdin_is_lines = o->out != NULL};
    sink s = {.o = o, .tokenizer = tokenizer, .input = &input};
    bool warn;
    const char *note = xp_tokenizer_border_note(tokenizer, &warn);
    if (o->out != NULL && note != NULL)
        fprintf(stderr, "%s%s\n", warn ? "warning: " : "", note);
    xp_status status = o->bench != NULL ? bench(&s)
                       : o->out != NULL ? write_out(&s, paths)
                                        : each_input(&s, paths);
    if (status == XP_OK && (fflush(stdout) != 0 || ferror(stdout)))
        status = xp_error(XP_EIO, "cannot write to standard output: %s", strerror(errno));
    xp_token_list_free(&s.list);
    xp_tokenizer_destroy(tokenizer);
    return status;
}

int cmd_tokenize(int argc, char **argv) {
    tokenize_options o = {0};
    const char *paths[MAX_FILES + 1] = {NULL};
    bool done;
    const cli_option options[] = {
        {"--tokenizer", CLI_STRING, &o.tokenizer, "DIR",
         "a folder with tokenizer.json, or the file itself", 0, 0},
        {"--out", CLI_STRING, &o.out, "FILE.bin",
         "write raw little-endian uint32 ids, with BOS and EOS around each document", 0, 0},
        {"--decode", CLI_FLAG, &o.decode, NULL, "the input is ids: numbers, or a .bin file", 0, 0},
        {"--skip-special", CLI_FLAG, &o.skip_special, NULL,
         "leave special tokens out of decoded text", 0, 0},
        {"--special", CLI_FLAG, &o.special, NULL,
         "print the ids with what the tokenizer's post-processor adds", 0, 0},
        {"--json", CLI_FLAG, &o.json, NULL, "one JSON object a document", 0, 0},
        {"--text-field", CLI_STRING, &o.text_field, "NAME",
         "the field of a JSON line that holds its text (text)", 0, 0},
        {"--bad-lines", CLI_STRING, &o.bad_lines, "error|skip",
         "a JSON line that cannot be read: an error, or skipped and counted (error)", 0, 0},
        {"--bench", CLI_STRING, &o.bench, "FILE", "measure the speed on this text", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar tokenize --tokenizer DIR [options] [FILE...]",
        .about = "Token ids of text, a line a document, or the text of ids. Files are read as "
                 "training reads them: .txt,\n.jsonl, .json, each also .gz and .zst; folders with "
                 "all below them; globs. Standard input (\"-\")\nis one document, with --out JSON "
                 "lines.",
        .examples =
            "  echo -n 'Hello world' | expar tokenize --tokenizer assets/tokenizer\n"
            "  expar tokenize --tokenizer Qwen3-0.6B --out train.bin data/*.jsonl.gz\n"
            "  duckdb -c \"COPY (SELECT text FROM 'x.parquet') TO '/dev/stdout' (FORMAT json)\" |\n"
            "      expar tokenize --tokenizer Qwen3-0.6B --out train.bin -\n"
            "  expar tokenize --tokenizer Qwen3-0.6B --decode train.bin | head\n"
            "  expar tokenize --tokenizer Qwen3-0.6B --bench book.txt\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .max_positionals = MAX_FILES};
    int code = cli_parse(&command, argc, argv, paths, &done);
    if (code != 0 || done)
        return code;
    const char *wrong =
        o.tokenizer == NULL                      ? "--tokenizer is missing"
        : o.decode && o.out != NULL              ? "--decode prints text; --out is for ids"
        : o.decode && o.special                  ? "--special is for encoding"
        : o.skip_special && !o.decode            ? "--skip-special goes with --decode"
        : o.out != NULL && (o.special || o.json) ? "--out goes alone: documents get BOS and EOS"
        : o.bad_lines && strcmp(o.bad_lines, "skip") != 0 && strcmp(o.bad_lines, "error") != 0
            ? "--bad-lines is error or skip"
        : o.bench != NULL && (o.decode || o.out != NULL || paths[0] != NULL) ? "--bench goes alone"
                                                                             : NULL;
    if (wrong != NULL) {
        fprintf(stderr, "error: %s\nusage: %s\n", wrong, command.usage);
        return XP_EXIT_USAGE;
    }
    xp_status status = run(&o, paths);
    return status == XP_OK ? XP_EXIT_OK : cli_fail(status);
}
