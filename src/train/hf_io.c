#include "train/hf_tensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/arena.h"

/* One tensor's way out of the checkpoint; `piece` is a template. */
typedef struct ckpt_tensor {
    const xp_ckpt *ckpt;
    xp_ckpt_piece piece;
} ckpt_tensor;

static xp_status fill_from_ckpt(void *context, int64_t first, int64_t n, float *out) {
    const ckpt_tensor *tensor = context;
    xp_ckpt_piece piece = tensor->piece;
    piece.first = first;
    piece.n = n;
    piece.data = out;
    return xp_ckpt_read(tensor->ckpt, &piece, 1);
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

static xp_status list_params(export_list *list, const xp_ckpt *ckpt, const xp_param_table *table) {
    int64_t n = 0;
    for (int p = 0; p < xp_param_table_n_params(table); p++)
        n += xp_param_table_param(table, p)->n_slices;
    XP_TRY(list_alloc(list, n));
    for (int p = 0; p < xp_param_table_n_params(table); p++) {
        for (int i = 0; i < xp_param_table_param(table, p)->n_slices; i++) {
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

static xp_status export_lists(const xp_hf_from_ckpt_args *args, export_list *params,
                              export_list *bias) {
    xp_param_table *table = NULL;
    XP_TRY(xp_param_table_create(args->arch, 0, 1, &table));
    xp_status status = list_params(params, args->ckpt, table);
    xp_param_table_destroy(table);
    XP_TRY(status);
    XP_TRY(list_bias(bias, args->ckpt, args->arch));
    char *json = NULL;
    XP_TRY(xp_arch_to_hf(args->arch, args->max_positions,
                         args->dtype == XP_BF16 ? "bfloat16" : "float32", &json));
    xp_hf_export_args export_args = {
        .folder = args->folder,
        .dtype = args->dtype,
        .config_json = json,
        .tokenizer_folder = args->tokenizer_folder,
        .tensors = params->sources,
        .n_tensors = params->n,
        .extra = bias->sources,
        .n_extra = bias->n,
    };
    status = xp_hf_export(&export_args);
    free(json);
    return status;
}

xp_status xp_hf_export_ckpt(const xp_hf_from_ckpt_args *args, bool *has_bias) {
    xp_arena *arena = NULL;
    XP_TRY(xp_arena_create(&arena));
    export_list params = {.arena = arena};
    export_list bias = {.arena = arena};
    xp_status status = export_lists(args, &params, &bias);
    if (status == XP_OK && has_bias)
        *has_bias = bias.n > 0;
    xp_arena_destroy(arena);
    return status;
}
