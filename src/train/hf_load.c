/* Weights of a Hugging Face folder into a model, and a word about what stays unused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "train/hf_tensors.h"
#include "train/hf_io.h"
#include "train/param_upload.h"

#define COPY_ELEMENTS ((int64_t)1 << 20)

typedef struct loader {
    const xp_hf_load_args *args;
    const xp_hf_reader *reader;
    float *buffer;  /* [COPY_ELEMENTS] */
    float *scratch; /* an expert's transposed block; grown when needed */
    int64_t scratch_elements;
} loader;

static xp_status no_memory(const char *folder) {
    return xp_error(XP_ENOMEM, "no memory to read %s", folder);
}

/* A value that is no number spoils everything that is computed from it, at once or whenever its
 * row is used. */
static xp_status check_finite(const loader *l, const xp_st_tensor *tensor,
                              const xp_param_slice *slice, int64_t first, int64_t n) {
    const int64_t row = slice->shape[slice->n_dims - 1];
    for (int64_t i = 0; i < n; i++) {
        if (isfinite(l->buffer[i]))
            continue;
        return xp_error(XP_EFORMAT,
                        "%s: %s holds %s (%s, row %lld, column %lld): the weights are damaged, or "
                        "come from a run that diverged",
                        l->args->folder, tensor->name, isnan(l->buffer[i]) ? "NaN" : "Inf",
                        slice->hf_name, (long long)((first + i) / row),
                        (long long)((first + i) % row));
    }
    return XP_OK;
}

static xp_status store(const loader *l, const xp_st_tensor *tensor, int64_t at, int64_t n) {
    const xp_hf_load_args *args = l->args;
    xp_status status = xp_param_upload(args->stream, args->params, args->dtype, at, l->buffer, n);
    return status == XP_EFORMAT ? xp_error_context(status, "%s: %s", args->folder, tensor->name)
                                : status;
}

static xp_status grow_scratch(loader *l, int64_t n) {
    if (n <= l->scratch_elements)
        return XP_OK;
    float *grown = realloc(l->scratch, (size_t)n * sizeof *grown);
    if (grown == NULL)
        return no_memory(l->args->folder);
    l->scratch = grown;
    l->scratch_elements = n;
    return XP_OK;
}

/* Elements [done, done + n) of the slice into the buffer. */
static xp_status read_some(loader *l, const xp_hf_source_view *view, int64_t done, int64_t n) {
    if (view->stride == 0)
        return xp_st_read_f32(view->tensor, view->first + done, n, l->buffer);
    for (int64_t i = 0; i < n; i++) {
        int64_t row = (done + i) / view->n_columns, column = (done + i) % view->n_columns;
        l->buffer[i] = l->scratch[column * view->stride + view->offset + row];
    }
    return XP_OK;
}

static xp_status load_slice(loader *l, const xp_param_slice *slice) {
    xp_hf_source_view view;
    XP_TRY(xp_hf_locate(l->reader, l->args->arch, l->args->folder, slice, &view));
    xp_status status = XP_OK;
    if (view.stride > 0) {
        XP_TRY(grow_scratch(l, view.block_elements));
        status = xp_st_read_f32(view.tensor, view.first, view.block_elements, l->scratch);
    }
    for (int64_t done = 0; done < slice->n_elements && status == XP_OK; done += COPY_ELEMENTS) {
        int64_t left = slice->n_elements - done;
        int64_t n = left < COPY_ELEMENTS ? left : COPY_ELEMENTS;
        status = read_some(l, &view, done, n);
        if (status != XP_OK)
            break;
        XP_TRY(check_finite(l, view.tensor, slice, done, n));
        XP_TRY(store(l, view.tensor, slice->offset + done, n));
    }
    return status == XP_OK ? XP_OK : xp_error_context(status, "%s", l->args->folder);
}

static xp_status load_all(loader *l) {
    const xp_param_table *table = l->args->table;
    for (int p = 0; p < xp_param_table_n_params(table); p++) {
        for (int i = 0; i < xp_param_table_param(table, p)->n_slices; i++) {
            xp_param_slice slice;
            xp_param_table_slice(table, p, i, &slice);
            XP_TRY(load_slice(l, &slice));
        }
    }
    return XP_OK;
}

static xp_status load_bias(const char *path, const xp_arch *arch, float *bias) {
    xp_st_file *file = NULL;
    XP_TRY(xp_st_open(path, &file));
    xp_status status = XP_OK;
    for (int64_t l = 0; l < arch->n_layers && status == XP_OK; l++) {
        char name[64];
        float *values = bias + l * arch->n_experts;
        xp_hf_bias_name(l, name);
        const xp_st_tensor *tensor = xp_st_find(file, name);
        if (!tensor || tensor->n_elements != arch->n_experts)
            status = xp_error(XP_EFORMAT, "%s: %s is missing or has not %d elements", path, name,
                              arch->n_experts);
        else
            status = xp_st_read_f32(tensor, 0, arch->n_experts, values);
        for (int e = 0; e < arch->n_experts && status == XP_OK; e++)
            if (!isfinite(values[e]))
                status = xp_error(XP_EFORMAT, "%s: %s holds a value that is no number (expert %d)",
                                  path, name, e);
    }
    xp_st_close(file);
    return status;
}

xp_status xp_hf_load_params(const xp_hf_load_args *args) {
    xp_hf_reader *reader = NULL;
    XP_TRY(xp_hf_open(args->folder, &reader));
    loader l = {.args = args, .reader = reader};
    l.buffer = malloc((size_t)COPY_ELEMENTS * sizeof *l.buffer);
    xp_status status = l.buffer ? load_all(&l) : no_memory(args->folder);
    free(l.buffer);
    free(l.scratch);
    if (status == XP_OK && args->warn)
        status = xp_hf_report_unused(args, reader);
    xp_hf_close(reader);
    if (status != XP_OK || !args->bias)
        return status;
    char *extra = xp_path_join(args->folder, XP_HF_EXTRA_FILE);
    if (!extra)
        return no_memory(args->folder);
    bool found = false;
    status = xp_path_exists(extra, &found);
    if (status == XP_OK && found)
        status = load_bias(extra, args->arch, args->bias);
    free(extra);
    return status;
}
