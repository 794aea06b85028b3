/* config.json and generation_config.json of an export. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "model/arch.h"

xp_status xp_arch_check_hf(const xp_arch *arch) {
    if (arch->n_experts > 0 && (arch->score_func != XP_SCORE_SOFTMAX || arch->route_scale != 1.0))
        return xp_error(XP_ENOTSUP, "transformers' Qwen3-MoE has neither a sigmoid router nor a "
                                    "route_scale other than 1: this model has no config.json");
    return XP_OK;
}

static int set_moe(json_t *root, const xp_arch *arch) {
    return json_object_set_new(root, "num_experts", json_integer(arch->n_experts)) |
           json_object_set_new(root, "num_experts_per_tok", json_integer(arch->top_k)) |
           json_object_set_new(root, "moe_intermediate_size", json_integer(arch->moe_dim)) |
           json_object_set_new(root, "norm_topk_prob", json_boolean(arch->route_norm)) |
           json_object_set_new(root, "decoder_sparse_step", json_integer(1)) |
           json_object_set_new(root, "mlp_only_layers", json_array()) |
           json_object_set_new(root, "output_router_logits", json_false()) |
           json_object_set_new(root, "router_aux_loss_coef", json_real(0.001));
}

static json_t *make_config(const xp_arch_hf_args *args, int64_t max_positions) {
    const xp_arch *arch = args->arch;
    bool moe = arch->n_experts > 0;
    json_t *root = json_pack(
        "{s:[s], s:s, s:I, s:I, s:I, s:i, s:i, s:i, s:I, s:f, s:f, s:n, s:b, s:b, s:f, s:s, s:b, "
        "s:I, s:b, s:s, s:f}",
        "architectures", moe ? "Qwen3MoeForCausalLM" : "Qwen3ForCausalLM", "model_type",
        moe ? "qwen3_moe" : "qwen3", "vocab_size", (json_int_t)arch->vocab_size, "hidden_size",
        (json_int_t)arch->dim, "num_hidden_layers", (json_int_t)arch->n_layers,
        "num_attention_heads", arch->n_heads, "num_key_value_heads", arch->n_kv_heads, "head_dim",
        arch->head_dim, "intermediate_size",
        (json_int_t)(moe ? arch->moe_dim * arch->top_k : arch->hidden_dim), "rms_norm_eps",
        arch->norm_eps, "rope_theta", arch->rope_theta, "rope_scaling", "tie_word_embeddings",
        (int)arch->tie_embeddings, "attention_bias", 0, "attention_dropout", 0.0, "hidden_act",
        "silu", "use_sliding_window", 0, "max_position_embeddings", (json_int_t)max_positions,
        "use_cache", 1, "torch_dtype", args->torch_dtype, "initializer_range", 0.02);
    if (root && moe && set_moe(root, arch) != 0) {
        json_decref(root);
        return NULL;
    }
    return root;
}

/* NULL: there is none that can be used. */
static json_t *read_source(const char *path) {
    char *text = NULL;
    size_t n_bytes = 0;
    if (!path || xp_file_read(path, (size_t)1 << 24, &text, &n_bytes) != XP_OK)
        return NULL;
    json_t *root = json_loadb(text, n_bytes, 0, NULL);
    free(text);
    if (!json_is_object(root)) {
        json_decref(root);
        return NULL;
    }
    return root;
}

static bool same_sizes(const xp_arch *a, const xp_arch *b) {
    return a->dim == b->dim && a->n_layers == b->n_layers && a->vocab_size == b->vocab_size &&
           a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads &&
           a->head_dim == b->head_dim && a->n_experts == b->n_experts && a->moe_dim == b->moe_dim &&
           a->hidden_dim == b->hidden_dim && a->rope_theta == b->rope_theta;
}

static int64_t context_length(const xp_arch_hf_args *args, const json_t *source) {
    const json_t *value = json_object_get(source, "max_position_embeddings");
    xp_arch arch;
    if (!json_is_integer(value) || json_integer_value(value) <= args->seq_len ||
        xp_arch_from_hf(args->source, &arch) != XP_OK || !same_sizes(&arch, args->arch))
        return args->seq_len;
    return json_integer_value(value);
}

/* A token id or a list of them, all inside the vocabulary. */
static bool are_ids(const json_t *value, int64_t vocab) {
    size_t i;
    const json_t *item;
    if (json_is_integer(value))
        return json_integer_value(value) >= 0 && json_integer_value(value) < vocab;
    json_array_foreach(value, i, item) {
        if (!json_is_integer(item) || !are_ids(item, vocab))
            return false;
    }
    return json_is_array(value) && json_array_size(value) > 0;
}

static const char *const id_keys[] = {"bos_token_id", "eos_token_id", "pad_token_id"};

static int set_ids(json_t *root, const xp_arch_hf_args *args, const json_t *source) {
    int failed = 0;
    for (int i = 0; i < 3; i++) {
        const json_t *value = json_object_get(source, id_keys[i]);
        int32_t own = i == 0 ? args->bos : i == 1 ? args->eos : -1;
        if (are_ids(value, args->arch->vocab_size))
            failed |= json_object_set(root, id_keys[i], (json_t *)value);
        else if (own >= 0 && own < args->arch->vocab_size)
            failed |= json_object_set_new(root, id_keys[i], json_integer(own));
    }
    return failed;
}

/* What the source says about training and serving, and our sizes do not. */
static int set_constants(json_t *root, const json_t *source) {
    static const char *const keys[] = {"initializer_range", "router_aux_loss_coef",
                                       "max_window_layers"};
    int failed = 0;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_t *value = json_object_get(source, keys[i]);
        if (json_is_number(value) && (i == 2 || json_object_get(root, keys[i])))
            failed |= json_object_set(root, keys[i], value);
    }
    return failed;
}

static int write_generation(const json_t *config, char **text) {
    json_t *root = json_object();
    int failed = root == NULL;
    for (int i = 0; i < 3 && !failed; i++) {
        json_t *value = json_object_get(config, id_keys[i]);
        if (value)
            failed = json_object_set(root, id_keys[i], value);
    }
    *text = NULL;
    if (!failed && json_object_size(root) > 0) {
        *text = json_dumps(root, JSON_INDENT(2));
        failed = *text == NULL;
    }
    json_decref(root);
    return failed;
}

xp_status xp_arch_to_hf(const xp_arch_hf_args *args, char **config, char **generation) {
    XP_TRY(xp_arch_check_hf(args->arch));
    json_t *source = read_source(args->source);
    json_t *root = make_config(args, context_length(args, source));
    char *text = NULL, *ids = NULL;
    bool made = root && set_ids(root, args, source) == 0 && set_constants(root, source) == 0 &&
                write_generation(root, &ids) == 0;
    if (made)
        text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    json_decref(root);
    json_decref(source);
    if (!text) {
        free(ids);
        return xp_error(XP_ENOMEM, "config.json: out of memory");
    }
    *config = text;
    *generation = ids;
    return XP_OK;
}
