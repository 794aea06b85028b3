/* Tensors of a Hugging Face folder that the model does not compute with. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/text.h"
#include "train/hf_tensors.h"

#define N_NAMED   6 /* tensors of a kind that a warning lists */
#define N_COMPARE ((int64_t)1 << 16)

typedef enum unused_kind {
    UNUSED_BIAS,
    UNUSED_SHARED_EXPERT,
    UNUSED_LAYER,
    UNUSED_OTHER,
    UNUSED_N_KINDS
} unused_kind;

static const char *const reasons[] = {
    [UNUSED_BIAS] = "biases, which this model does not have: it computes something else than "
                    "the model they were trained in",
    [UNUSED_SHARED_EXPERT] = "shared experts, which expar does not compute: it computes something "
                             "else than the model they were trained in",
    [UNUSED_LAYER] = "layers past the number that config.json gives",
    [UNUSED_OTHER] = "tensors that this model does not have",
};

static unused_kind kind_of(const char *name, const xp_arch *arch) {
    long long layer = 0;
    if (sscanf(name, "model.layers.%lld.", &layer) == 1 && layer >= arch->n_layers)
        return UNUSED_LAYER;
    if (strstr(name, "shared_expert"))
        return UNUSED_SHARED_EXPERT;
    size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, ".bias") == 0 ? UNUSED_BIAS : UNUSED_OTHER;
}

/* Constants that old versions wrote beside the weights, computed from the configuration. */
static bool is_derived(const char *name) {
    return strstr(name, ".rotary_emb.") != NULL;
}

static xp_status mark_used(const xp_hf_load_args *args, const xp_hf_reader *reader, bool *used) {
    xp_param_table *table = NULL;
    XP_TRY(xp_param_table_create(args->arch, 0, 1, &table)); /* all experts, not only this rank's */
    for (int p = 0; p < xp_param_table_n_params(table); p++) {
        for (int i = 0; i < xp_param_table_param(table, p)->n_slices; i++) {
            xp_param_slice slice;
            xp_hf_source_view view;
            xp_param_table_slice(table, p, i, &slice);
            if (xp_hf_locate(reader, args->arch, args->folder, &slice, &view) == XP_OK)
                used[view.index] = true;
        }
    }
    xp_param_table_destroy(table);
    return XP_OK;
}

static xp_status same_values(const xp_st_tensor *a, const xp_st_tensor *b, bool *same) {
    *same = a->n_elements == b->n_elements;
    float *values = malloc(2 * (size_t)N_COMPARE * sizeof *values);
    if (!values)
        return xp_error(XP_ENOMEM, "no memory to compare %s", a->name);
    xp_status status = XP_OK;
    for (int64_t i = 0; i < a->n_elements && *same && status == XP_OK; i += N_COMPARE) {
        int64_t n = a->n_elements - i < N_COMPARE ? a->n_elements - i : N_COMPARE;
        status = xp_st_read_f32(a, i, n, values);
        if (status == XP_OK)
            status = xp_st_read_f32(b, i, n, values + N_COMPARE);
        *same =
            status == XP_OK && memcmp(values, values + N_COMPARE, (size_t)n * sizeof *values) == 0;
    }
    free(values);
    return status;
}

/* A head in the file of a model whose head is its embedding: nothing to say when they agree. */
static xp_status look_at_head(const xp_hf_load_args *args, const xp_hf_reader *reader, bool *used) {
    int64_t head = xp_hf_index(reader, "lm_head.weight");
    const xp_st_tensor *embed = xp_hf_find(reader, "model.embed_tokens.weight");
    bool same = true;
    if (!args->arch->tie_embeddings || head < 0 || !embed)
        return XP_OK;
    used[head] = true;
    XP_TRY(same_values(xp_hf_tensor_at(reader, head), embed, &same));
    if (!same) {
        char text[512];
        snprintf(
            text, sizeof text,
            "%.300s: lm_head.weight differs from the embedding, but tie_word_embeddings is true: "
            "the "
            "embedding is used for both. Set tie_word_embeddings to false in config.json to use it",
            args->folder);
        args->warn(args->warn_context, text);
    }
    return XP_OK;
}

static void report_kind(const xp_hf_load_args *args, const xp_hf_reader *reader, const bool *used,
                        unused_kind kind) {
    xp_text names = {0};
    int64_t n = 0;
    for (int64_t i = 0; i < xp_hf_n_tensors(reader); i++) {
        const char *name = xp_hf_name_at(reader, i);
        if (used[i] || is_derived(name) || kind_of(name, args->arch) != kind)
            continue;
        if (n++ < N_NAMED)
            xp_text_printf(&names, "%s%.160s", n > 1 ? ", " : "", xp_hf_tensor_at(reader, i)->name);
    }
    if (n > N_NAMED)
        xp_text_printf(&names, " and %lld more", (long long)(n - N_NAMED));
    xp_text line = {0};
    if (n > 0 && !names.failed)
        xp_text_printf(&line, "%s: not used, %s: %s", args->folder, reasons[kind], names.data);
    if (line.data && !line.failed)
        args->warn(args->warn_context, line.data);
    xp_text_free(&line);
    xp_text_free(&names);
}

xp_status xp_hf_report_unused(const xp_hf_load_args *args, const xp_hf_reader *reader) {
    bool *used = calloc((size_t)xp_hf_n_tensors(reader) + 1, sizeof *used);
    if (!used)
        return xp_error(XP_ENOMEM, "no memory to read %s", args->folder);
    xp_status status = mark_used(args, reader, used);
    if (status == XP_OK)
        status = look_at_head(args, reader, used);
    for (int kind = 0; kind < UNUSED_N_KINDS && status == XP_OK; kind++)
        report_kind(args, reader, used, (unused_kind)kind);
    free(used);
    return status;
}
