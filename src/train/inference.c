#include "train/inference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "checkpoint/state.h"
#include "core/file.h"
#include "device/gpu_placement.h"
#include "device/plugin.h"
#include "train/hf_io.h"
#include "train/arch_values.h"
#include "train/param_upload.h"
#include "train/trainer.h"

#define COPY_ELEMENTS ((int64_t)1 << 22)

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

static xp_status check_finite(const xp_ckpt *ckpt, const xp_param_slice *slice, int64_t first,
                              const float *values, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return xp_error(XP_EFORMAT, "%s: %s holds %s at element %lld: the run has diverged",
                            xp_ckpt_path(ckpt), slice->hf_name, isnan(values[i]) ? "NaN" : "Inf",
                            (long long)(first + i));
    return XP_OK;
}

static xp_status load_ckpt_slice(xp_inference *inf, const xp_ckpt *ckpt,
                                 const xp_param_slice *slice, float *buffer) {
    char name[160];
    snprintf(name, sizeof name, "param/%s", slice->hf_name);
    for (int64_t done = 0, n; done < slice->n_elements; done += n) {
        n = slice->n_elements - done < COPY_ELEMENTS ? slice->n_elements - done : COPY_ELEMENTS;
        xp_ckpt_piece piece = {.name = name,
                               .dtype = XP_F32,
                               .n_dims = slice->n_dims,
                               .first = done,
                               .n = n,
                               .data = buffer};
        memcpy(piece.shape, slice->shape, sizeof slice->shape);
        XP_TRY(xp_ckpt_read(ckpt, &piece, 1));
        XP_TRY(check_finite(ckpt, slice, done, buffer, n));
        xp_status status = xp_param_upload(inf->stream, xp_model_param_data(inf->model), inf->dtype,
                                           slice->offset + done, buffer, n);
        if (status != XP_OK)
            return xp_error_context(status, "%s: %s", xp_ckpt_path(ckpt), slice->hf_name);
    }
    return XP_OK;
}

static xp_status load_ckpt_params(xp_inference *inf, const xp_ckpt *ckpt) {
    const xp_param_table *table = xp_model_params(inf->model);
    float *buffer = malloc((size_t)COPY_ELEMENTS * sizeof *buffer);
    xp_status status = buffer ? XP_OK : xp_error(XP_ENOMEM, "no memory to read a checkpoint");
    for (int p = 0; p < xp_param_table_n_params(table) && status == XP_OK; p++)
        for (int i = 0; i < xp_param_table_param(table, p)->n_slices && status == XP_OK; i++) {
            xp_param_slice slice;
            xp_param_table_slice(table, p, i, &slice);
            status = load_ckpt_slice(inf, ckpt, &slice, buffer);
        }
    free(buffer);
    return status;
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

static int count_local_ranks(const xp_comm *comm, int below) {
    int n = 0;
    for (int r = 0; comm && r < below; r++)
        n += xp_comm_node(comm, r) == xp_comm_node(comm, xp_comm_rank(comm));
    return n;
}

/* A kernel that waits for a rank on the same GPU could wait for ever. */
static xp_status check_own_gpu(const xp_inference *inf, xp_comm *comm,
                               const xp_cuda_backend *cuda) {
    char mine[XP_GPU_ID_BYTES], *all = calloc((size_t)xp_comm_size(comm), sizeof mine);
    if (!all)
        return xp_error(XP_ENOMEM, "no memory for the ranks' GPUs");
    xp_status status = cuda->peer_access->identity(inf->device, mine);
    if (status == XP_OK)
        status = xp_comm_all_gather(comm, mine, all, sizeof mine, XP_U8, NULL);
    for (int a = 0; status == XP_OK && a < xp_comm_size(comm); a++)
        for (int b = 0; status == XP_OK && b < a; b++)
            if (memcmp(all + a * XP_GPU_ID_BYTES, all + b * XP_GPU_ID_BYTES, XP_GPU_ID_BYTES) == 0)
                status = xp_error(
                    XP_ECONFIG,
                    "ranks %d and %d have the same GPU: use at most as many ranks as there "
                    "are GPUs",
                    b, a);
    free(all);
    return status;
}

static xp_status make_device(xp_inference *inf, const xp_inference_args *args) {
    const xp_cuda_backend *cuda = NULL;
    const char *kind = args->device ? args->device : "auto";
    const int n_local = args->comm ? count_local_ranks(args->comm, xp_comm_size(args->comm)) : 1;
    const int n_cores = xp_train_n_cores() / n_local;
    xp_device_args device = {.kind = XP_DEVICE_CPU,
                             .n_threads = args->n_threads > 0 ? args->n_threads
                                          : n_cores < 1       ? 1
                                                              : n_cores,
                             .caps = args->caps};
    if (strcmp(kind, "cuda") == 0 ||
        (strcmp(kind, "auto") == 0 && xp_cuda_backend_get(&cuda) == XP_OK))
        device.kind = XP_DEVICE_CUDA;
    if (device.kind == XP_DEVICE_CUDA && args->comm) {
        int n_devices = 0;
        XP_TRY(xp_cuda_backend_get(&cuda));
        XP_TRY(cuda->device_count(&n_devices));
        device.index =
            xp_gpu_choose(count_local_ranks(args->comm, xp_comm_rank(args->comm)), n_devices);
    }
    XP_TRY(xp_device_create(&device, &inf->device));
    if (device.kind == XP_DEVICE_CUDA && args->comm)
        XP_TRY(check_own_gpu(inf, args->comm, cuda));
    XP_TRY(xp_stream_create(inf->device, XP_STREAM_COMPUTE, &inf->stream));
    /* A guarded CPU stands for a GPU. */
    const bool shares_host = xp_device_host_accessible(inf->device);
    inf->dtype = shares_host ? XP_F32 : XP_BF16;
    if (args->dtype && strcmp(args->dtype, "float32") == 0)
        inf->dtype = XP_F32;
    if (args->dtype && strcmp(args->dtype, "bfloat16") == 0 && shares_host)
        return xp_error(XP_ECONFIG, "bfloat16 needs a GPU; the CPU computes in float32");
    return XP_OK;
}

static xp_status make_model(xp_inference *inf, const xp_inference_args *args) {
    XP_TRY(make_device(inf, args));
    xp_model_args model = {.arch = &inf->arch,
                           .n_rows = args->n_rows,
                           .seq_len = args->seq_len,
                           .dtype = inf->dtype,
                           .document_attention = args->document_attention,
                           .inference = true,
                           .keep_logits = args->keep_logits,
                           .ep = {.capacity_factor = 2.0},
                           .ep_comm = args->comm,
                           .device = inf->device};
    if (args->comm &&
        (inf->arch.n_experts == 0 || inf->arch.n_experts % xp_comm_size(args->comm) != 0))
        return xp_error(XP_ECONFIG, "%d ranks do not divide the model's %d experts%s",
                        xp_comm_size(args->comm), inf->arch.n_experts,
                        inf->arch.n_experts == 0 ? ": a dense model runs on one" : "");
    xp_status status = xp_model_create(&model, &inf->model);
    if (status == XP_ENOMEM && xp_device_total_bytes(inf->device) > 0)
        return xp_error_context(
            status,
            "%s (%.1f GiB) does not hold this model in %s; bfloat16, fewer rows at a time, or "
            "--device cpu need less of it",
            xp_device_name(inf->device), (double)xp_device_total_bytes(inf->device) / (1 << 30),
            xp_dtype_name(inf->dtype));
    XP_TRY(status);
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
                            .dtype = inf->dtype,
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

/* Random weights of the run's own initialisation. They pass through the host: nothing else of the size of a model is
 * reserved. */
static xp_status draw(xp_inference *inf, float *drawn, float *buffer) {
    const xp_param_table *table = xp_model_params(inf->model);
    const int64_t total = xp_param_table_n_elements(table);
    for (int64_t first = 0, n; first < total; first += n) {
        n = total - first < COPY_ELEMENTS ? total - first : COPY_ELEMENTS;
        XP_TRY(xp_param_table_draw(table, 0, first, n, inf->stream, drawn));
        XP_TRY(xp_copy(inf->stream, buffer, drawn, (size_t)n * sizeof *buffer));
        XP_TRY(xp_stream_sync(inf->stream));
        XP_TRY(xp_param_upload(inf->stream, xp_model_param_data(inf->model), inf->dtype, first,
                               buffer, n));
    }
    return XP_OK;
}

static xp_status open_flavor(xp_inference *inf, const xp_inference_args *args) {
    const xp_config config = {.model = {.flavor = args->flavor, .tie_embeddings = -1},
                              .moe = {.route_norm = -1, .use_deepep = -1}};
    void *drawn = NULL;
    snprintf(inf->source, sizeof inf->source, "%s with random weights", args->flavor);
    XP_TRY(xp_arch_from_config(&config, &inf->arch));
    XP_TRY(make_model(inf, args));
    float *buffer = malloc((size_t)COPY_ELEMENTS * sizeof *buffer);
    xp_status status = buffer ? xp_device_alloc(inf->device, (size_t)COPY_ELEMENTS * sizeof *buffer,
                                                "staging", &drawn)
                              : xp_error(XP_ENOMEM, "no memory to draw weights");
    if (status == XP_OK)
        status = draw(inf, drawn, buffer);
    xp_device_free(inf->device, drawn);
    free(buffer);
    return status;
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
    if (args->flavor != NULL) {
        status = open_flavor(&made, args);
    } else if (args->hf != NULL) {
        status = open_hf(&made, args);
    } else {
        xp_ckpt *ckpt = NULL;
        status = xp_inference_find_ckpt(args->checkpoint, args->step, &ckpt);
        if (status == XP_ENOENT && args->step < 0)
            status = xp_ckpt_none_in(args->checkpoint);
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
