#include "train/hf_tensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/arena.h"
#include "core/file.h"
#include "data/tokenizer.h"

/* One tensor's way out of the checkpoint: its pieces there one after the other, all of one size. `piece` is a
 * template; a fused tensor has the names of its parts in `parts`. */
typedef struct ckpt_tensor {
    const xp_ckpt *ckpt;
    xp_ckpt_piece piece;
    const char **parts;
    int64_t part_elements;
} ckpt_tensor;

static xp_status fill_from_ckpt(void *context, int64_t first, int64_t n, float *out) {
    const ckpt_tensor *tensor = context;
    xp_ckpt_piece piece = tensor->piece;
    if (!tensor->parts) {
        piece.first = first;
        piece.n = n;
        piece.data = out;
        return xp_ckpt_read(tensor->ckpt, &piece, 1);
    }
    for (int64_t done = 0; done < n; done += piece.n) {
        const int64_t part = (first + done) / tensor->part_elements;
        piece.name = tensor->parts[part];
        piece.first = first + done - part * tensor->part_elements;
        piece.n = tensor->part_elements - piece.first;
        if (piece.n > n - done)
            piece.n = n - done;
        piece.data = out + done;
        XP_TRY(xp_ckpt_read(tensor->ckpt, &piece, 1));
    }
    return XP_OK;
}

typedef struct export_list {
    xp_arena *arena;
    xp_hf_source *sources;
    ckpt_tensor *tensors;
    int64_t n;
} export_list;

static xp_status list_alloc(export_list *list, int64_t n) {
    list->sources = xp_arena_alloc(list->arena, (size_t)(n + 1) * sizeof *list->sources);
    list->tensors = xp_arena_alloc(list->arena, (size_t)(n + 1) * sizeof *list->tensors);
    return list->sources && list->tensors ? XP_OK : xp_error(XP_ENOMEM, "no memory for the export");
}

static xp_status list_add(export_list *list, const xp_ckpt *ckpt, const char *hf_name,
                          const char *ckpt_name, int n_dims, const int64_t *shape) {
    const char *name = xp_arena_strdup(list->arena, hf_name);
    const char *in_ckpt = xp_arena_strdup(list->arena, ckpt_name);
    if (!name || !in_ckpt)
        return xp_error(XP_ENOMEM, "no memory for the export");
    ckpt_tensor *tensor = &list->tensors[list->n];
    xp_hf_source *source = &list->sources[list->n++];
    *tensor =
        (ckpt_tensor){.ckpt = ckpt, .piece = {.name = in_ckpt, .dtype = XP_F32, .n_dims = n_dims}};
    *source =
        (xp_hf_source){.name = name, .n_dims = n_dims, .fill = fill_from_ckpt, .context = tensor};
    for (int d = 0; d < n_dims; d++)
        tensor->piece.shape[d] = source->shape[d] = shape[d];
    return XP_OK;
}

/* A layer's experts as one tensor: w13 and w2 are laid out as transformers' gate_up_proj and down_proj are. */
static xp_status list_fused(export_list *list, const xp_ckpt *ckpt, const xp_param_table *table,
                            int p) {
    const xp_param *param = xp_param_table_param(table, p);
    const char **parts = xp_arena_alloc(list->arena, (size_t)param->n_slices * sizeof *parts);
    char name[128];
    xp_param_slice slice;
    if (!parts)
        return xp_error(XP_ENOMEM, "no memory for the export");
    for (int i = 0; i < param->n_slices; i++) {
        xp_param_table_slice(table, p, i, &slice);
        parts[i] = xp_arena_printf(list->arena, "param/%s", slice.hf_name);
        if (!parts[i])
            return xp_error(XP_ENOMEM, "no memory for the export");
    }
    const int layer = xp_param_table_group(table, param->group)->layer;
    snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%s", layer,
             strstr(param->name, "w13") ? "gate_up_proj" : "down_proj");
    XP_TRY(list_add(list, ckpt, name, parts[0], param->n_dims, param->shape));
    ckpt_tensor *tensor = &list->tensors[list->n - 1];
    tensor->parts = parts;
    tensor->part_elements = slice.n_elements;
    tensor->piece.n_dims = slice.n_dims;
    memcpy(tensor->piece.shape, slice.shape, sizeof slice.shape);
    return XP_OK;
}

static xp_status list_params(export_list *list, const xp_ckpt *ckpt, const xp_param_table *table,
                             bool fused) {
    int64_t n = 0;
    for (int p = 0; p < xp_param_table_n_params(table); p++)
        n += xp_param_table_param(table, p)->n_slices;
    XP_TRY(list_alloc(list, n));
    for (int p = 0; p < xp_param_table_n_params(table); p++) {
        const xp_param *param = xp_param_table_param(table, p);
        if (fused && xp_param_table_group(table, param->group)->is_expert) {
            XP_TRY(list_fused(list, ckpt, table, p));
            continue;
        }
        for (int i = 0; i < param->n_slices; i++) {
            xp_param_slice slice;
            char name[160];
            xp_param_table_slice(table, p, i, &slice);
            snprintf(name, sizeof name, "param/%s", slice.hf_name);
            XP_TRY(list_add(list, ckpt, slice.hf_name, name, slice.n_dims, slice.shape));
        }
    }
    return XP_OK;
}

static xp_status bias_is_trained(const xp_ckpt *ckpt, const xp_arch *arch, bool *trained) {
    *trained = false;
    float *values = calloc((size_t)arch->n_experts + 1, sizeof *values);
    if (!values)
        return xp_error(XP_ENOMEM, "no memory for the export");
    xp_status status = XP_OK;
    for (int64_t l = 0; arch->n_experts > 0 && l < arch->n_layers && status == XP_OK; l++) {
        char name[32];
        int n_dims = 0;
        int64_t shape[3];
        snprintf(name, sizeof name, "expert_bias/%lld", (long long)l);
        if (!xp_ckpt_has(ckpt, name, &n_dims, shape))
            break;
        xp_ckpt_piece piece = {.name = name,
                               .dtype = XP_F32,
                               .n_dims = 1,
                               .shape = {arch->n_experts},
                               .n = arch->n_experts,
                               .data = values};
        status = xp_ckpt_read(ckpt, &piece, 1);
        for (int e = 0; e < arch->n_experts; e++)
            *trained = *trained || values[e] != 0;
    }
    free(values);
    return status;
}

static xp_status list_bias(export_list *list, const xp_ckpt *ckpt, const xp_arch *arch) {
    bool trained = false;
    XP_TRY(bias_is_trained(ckpt, arch, &trained));
    if (!trained)
        return XP_OK;
    XP_TRY(list_alloc(list, arch->n_layers));
    for (int64_t l = 0; l < arch->n_layers; l++) {
        char hf_name[64];
        char name[32];
        int64_t n_experts = arch->n_experts;
        xp_hf_bias_name(l, hf_name);
        snprintf(name, sizeof name, "expert_bias/%lld", (long long)l);
        XP_TRY(list_add(list, ckpt, hf_name, name, 1, &n_experts));
    }
    return XP_OK;
}

/* The folder of a tokenizer, or of the one file that was given. */
static void folder_of(const char *path, char out[PATH_MAX]) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (strcmp(name, "tokenizer.json") != 0)
        snprintf(out, PATH_MAX, "%s", path);
    else if (slash)
        snprintf(out, PATH_MAX, "%.*s", (int)(slash - path), path);
    else
        snprintf(out, PATH_MAX, ".");
}

/* Without a tokenizer.json there are no ids to read; what is wrong with one was said when it was loaded. */
static void read_ids(const char *folder, xp_arch_hf_args *hf) {
    xp_tokenizer *tokenizer = NULL;
    if (!folder || xp_tokenizer_load(folder, &tokenizer) != XP_OK)
        return;
    hf->bos = xp_tokenizer_bos(tokenizer);
    hf->eos = xp_tokenizer_eos(tokenizer);
    xp_tokenizer_destroy(tokenizer);
}

static xp_status has_tokenizer(const char *folder, bool *has) {
    char *path = xp_path_join(folder, "tokenizer.json");
    if (!path)
        return xp_error(XP_ENOMEM, "no memory for the export");
    xp_status status = xp_path_exists(path, has);
    free(path);
    return status;
}

static xp_status export_lists(const xp_hf_from_ckpt_args *args, export_list *params,
                              export_list *bias) {
    char assets[PATH_MAX] = "", source[PATH_MAX + 16], given[PATH_MAX] = "";
    bool found = args->tokenizer_folder != NULL;
    char *json = NULL, *generation = NULL;
    if (args->assets)
        folder_of(args->assets, assets);
    if (args->tokenizer_folder)
        folder_of(args->tokenizer_folder, given);
    else if (args->assets)
        XP_TRY(has_tokenizer(assets, &found));
    const char *tokenizer = !found ? NULL : args->tokenizer_folder ? given : assets;
    snprintf(source, sizeof source, "%s/config.json", assets);
    xp_arch_hf_args hf = {.arch = args->arch,
                          .seq_len = args->max_positions,
                          .torch_dtype = args->dtype == XP_BF16 ? "bfloat16" : "float32",
                          .source = assets[0] ? source : NULL,
                          .bos = -1,
                          .eos = -1};
    read_ids(tokenizer, &hf);
    XP_TRY(xp_arch_to_hf(&hf, &json, &generation));
    xp_hf_export_args export_args = {
        .folder = args->folder,
        .dtype = args->dtype,
        .config_json = json,
        .generation_json = generation,
        .tokenizer_folder = tokenizer,
        .source_folder = assets[0] ? assets : NULL,
        .tensors = params->sources,
        .n_tensors = params->n,
        .extra = bias->sources,
        .n_extra = bias->n,
        .warn = args->warn,
        .warn_context = args->warn_context,
    };
    xp_status status = xp_hf_export(&export_args);
    free(json);
    free(generation);
    return status;
}

static xp_status list_and_export(const xp_hf_from_ckpt_args *args, export_list *params,
                                 export_list *bias) {
    xp_param_table *table = NULL;
    XP_TRY(xp_param_table_create(args->arch, 0, 1, &table));
    xp_status status = list_params(params, args->ckpt, table, args->fused_experts);
    xp_param_table_destroy(table);
    XP_TRY(status);
    XP_TRY(list_bias(bias, args->ckpt, args->arch));
    return export_lists(args, params, bias);
}

/* Up from the checkpoint: a run was started somewhere above the folder that it writes into. */
static xp_status look_upwards(const char *start, const char *path, char out[PATH_MAX]) {
    char folder[PATH_MAX];
    if (realpath(start, folder) == NULL)
        return XP_OK;
    for (char *slash; (slash = strrchr(folder, '/')) != NULL;) {
        *slash = '\0';
        bool found = false;
        char candidate[2 * PATH_MAX];
        snprintf(candidate, sizeof candidate, "%s/%s", folder, path);
        if (strlen(candidate) >= PATH_MAX)
            continue;
        XP_TRY(xp_path_exists(candidate, &found));
        if (found) {
            snprintf(out, PATH_MAX, "%s", candidate);
            return XP_OK;
        }
    }
    return XP_OK;
}

xp_status xp_hf_find_assets(const xp_ckpt *ckpt, char out[PATH_MAX]) {
    const char *path = xp_ckpt_value_get(ckpt, "model.hf_assets_path");
    bool found = false;
    out[0] = '\0';
    if (!path || path[0] == '\0' || strlen(path) >= PATH_MAX)
        return XP_OK;
    XP_TRY(xp_path_exists(path, &found));
    if (!found && path[0] != '/')
        return look_upwards(xp_ckpt_path(ckpt), path, out);
    if (found)
        snprintf(out, PATH_MAX, "%s", path);
    return XP_OK;
}

xp_status xp_hf_export_ckpt(const xp_hf_from_ckpt_args *args, bool *has_bias) {
    xp_arena *arena = NULL;
    XP_TRY(xp_arena_create(&arena));
    export_list params = {.arena = arena};
    export_list bias = {.arena = arena};
    xp_status status = list_and_export(args, &params, &bias);
    if (status == XP_OK && has_bias)
        *has_bias = bias.n > 0;
    xp_arena_destroy(arena);
    return status;
}
