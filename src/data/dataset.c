#include "data/loader.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "data/mixture.h"
#include "data/source.h"

struct xp_dataset {
    bool document_attention;
    int64_t seq_len;
    int n_sources;
    xp_source **sources; /* [n_sources] */
    char **names;        /* [n_sources] their paths */
    xp_mixture mixture;  /* of several */
};

static bool is_text_kind(const char *kind) {
    return strcmp(kind, "text") == 0 || strncmp(kind, "c4", 2) == 0;
}

static xp_status check_text(const xp_dataset_args *args) {
    if (args->tokenizer == NULL)
        return xp_error(XP_ECONFIG,
                        "text data needs a tokenizer: set model.hf_assets_path to a folder that "
                        "holds tokenizer.json");
    int64_t vocab = xp_tokenizer_vocab_size(args->tokenizer);
    if (vocab > args->vocab_size)
        return xp_error(XP_ECONFIG,
                        "the tokenizer has %" PRId64 " tokens but the model's vocabulary %" PRId64
                        "; use another model.hf_assets_path or set model.vocab_size",
                        vocab, args->vocab_size);
    bool warn;
    const char *note = xp_tokenizer_border_note(args->tokenizer, &warn);
    if (note == NULL || !args->note_borders)
        return XP_OK;
    if (warn)
        xp_log_warn(args->log, "%s", note);
    else
        xp_log_info(args->log, "%s", note);
    return XP_OK;
}

static xp_status check_args(const xp_dataset_args *args) {
    bool is_text = is_text_kind(args->kind);
    if (!is_text && strcmp(args->kind, "tokens") != 0)
        return xp_error(XP_ECONFIG, "no dataset kind \"%s\"; there are text, tokens and c4",
                        args->kind);
    if (args->n_sources == 0 && (args->path == NULL || args->path[0] == '\0'))
        return xp_error(XP_ECONFIG, "training.dataset_path is not set: give a file, a folder or a "
                                    "glob");
    if (!is_text && args->document_attention && args->eos_id < 0)
        return xp_error(XP_ECONFIG, "training.attention = \"document\" on token files needs a "
                                    "tokenizer with an EOS token (model.hf_assets_path)");
    return is_text ? check_text(args) : XP_OK;
}

static xp_status open_source(xp_dataset *d, const xp_dataset_args *args, int i) {
    const char *path = args->n_sources > 0 ? args->sources[i].path : args->path;
    d->names[i] = strdup(path);
    if (d->names[i] == NULL)
        return xp_error(XP_ENOMEM, "data: out of memory");
    return xp_source_open(args, path, &d->sources[i]);
}

static void describe_sources(const xp_dataset *d, xp_log *log) {
    for (int i = 0; i < d->n_sources; i++)
        xp_log_info(log,
                    "data: %.2f %% of the rows from %s (%" PRId64 " tokens = %" PRId64 " rows)",
                    100.0 * d->mixture.quota[i] / XP_MIXTURE_PERIOD, d->names[i],
                    xp_source_n_tokens(d->sources[i]), xp_source_n_rows(d->sources[i]));
}

static xp_status open_sources(xp_dataset *d, const xp_dataset_args *args) {
    d->sources = calloc((size_t)d->n_sources, sizeof *d->sources);
    d->names = calloc((size_t)d->n_sources, sizeof *d->names);
    if (d->sources == NULL || d->names == NULL)
        return xp_error(XP_ENOMEM, "data: out of memory");
    if (args->n_sources > 0) {
        double weights[XP_MIXTURE_MAX_SOURCES];
        for (int i = 0; i < args->n_sources && i < XP_MIXTURE_MAX_SOURCES; i++)
            weights[i] = args->sources[i].weight;
        XP_TRY(xp_mixture_create(weights, args->n_sources, &d->mixture));
    }
    for (int i = 0; i < d->n_sources; i++)
        XP_TRY(open_source(d, args, i));
    if (args->n_sources > 0)
        describe_sources(d, args->log);
    return XP_OK;
}

xp_status xp_dataset_open(const xp_dataset_args *args, xp_dataset **dataset) {
    XP_TRY(check_args(args));
    xp_dataset *d = calloc(1, sizeof *d);
    if (d == NULL)
        return xp_error(XP_ENOMEM, "data: out of memory");
    d->document_attention = args->document_attention;
    d->seq_len = args->seq_len;
    d->n_sources = args->n_sources > 0 ? args->n_sources : 1;
    xp_status status = open_sources(d, args);
    if (status != XP_OK) {
        xp_dataset_close(d);
        return status;
    }
    *dataset = d;
    return XP_OK;
}

void xp_dataset_close(xp_dataset *d) {
    if (d == NULL)
        return;
    for (int i = 0; i < d->n_sources; i++) {
        if (d->sources != NULL)
            xp_source_close(d->sources[i]);
        if (d->names != NULL)
            free(d->names[i]);
    }
    free(d->sources);
    free(d->names);
    xp_mixture_destroy(&d->mixture);
    free(d);
}

static int64_t sum(const xp_dataset *d, int64_t (*of)(const xp_source *)) {
    int64_t total = 0;
    for (int i = 0; i < d->n_sources; i++)
        total += of(d->sources[i]);
    return total;
}

int64_t xp_dataset_n_tokens(const xp_dataset *d) {
    return sum(d, xp_source_n_tokens);
}

int64_t xp_dataset_n_rows(const xp_dataset *d) {
    return sum(d, xp_source_n_rows);
}

int64_t xp_dataset_n_documents(const xp_dataset *d) {
    return sum(d, xp_source_n_documents);
}

int64_t xp_dataset_seq_len(const xp_dataset *d) {
    return d->seq_len;
}

static void find_row(const xp_dataset *d, int64_t n, int *source, int64_t *row) {
    *source = 0;
    *row = n;
    if (d->mixture.n_sources > 0)
        xp_mixture_row(&d->mixture, n, source, row);
}

void xp_dataset_log_restarts(const xp_dataset *d, int64_t first, int64_t n, xp_log *log) {
    for (int64_t i = first; i < first + n && log != NULL; i++) {
        int source;
        int64_t row;
        find_row(d, i, &source, &row);
        int64_t n_rows = xp_source_n_rows(d->sources[source]);
        if (row > 0 && row % n_rows == 0)
            xp_log_info(log, "data: %s starts over: epoch %" PRId64 " begins", d->names[source],
                        row / n_rows + 1);
    }
}

/* Inputs, targets, positions and document starts from a row of seq_len + 1 tokens. */
static void cut_row(const xp_dataset *d, const int32_t *row, const char *new_document,
                    int32_t *tokens, int32_t *targets, int32_t *positions, int32_t *doc_start) {
    int32_t start = 0;
    for (int64_t i = 0; i < d->seq_len; i++) {
        bool crosses = d->document_attention && new_document[i + 1];
        if (d->document_attention && new_document[i])
            start = (int32_t)i;
        tokens[i] = row[i];
        targets[i] = crosses ? -1 : row[i + 1];
        positions[i] = (int32_t)i - start;
        doc_start[i] = start;
    }
}

xp_status xp_dataset_row(const xp_dataset *d, int64_t n, int32_t *tokens, int32_t *targets,
                         int32_t *positions, int32_t *doc_start) {
    int64_t length = d->seq_len + 1;
    int32_t *row = malloc((size_t)length * (sizeof *row + 1));
    if (row == NULL)
        return xp_error(XP_ENOMEM, "data: out of memory");
    char *new_document = (char *)(row + length);
    int source;
    int64_t at;
    find_row(d, n, &source, &at);
    xp_status status = xp_source_row(d->sources[source], at, row, new_document);
    if (status == XP_OK)
        cut_row(d, row, new_document, tokens, targets, positions, doc_start);
    free(row);
    return status;
}
