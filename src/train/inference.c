#include "train/inference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "checkpoint/state.h"
#include "core/file.h"
#include "train/hf_io.h"
#include "train/arch_values.h"
#include "train/trainer.h"

xp_status xp_inference_find_ckpt(const char *path, int64_t step, xp_ckpt **ckpt) {
    char inside[4096];
    bool found = false;
    snprintf(inside, sizeof inside, "%s/manifest.json", path);
    XP_TRY(xp_path_exists(inside, &found));
    if (found)
        return xp_ckpt_open_path(path, ckpt);
    snprintf(inside, sizeof inside, "%s/checkpoint", path);
    XP_TRY(xp_path_is_folder(inside, &found));
    return xp_ckpt_open(found ? inside : path, step, ckpt);
}

/* ---- from a checkpoint ------------------------------------------------------------------- */

static xp_status check_finite(const xp_ckpt *ckpt, const xp_param_slice *slice,
                              const float *values) {
    for (int64_t i = 0; i < slice->n_elements; i++)
        if (!isfinite(values[i]))
            return xp_error(XP_EFORMAT, "%s: %s holds %s at element %lld: the run has diverged",
                            xp_ckpt_path(ckpt), slice->hf_name, isnan(values[i]) ? "NaN" : "Inf",
                            (long long)i);
    return XP_OK;
}

static xp_status load_ckpt_params(xp_inference *inf, const xp_ckpt *ckpt) {
    const xp_param_table *table = xp_model_params(inf->model);
    float *params = xp_model_param_data(inf->model);
    for (int p = 0; p < xp_param_table_n_params(table); p++)
        for (int i = 0; i < xp_param_table_param(table, p)->n_slices; i++) {
            xp_param_slice slice;
            char name[160];
            xp_param_table_slice(table, p, i, &slice);
            snprintf(name, sizeof name, "param/%s", slice.hf_name);
            xp_ckpt_piece piece = {.name = name,
                                   .dtype = XP_F32,
                                   .n_dims = slice.n_dims,
                                   .n = slice.n_elements,
                                   .data = params + slice.offset};
            memcpy(piece.shape, slice.shape, sizeof slice.shape);
            XP_TRY(xp_ckpt_read(ckpt, &piece, 1));
            XP_TRY(check_finite(ckpt, &slice, params + slice.offset));
        }
    return XP_OK;
}

static xp_status load_ckpt_bias(xp_inference *inf, const xp_ckpt *ckpt) {
    for (int64_t l = 0; inf->bias != NULL && l < inf->arch.n_layers; l++) {
        char name[32];
        snprintf(name, sizeof name, "expert_bias/%lld", (long long)l);
        int n_dims;
        int64_t shape[3];
        if (!xp_ckpt_has(ckpt, name, &n_dims, shape))
            continue;
        xp_ckpt_piece piece = {.name = name,
                               .dtype = XP_F32,
                               .n_dims = 1,
                               .shape = {inf->arch.n_experts},
                               .n = inf->arch.n_experts,
                               .data = inf->bias + l * inf->arch.n_experts};
        XP_TRY(xp_ckpt_read(ckpt, &piece, 1));
    }
    return XP_OK;
}

/* ---- both -------------------------------------------------------------------------------- */

static xp_status make_model(xp_inference *inf, const xp_inference_args *args) {
    xp_device_args device = {.kind = XP_DEVICE_CPU,
                             .n_threads =
                                 args->n_threads > 0 ? args->n_threads : xp_train_n_cores()};
    XP_TRY(xp_device_create(&device, &inf->device));
    XP_TRY(xp_stream_create(inf->device, XP_STREAM_COMPUTE, &inf->stream));
    xp_model_args model = {.arch = &inf->arch,
                           .n_rows = args->n_rows,
                           .seq_len = args->seq_len,
                           .document_attention = args->document_attention,
                           .inference = true,
                           .keep_logits = args->keep_logits,
                           .ep = {.capacity_factor = 2.0},
                           .device = inf->device};
    XP_TRY(xp_model_create(&model, &inf->model));
    if (inf->arch.n_experts > 0) {
        inf->bias = calloc((size_t)(inf->arch.n_layers * inf->arch.n_experts), sizeof *inf->bias);
        if (inf->bias == NULL)
            return xp_error(XP_ENOMEM, "no memory for the expert bias");
    }
    return XP_OK;
}

static xp_status find_tokenizer(xp_inference *inf, const xp_inference_args *args, const char *own) {
    const char *path = args->tokenizer != NULL ? args->tokenizer : own;
    if (path != NULL && path[0] != '\0') {
        xp_status status = xp_tokenizer_load(path, &inf->tokenizer);
        if (status == XP_OK || args->tokenizer != NULL || args->need_tokenizer)
            return status;
        inf->tokenizer = NULL;
        return XP_OK;
    }
    if (args->need_tokenizer)
        return xp_error(XP_ECONFIG, "%s names no tokenizer; give one with --tokenizer FOLDER",
                        inf->source);
    return XP_OK;
}

static xp_status open_hf(xp_inference *inf, const xp_inference_args *args) {
    char path[4096];
    snprintf(inf->source, sizeof inf->source, "%s", args->hf);
    bool found = false;
    XP_TRY(xp_path_is_folder(args->hf, &found));
    if (!found)
        return xp_error(XP_ENOENT,
                        "%s is no folder; give a Hugging Face folder with config.json "
                        "and model.safetensors",
                        args->hf);
    snprintf(path, sizeof path, "%s/config.json", args->hf);
    XP_TRY(xp_arch_from_hf(path, &inf->arch));
    XP_TRY(make_model(inf, args));
    xp_hf_load_args load = {.folder = args->hf,
                            .arch = &inf->arch,
                            .table = xp_model_params(inf->model),
                            .params = xp_model_param_data(inf->model),
                            .dtype = XP_F32,
                            .stream = inf->stream,
                            .bias = inf->bias,
                            .warn = args->warn,
                            .warn_context = args->warn_context};
    XP_TRY(xp_hf_load_params(&load));
    snprintf(path, sizeof path, "%s/tokenizer.json", args->hf);
    XP_TRY(xp_path_exists(path, &found));
    return find_tokenizer(inf, args, found ? args->hf : NULL);
}

static xp_status fill_from_ckpt(xp_inference *inf, const xp_inference_args *args,
                                const xp_ckpt *ckpt) {
    snprintf(inf->source, sizeof inf->source, "%s", xp_ckpt_path(ckpt));
    inf->step = xp_ckpt_step(ckpt);
    XP_TRY(xp_arch_values_read(ckpt, &inf->arch));
    XP_TRY(make_model(inf, args));
    XP_TRY(load_ckpt_params(inf, ckpt));
    XP_TRY(load_ckpt_bias(inf, ckpt));
    char assets[PATH_MAX];
    XP_TRY(xp_hf_find_assets(ckpt, assets));
    return find_tokenizer(inf, args, assets);
}

xp_status xp_inference_use_bias(xp_inference *inf, bool use) {
    if (inf->bias == NULL)
        return XP_OK;
    size_t n_bytes = (size_t)(inf->arch.n_layers * inf->arch.n_experts) * sizeof *inf->bias;
    float *home = xp_model_expert_bias(inf->model);
    XP_TRY(use ? xp_copy(inf->stream, home, inf->bias, n_bytes)
               : xp_zero(inf->stream, home, n_bytes));
    return xp_stream_sync(inf->stream);
}

xp_status xp_inference_open(const xp_inference_args *args, xp_inference *inference) {
    xp_inference made = {.step = -1};
    xp_status status;
    if (args->hf != NULL) {
        status = open_hf(&made, args);
    } else {
        xp_ckpt *ckpt = NULL;
        status = xp_inference_find_ckpt(args->checkpoint, args->step, &ckpt);
        if (status == XP_ENOENT && args->step < 0)
            status = xp_error(XP_ENOENT, "no complete checkpoint in %s", args->checkpoint);
        if (status == XP_OK)
            status = fill_from_ckpt(&made, args, ckpt);
        xp_ckpt_close(ckpt);
    }
    for (int64_t i = 0; made.bias != NULL && i < made.arch.n_layers * made.arch.n_experts; i++)
        made.has_bias = made.has_bias || made.bias[i] != 0.0F;
    if (status == XP_OK)
        status = xp_inference_use_bias(&made, true);
    if (status != XP_OK) {
        xp_inference_close(&made);
        return status;
    }
    *inference = made;
    return XP_OK;
}

void xp_inference_close(xp_inference *inference) {
    free(inference->bias);
    xp_tokenizer_destroy(inference->tokenizer);
    xp_model_destroy(inference->model);
    xp_stream_destroy(inference->stream);
    xp_device_destroy(inference->device);
    *inference = (xp_inference){0};
}
