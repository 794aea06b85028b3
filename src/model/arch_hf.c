/* config.json of transformers' Qwen3 and Qwen3-MoE. What expar does not compute is refused, never
 * ignored. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/json_text.h"
#include "model/arch.h"

typedef struct hf_config {
    const char *path;
    const json_t *root;
} hf_config;

/* NULL stands for absent: transformers writes null for defaults. */
static const json_t *lookup(const hf_config *hf, const char *key) {
    const json_t *value = json_object_get(hf->root, key);
    return json_is_null(value) ? NULL : value;
}

/* fallback < 0: the key is required. `other` is a second spelling or NULL. */
static xp_status read_i64(const hf_config *hf, const char *key, const char *other, int64_t fallback,
                          int64_t *out) {
    const json_t *value = lookup(hf, key);
    if (!value && other)
        value = lookup(hf, other);
    if (!value && fallback >= 0) {
        *out = fallback;
        return XP_OK;
    }
    if (!value)
        return xp_error(XP_EFORMAT, "%s: key '%s' is missing", hf->path, key);
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) > INT32_MAX)
        return xp_error(XP_EFORMAT, "%s: '%s' must be an integer between 0 and %d", hf->path, key,
                        INT32_MAX);
    *out = json_integer_value(value);
    return XP_OK;
}

static xp_status read_int(const hf_config *hf, const char *key, const char *other, int64_t fallback,
                          int *out) {
    int64_t value = 0;
    XP_TRY(read_i64(hf, key, other, fallback, &value));
    *out = (int)value;
    return XP_OK;
}

static xp_status read_f64(const hf_config *hf, const char *key, double fallback, double *out) {
    const json_t *value = lookup(hf, key);
    if (value && !json_is_number(value))
        return xp_error(XP_EFORMAT, "%s: '%s' must be a number", hf->path, key);
    *out = value ? json_number_value(value) : fallback;
    return XP_OK;
}

static xp_status read_bool(const hf_config *hf, const char *key, bool fallback, bool *out) {
    const json_t *value = lookup(hf, key);
    if (value && !json_is_boolean(value))
        return xp_error(XP_EFORMAT, "%s: '%s' must be true or false", hf->path, key);
    *out = value ? json_is_true(value) : fallback;
    return XP_OK;
}

static xp_status unsupported(const hf_config *hf, const char *what) {
    return xp_error(XP_ENOTSUP, "%s: %s, which expar does not support", hf->path, what);
}

/* "default" under either name is plain RoPE; everything else changes the angles. */
static xp_status check_rope_type(const hf_config *hf, const char *key) {
    const json_t *rope = lookup(hf, key);
    if (!rope)
        return XP_OK;
    if (!json_is_object(rope))
        return xp_error(XP_EFORMAT, "%s: '%s' must be an object or null", hf->path, key);
    const json_t *type = json_object_get(rope, "rope_type");
    if (!type)
        type = json_object_get(rope, "type");
    if (type && !json_is_string(type))
        return xp_error(XP_EFORMAT, "%s: rope_type in '%s' must be a string", hf->path, key);
    if (type && strcmp(json_string_value(type), "default") != 0)
        return xp_error(XP_ENOTSUP, "%s: RoPE scaling '%s', which expar does not support", hf->path,
                        json_string_value(type));
    const json_t *partial = json_object_get(rope, "partial_rotary_factor");
    if (json_is_number(partial) && json_number_value(partial) != 1.0)
        return unsupported(hf, "RoPE over a part of each head (partial_rotary_factor)");
    return XP_OK;
}

static xp_status read_rope(const hf_config *hf, xp_arch *arch) {
    XP_TRY(check_rope_type(hf, "rope_scaling"));
    XP_TRY(check_rope_type(hf, "rope_parameters"));
    XP_TRY(read_f64(hf, "rope_theta", 10000.0, &arch->rope_theta));
    const json_t *rope = lookup(hf, "rope_parameters");
    const json_t *theta = rope ? json_object_get(rope, "rope_theta") : NULL;
    if (theta && !json_is_number(theta))
        return xp_error(XP_EFORMAT, "%s: rope_parameters.rope_theta must be a number", hf->path);
    if (theta)
        arch->rope_theta = json_number_value(theta);
    return XP_OK;
}

static xp_status check_attention(const hf_config *hf) {
    bool flag = false;
    XP_TRY(read_bool(hf, "attention_bias", false, &flag));
    if (flag)
        return unsupported(hf, "attention projections with biases (attention_bias = true)");
    XP_TRY(read_bool(hf, "use_sliding_window", false, &flag));
    if (flag)
        return unsupported(hf, "sliding-window attention (use_sliding_window = true)");
    double dropout = 0.0;
    XP_TRY(read_f64(hf, "attention_dropout", 0.0, &dropout));
    if (dropout != 0.0)
        return unsupported(hf, "attention dropout");
    const json_t *types = lookup(hf, "layer_types");
    size_t i;
    const json_t *type;
    json_array_foreach(types, i, type) {
        if (!json_is_string(type) || strcmp(json_string_value(type), "full_attention") != 0)
            return unsupported(hf, "a layer_types entry other than full_attention");
    }
    const json_t *act = lookup(hf, "hidden_act");
    if (act && (!json_is_string(act) || strcmp(json_string_value(act), "silu") != 0))
        return unsupported(hf, "a hidden_act other than silu");
    return XP_OK;
}

static xp_status read_moe(const hf_config *hf, xp_arch *arch) {
    XP_TRY(read_int(hf, "num_experts", "num_local_experts", -1, &arch->n_experts));
    XP_TRY(read_int(hf, "num_experts_per_tok", NULL, -1, &arch->top_k));
    XP_TRY(read_i64(hf, "moe_intermediate_size", NULL, -1, &arch->moe_dim));
    XP_TRY(read_bool(hf, "norm_topk_prob", false, &arch->route_norm));
    int64_t step = 1;
    XP_TRY(read_i64(hf, "decoder_sparse_step", NULL, 1, &step));
    if (step != 1)
        return unsupported(hf, "experts in only some layers (decoder_sparse_step other than 1)");
    const json_t *dense = lookup(hf, "mlp_only_layers");
    if (dense && (!json_is_array(dense) || json_array_size(dense) != 0))
        return unsupported(hf, "layers without experts (mlp_only_layers not empty)");
    return XP_OK;
}

static xp_status read_arch(const hf_config *hf, xp_arch *arch) {
    const json_t *type = lookup(hf, "model_type");
    const char *name = json_is_string(type) ? json_string_value(type) : "";
    bool moe = strcmp(name, "qwen3_moe") == 0;
    if (!moe && strcmp(name, "qwen3") != 0)
        return xp_error(XP_ENOTSUP,
                        "%s: model_type '%s' is not supported; expar reads qwen3 and qwen3_moe",
                        hf->path, name);
    XP_TRY(check_attention(hf));
    XP_TRY(read_i64(hf, "hidden_size", NULL, -1, &arch->dim));
    XP_TRY(read_i64(hf, "num_hidden_layers", NULL, -1, &arch->n_layers));
    XP_TRY(read_i64(hf, "vocab_size", NULL, -1, &arch->vocab_size));
    XP_TRY(read_int(hf, "num_attention_heads", NULL, -1, &arch->n_heads));
    XP_TRY(read_int(hf, "num_key_value_heads", NULL, arch->n_heads, &arch->n_kv_heads));
    /* transformers' own defaults: Qwen3 has 128, Qwen3-MoE falls back to the quotient. */
    int64_t quotient = arch->n_heads > 0 ? arch->dim / arch->n_heads : 0;
    XP_TRY(read_int(hf, "head_dim", NULL, moe ? quotient : 128, &arch->head_dim));
    XP_TRY(read_f64(hf, "rms_norm_eps", 1e-6, &arch->norm_eps));
    XP_TRY(read_bool(hf, "tie_word_embeddings", false, &arch->tie_embeddings));
    XP_TRY(read_rope(hf, arch));
    if (moe)
        XP_TRY(read_moe(hf, arch));
    else
        XP_TRY(read_i64(hf, "intermediate_size", NULL, -1, &arch->hidden_dim));
    return xp_arch_check(arch);
}

xp_status xp_arch_from_hf(const char *config_json_path, xp_arch *arch) {
    char *text = NULL;
    size_t n_bytes = 0;
    XP_TRY(xp_file_read(config_json_path, (size_t)1 << 24, &text, &n_bytes));
    json_error_t error;
    xp_text softened = {0};
    bool changed = false;
    json_t *root = NULL;
    xp_status status = xp_json_refuse_nul(config_json_path, text, n_bytes);
    if (status == XP_OK)
        xp_json_soften_numbers(text, n_bytes, &softened, &changed);
    if (status == XP_OK && softened.failed)
        status = xp_error(XP_ENOMEM, "%s: out of memory", config_json_path);
    if (status == XP_OK)
        root = json_loadb(changed ? softened.data : text, changed ? softened.length : n_bytes,
                          JSON_REJECT_DUPLICATES, &error);
    free(text);
    xp_text_free(&softened);
    XP_TRY(status);
    if (!root)
        return xp_error(XP_EFORMAT, "%s:%d:%d: %s", config_json_path, error.line, error.column,
                        error.text);
    if (!json_is_object(root)) {
        status = xp_error(XP_EFORMAT, "%s: must be a JSON object", config_json_path);
    } else {
        hf_config hf = {config_json_path, root};
        xp_arch made = {.flavor = "hf",
                        .qk_norm = true,
                        .score_func = XP_SCORE_SOFTMAX,
                        .route_norm = true,
                        .route_scale = 1.0};
        status = read_arch(&hf, &made);
        if (status == XP_OK)
            *arch = made;
        else if (status == XP_ECONFIG)
            status = xp_error_context(XP_EFORMAT, "%s", config_json_path);
    }
    json_decref(root);
    return status;
}
