/** What a model is: sizes from a flavor, a Hugging Face config.json, or the configuration; FLOPs
 * and parameter counts. */
#ifndef XP_MODEL_ARCH_H
#define XP_MODEL_ARCH_H

#include "config/config.h"
#include "ops/ops.h"

typedef struct xp_arch {
    char flavor[64];
    int64_t dim, n_layers, vocab_size;
    int n_heads, n_kv_heads, head_dim;
    int64_t hidden_dim;   /* dense FFN width; 0 in a MoE model */
    int n_experts, top_k; /* 0 in a dense model */
    int64_t moe_dim;      /* F */
    double rope_theta, norm_eps;
    bool tie_embeddings, qk_norm;
    xp_score_func score_func;
    bool route_norm;
    double route_scale;
    bool use_deepep; /* the flavor's suffix, moe.use_deepep or the comm backend */
} xp_arch;

/**
 * Resolve model.* and moe.* to sizes. A flavor of the table (MoE ones also with the suffix
 * "-deepep"), "custom" (every size comes from the keys; n_kv_heads defaults to n_heads, head_dim to
 * dim / n_heads, theta to 1e6, eps to 1e-6), or "hf" (reads model.hf_assets_path/config.json).
 * Single keys that are set replace the flavor's values.
 *
 * @return XP_OK; XP_ECONFIG naming the key, what it may be, and for a wrong flavor the list of
 * flavors; XP_EIO or XP_EFORMAT when config.json cannot be read
 */
XP_NODISCARD xp_status xp_arch_from_config(const xp_config *config, xp_arch *arch);
/**
 * Read a Hugging Face config.json (Qwen3, Qwen3-MoE; both spellings of each key).
 * @return XP_OK; XP_EIO; XP_EFORMAT (no JSON, a key of the wrong type); XP_ENOTSUP naming what this
 * model asks for and expar does not do (sliding windows, biases, scaled RoPE, layers without
 * experts)
 */
XP_NODISCARD xp_status xp_arch_from_hf(const char *config_json_path, xp_arch *arch);
/** What an export's config.json says beside the sizes. */
typedef struct xp_arch_hf_args {
    const xp_arch *arch;
    int64_t seq_len;         /* of the training: the least context length that is written */
    const char *torch_dtype; /* "float32", "bfloat16" */
    /**
     * config.json of the model that the run started from, or NULL: its token ids and training constants are
     * taken over, and its context length when it is a model of the same sizes. A file that is not there or
     * holds no JSON object counts as NULL.
     */
    const char *source;
    int32_t bos, eos; /* of the tokenizer, for a source without them; -1: none */
} xp_arch_hf_args;
/**
 * The config.json that transformers reads for this model, and the generation_config.json for a folder that has
 * none of its own (NULL when no token id is known). Caller frees both.
 * @return XP_OK; XP_ENOTSUP as xp_arch_check_hf(); XP_ENOMEM
 */
XP_NODISCARD xp_status xp_arch_to_hf(const xp_arch_hf_args *args, char **config, char **generation);
/** XP_ENOTSUP when transformers has no such model: sigmoid router, route_scale other than 1. */
XP_NODISCARD xp_status xp_arch_check_hf(const xp_arch *arch);
/** Sizes that belong together: XP_ECONFIG names the first that does not fit. */
XP_NODISCARD xp_status xp_arch_check(const xp_arch *arch);
/** The i-th flavor name, NULL past the last. Valid until the process ends. */
const char *xp_arch_flavor(int i);

/** Total parameters, and those that a token uses (experts: top_k of them). */
int64_t xp_arch_n_params(const xp_arch *arch);
int64_t xp_arch_n_active_params(const xp_arch *arch);
/** FLOPs per trained token at this row length, causal attention counted once (numerics: what is
 * printed). */
double xp_arch_flops_per_token(const xp_arch *arch, int64_t seq_len);

#endif
