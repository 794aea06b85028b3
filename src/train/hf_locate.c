/* Where a parameter stands in a Hugging Face folder. */
#include <stdio.h>
#include <string.h>
#include "train/hf_tensors.h"

void xp_hf_bias_name(int64_t layer, char out[64]) {
    snprintf(out, 64, "model.layers.%lld.mlp.gate.expert_bias", (long long)layer);
}

static void put_shape(const int64_t *shape, int n_dims, char out[128]) {
    size_t used = 0;
    out[0] = '\0';
    for (int d = 0; d < n_dims && used + 24 < 128; d++)
        used += (size_t)snprintf(out + used, 128 - used, "%s%lld", d > 0 ? ", " : "",
                                 (long long)shape[d]);
}

static xp_status wrong_shape(const char *folder, const xp_st_tensor *tensor, const char *wanted) {
    char has[128];
    put_shape(tensor->shape, tensor->n_dims, has);
    return xp_error(XP_EFORMAT, "%s: %s is [%s], the model needs [%s]", folder, tensor->name, has,
                    wanted);
}

static bool has_shape(const xp_st_tensor *tensor, int n_dims, const int64_t *shape) {
    bool same = tensor->n_dims == n_dims;
    for (int d = 0; same && d < n_dims; d++)
        same = tensor->shape[d] == shape[d];
    return same;
}

/* ---- fused experts ------------------------------------------------------------------------ */

typedef struct expert_slice {
    char prefix[96]; /* "model.layers.3.mlp.experts." */
    int64_t expert;
    enum { EXPERT_GATE, EXPERT_UP, EXPERT_DOWN } part;
} expert_slice;

/* "model.layers.3.mlp.experts.17.gate_proj.weight" taken apart; false for other names. */
static bool parse_expert(const char *name, expert_slice *out) {
    static const char *const parts[] = {"gate_proj.weight", "up_proj.weight", "down_proj.weight"};
    long long layer = 0, expert = 0;
    int end = 0;
    if (sscanf(name, "model.layers.%lld.mlp.experts.%lld.%n", &layer, &expert, &end) != 2 || !end)
        return false;
    for (int i = 0; i < 3; i++) {
        if (strcmp(name + end, parts[i]) != 0)
            continue;
        snprintf(out->prefix, sizeof out->prefix, "model.layers.%lld.mlp.experts.", layer);
        out->expert = expert;
        out->part = i == 0 ? EXPERT_GATE : i == 1 ? EXPERT_UP : EXPERT_DOWN;
        return true;
    }
    return false;
}

/* A fused tensor, with or without ".weight" behind its name; -1 when absent. */
static int64_t find_fused(const xp_hf_reader *reader, const char *prefix, const char *which) {
    char name[160];
    snprintf(name, sizeof name, "%s%s", prefix, which);
    int64_t i = xp_hf_index(reader, name);
    if (i >= 0)
        return i;
    snprintf(name, sizeof name, "%s%s.weight", prefix, which);
    return xp_hf_index(reader, name);
}

static xp_status wrong_fused_shape(const char *folder, const xp_arch *arch,
                                   const xp_st_tensor *gate_up, const xp_st_tensor *down) {
    const int64_t e = arch->n_experts, d = arch->dim, f = arch->moe_dim;
    const int64_t wants_gate_up[] = {e, 2 * f, d}, wants_down[] = {e, d, f};
    char wanted[128];
    bool gate_up_fits = has_shape(gate_up, 3, wants_gate_up);
    put_shape(gate_up_fits ? wants_down : wants_gate_up, 3, wanted);
    return wrong_shape(folder, gate_up_fits ? down : gate_up, wanted);
}

/* Both tensors are looked at: their shapes together always tell the two layouts apart. */
static xp_status locate_fused(const xp_hf_reader *reader, const xp_arch *arch, const char *folder,
                              const expert_slice *slice, xp_hf_source_view *view) {
    const int64_t e = arch->n_experts, d = arch->dim, f = arch->moe_dim;
    int64_t at_gate_up = find_fused(reader, slice->prefix, "gate_up_proj");
    int64_t at_down = find_fused(reader, slice->prefix, "down_proj");
    if (at_gate_up < 0 || at_down < 0)
        return xp_error(
            XP_EFORMAT,
            "%s: fused experts need both gate_up_proj and down_proj, but %s%s is missing", folder,
            slice->prefix, at_gate_up < 0 ? "gate_up_proj" : "down_proj");
    const xp_st_tensor *gate_up = xp_hf_tensor_at(reader, at_gate_up);
    const xp_st_tensor *down = xp_hf_tensor_at(reader, at_down);
    bool plain = has_shape(gate_up, 3, (const int64_t[]){e, 2 * f, d}) &&
                 has_shape(down, 3, (const int64_t[]){e, d, f});
    bool transposed = has_shape(gate_up, 3, (const int64_t[]){e, d, 2 * f}) &&
                      has_shape(down, 3, (const int64_t[]){e, f, d});
    if (!plain && !transposed)
        return wrong_fused_shape(folder, arch, gate_up, down);
    bool is_down = slice->part == EXPERT_DOWN;
    int64_t block = is_down ? d * f : 2 * f * d;
    *view = (xp_hf_source_view){.tensor = is_down ? down : gate_up,
                                .index = is_down ? at_down : at_gate_up,
                                .first = slice->expert * block};
    if (plain && slice->part == EXPERT_UP)
        view->first += f * d;
    if (transposed) {
        view->block_elements = block;
        view->stride = is_down ? d : 2 * f;
        view->offset = slice->part == EXPERT_UP ? f : 0;
        view->n_columns = is_down ? f : d;
    }
    return XP_OK;
}

/* ---- */

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

/* What the file may hold instead of the tensor that is missing. */
static xp_status missing(const xp_hf_reader *reader, const char *folder, const char *name) {
    const char *tail = strncmp(name, "model.", 6) == 0 ? name + 6 : name;
    char stem[160];
    snprintf(stem, sizeof stem, "%.*s", (int)(strlen(name) - strlen("weight")), name);
    for (int64_t i = 0; i < xp_hf_n_tensors(reader); i++) {
        const char *other = xp_hf_tensor_at(reader, i)->name;
        const char *plain = xp_hf_name_at(reader, i);
        if (ends_with(other, tail))
            return xp_error(XP_EFORMAT,
                            "%s: the tensor %s is missing, but there is %s: write the file again "
                            "without the prefix '%.*s'",
                            folder, name, other, (int)(strlen(other) - strlen(tail)), other);
        if (strncmp(plain, stem, strlen(stem)) == 0 && !ends_with(plain, "bias"))
            return xp_error(XP_EFORMAT,
                            "%s: the tensor %s is missing, but there is %s: a quantized or adapted "
                            "model, which expar does not read; convert it to float32 or bfloat16",
                            folder, name, other);
    }
    return xp_error(XP_EFORMAT, "%s: the tensor %s is missing", folder, name);
}

xp_status xp_hf_locate(const xp_hf_reader *reader, const xp_arch *arch, const char *folder,
                       const xp_param_slice *slice, xp_hf_source_view *view) {
    expert_slice expert;
    int64_t i = xp_hf_index(reader, slice->hf_name);
    if (i >= 0) {
        *view = (xp_hf_source_view){.tensor = xp_hf_tensor_at(reader, i), .index = i};
        if (has_shape(view->tensor, slice->n_dims, slice->shape))
            return XP_OK;
        char wanted[128];
        put_shape(slice->shape, slice->n_dims, wanted);
        return wrong_shape(folder, view->tensor, wanted);
    }
    if (parse_expert(slice->hf_name, &expert) &&
        (find_fused(reader, expert.prefix, "gate_up_proj") >= 0 ||
         find_fused(reader, expert.prefix, "down_proj") >= 0))
        return locate_fused(reader, arch, folder, &expert, view);
    return missing(reader, folder, slice->hf_name);
}
