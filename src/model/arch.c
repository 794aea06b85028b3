#include "model/arch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "core/text.h"

/* D, layers, heads/kv, head_dim, FFN, E/K/F, vocab, theta, tied: one row a flavor. */
typedef struct flavor_row {
    const char *name;
    int64_t dim, n_layers;
    int n_heads, n_kv_heads, head_dim;
    int64_t hidden_dim;
    int n_experts, top_k;
    int64_t moe_dim, vocab_size;
    double rope_theta;
    bool tie_embeddings;
} flavor_row;

static const flavor_row flavors[] = {
    {"tiny_moe", 128, 4, 4, 2, 32, 0, 32, 4, 128, 2048, 1e6, false},
    {"debugmodel", 256, 8, 16, 8, 128, 3072, 0, 0, 0, 2048, 1e6, true},
    {"debugmodel_moe", 256, 8, 16, 8, 128, 0, 64, 8, 768, 2048, 1e6, false},
    {"0.6B", 1024, 28, 16, 8, 128, 3072, 0, 0, 0, 151936, 1e6, true},
    {"1.7B", 2048, 28, 16, 8, 128, 6144, 0, 0, 0, 151936, 1e6, true},
    {"4B", 2560, 36, 32, 8, 128, 9728, 0, 0, 0, 151936, 1e6, true},
    {"8B", 4096, 36, 32, 8, 128, 12288, 0, 0, 0, 151936, 1e6, false},
    {"14B", 5120, 40, 40, 8, 128, 17408, 0, 0, 0, 151936, 1e6, false},
    {"32B", 5120, 64, 64, 8, 128, 25600, 0, 0, 0, 151936, 1e6, false},
    {"10B-A1B", 1536, 32, 24, 4, 128, 0, 128, 8, 512, 151936, 5e4, false},
    {"30B-A3B", 2048, 48, 32, 4, 128, 0, 128, 8, 768, 151936, 1e6, false},
    {"235B-A22B", 4096, 94, 64, 4, 128, 0, 128, 8, 1536, 151936, 5e6, false},
};
enum { N_FLAVORS = sizeof(flavors) / sizeof(flavors[0]) };

/* Every name a user may write, in the order shown in errors. */
static const char *const flavor_names[] = {
    "tiny_moe",
    "tiny_moe-deepep",
    "debugmodel",
    "debugmodel_moe",
    "debugmodel_moe-deepep",
    "0.6B",
    "1.7B",
    "4B",
    "8B",
    "14B",
    "32B",
    "10B-A1B",
    "10B-A1B-deepep",
    "30B-A3B",
    "30B-A3B-deepep",
    "235B-A22B",
    "235B-A22B-deepep",
    "custom",
    "hf",
};
enum { N_NAMES = sizeof(flavor_names) / sizeof(flavor_names[0]) };

static const char deepep_suffix[] = "-deepep";

const char *xp_arch_flavor(int i) {
    return i >= 0 && i < N_NAMES ? flavor_names[i] : NULL;
}

static xp_status unknown_flavor(const char *name) {
    xp_text list = {0};
    char guess[80] = "";
    const size_t length = strlen(name);
    /* More slips than a third of the word make it another word. */
    int best = length < 6 ? 2 : (int)(length / 3) + 1;
    for (int i = 0; i < N_NAMES; i++) {
        xp_text_printf(&list, "%s%s", i > 0 ? ", " : "", flavor_names[i]);
        int distance = xp_edit_distance(name, flavor_names[i]);
        if (distance < best) {
            best = distance;
            snprintf(guess, sizeof guess, "did you mean '%s'? ", flavor_names[i]);
        }
    }
    xp_status status = xp_error(
        XP_ECONFIG,
        "model.flavor: there is no '%s'; %sFlavors (Qwen3 and Qwen3-MoE): %s. 'hf' takes the sizes "
        "from config.json in model.hf_assets_path, 'custom' from the keys of [model] and [moe]",
        name, guess, list.data ? list.data : "(out of memory)");
    xp_text_free(&list);
    return status;
}

static void from_row(const flavor_row *row, xp_arch *arch) {
    arch->dim = row->dim;
    arch->n_layers = row->n_layers;
    arch->n_heads = row->n_heads;
    arch->n_kv_heads = row->n_kv_heads;
    arch->head_dim = row->head_dim;
    arch->hidden_dim = row->hidden_dim;
    arch->n_experts = row->n_experts;
    arch->top_k = row->top_k;
    arch->moe_dim = row->moe_dim;
    arch->vocab_size = row->vocab_size;
    arch->rope_theta = row->rope_theta;
    arch->tie_embeddings = row->tie_embeddings;
}

static xp_status from_flavor(const xp_config *config, const char *flavor, xp_arch *arch) {
    arch->rope_theta = 1e6;
    arch->norm_eps = 1e-6;
    arch->qk_norm = true;
    arch->score_func = XP_SCORE_SOFTMAX;
    arch->route_norm = true;
    arch->route_scale = 1.0;
    if (strcmp(flavor, "custom") == 0)
        return XP_OK;
    if (strcmp(flavor, "hf") == 0) {
        if (!config->model.hf_assets_path)
            return xp_error(XP_ECONFIG, "model.flavor = \"hf\" reads config.json from "
                                        "model.hf_assets_path, which is not set");
        char *path = xp_path_join(config->model.hf_assets_path, "config.json");
        if (!path)
            return xp_error(XP_ENOMEM, "model.hf_assets_path: no memory for the path");
        xp_status status = xp_arch_from_hf(path, arch);
        free(path);
        return status == XP_OK || status == XP_ENOTSUP
                   ? status
                   : xp_error_context(status, "model.hf_assets_path");
    }
    size_t length = strlen(flavor), suffix = strlen(deepep_suffix);
    bool deepep = length > suffix && strcmp(flavor + length - suffix, deepep_suffix) == 0;
    if (deepep)
        length -= suffix;
    for (int i = 0; i < N_FLAVORS; i++) {
        const flavor_row *row = &flavors[i];
        if (strlen(row->name) != length || strncmp(row->name, flavor, length) != 0)
            continue;
        if (deepep && row->n_experts == 0)
            return xp_error(XP_ECONFIG,
                            "model.flavor: %s has no experts, so there is no '%s'; write '%s'",
                            row->name, flavor, row->name);
        from_row(row, arch);
        arch->use_deepep = deepep;
        return XP_OK;
    }
    return unknown_flavor(flavor);
}

static void set_i64(int64_t value, int64_t *field) {
    if (value != 0)
        *field = value;
}

static xp_status set_int(const char *key, int64_t value, int *field) {
    if (value < 0 || value > INT32_MAX)
        return xp_error(XP_ECONFIG, "%s = %lld: must be between 1 and %d", key, (long long)value,
                        INT32_MAX);
    if (value != 0)
        *field = (int)value;
    return XP_OK;
}

static void set_f64(double value, double *field) {
    if (value != 0.0)
        *field = value;
}

static xp_status override_dense(const xp_config *config, xp_arch *arch) {
    set_i64(config->model.dim, &arch->dim);
    set_i64(config->model.n_layers, &arch->n_layers);
    XP_TRY(set_int("model.n_heads", config->model.n_heads, &arch->n_heads));
    XP_TRY(set_int("model.n_kv_heads", config->model.n_kv_heads, &arch->n_kv_heads));
    XP_TRY(set_int("model.head_dim", config->model.head_dim, &arch->head_dim));
    set_i64(config->model.vocab_size, &arch->vocab_size);
    set_f64(config->model.rope_theta, &arch->rope_theta);
    set_f64(config->model.norm_eps, &arch->norm_eps);
    if (config->model.tie_embeddings >= 0)
        arch->tie_embeddings = config->model.tie_embeddings != 0;
    if (arch->n_kv_heads == 0)
        arch->n_kv_heads = arch->n_heads;
    if (arch->head_dim == 0 && arch->n_heads > 0 && arch->dim % arch->n_heads == 0)
        arch->head_dim = (int)(arch->dim / arch->n_heads);
    return XP_OK;
}

static xp_status override_moe(const xp_config *config, xp_arch *arch) {
    XP_TRY(set_int("moe.num_experts", config->moe.num_experts, &arch->n_experts));
    XP_TRY(set_int("moe.top_k", config->moe.top_k, &arch->top_k));
    set_i64(config->moe.moe_dim, &arch->moe_dim);
    bool is_moe = arch->n_experts > 0;
    if (config->model.hidden_dim != 0 && is_moe)
        return xp_error(XP_ECONFIG,
                        "model.hidden_dim is the width of a dense FFN, but this model has %d "
                        "experts; their width is moe.moe_dim",
                        arch->n_experts);
    set_i64(config->model.hidden_dim, &arch->hidden_dim);
    if (is_moe)
        arch->hidden_dim = 0;
    else if (arch->top_k != 0 || arch->moe_dim != 0)
        return xp_error(XP_ECONFIG,
                        "moe.top_k and moe.moe_dim need moe.num_experts: model.flavor "
                        "'%s' has no experts",
                        arch->flavor);
    if (config->moe.score_func) {
        if (strcmp(config->moe.score_func, "softmax") == 0)
            arch->score_func = XP_SCORE_SOFTMAX;
        else if (strcmp(config->moe.score_func, "sigmoid") == 0)
            arch->score_func = XP_SCORE_SIGMOID;
        else
            return xp_error(XP_ECONFIG, "moe.score_func = \"%s\": must be softmax or sigmoid",
                            config->moe.score_func);
    }
    if (config->moe.route_norm >= 0)
        arch->route_norm = config->moe.route_norm != 0;
    set_f64(config->moe.route_scale, &arch->route_scale);
    return XP_OK;
}

/* The most explicit wish decides: the backend key, then moe.use_deepep, then the flavor's suffix.
 */
static xp_status choose_backend(const xp_config *config, xp_arch *arch) {
    const char *backend = config->parallelism.expert_parallel_comm_backend;
    int64_t wish = config->moe.use_deepep;
    if (wish >= 0)
        arch->use_deepep = wish != 0;
    if (!backend)
        return XP_OK;
    bool deepep = strcmp(backend, "deepep") == 0;
    if (!deepep && strcmp(backend, "standard") != 0)
        return xp_error(
            XP_ECONFIG,
            "parallelism.expert_parallel_comm_backend = \"%s\": must be deepep or standard",
            backend);
    if (wish >= 0 && (wish != 0) != deepep)
        return xp_error(XP_ECONFIG,
                        "moe.use_deepep = %s contradicts "
                        "parallelism.expert_parallel_comm_backend = \"%s\"; set one of them",
                        wish ? "true" : "false", backend);
    arch->use_deepep = deepep;
    return XP_OK;
}

xp_status xp_arch_from_config(const xp_config *config, xp_arch *arch) {
    const char *name = config->model.name ? config->model.name : "qwen3";
    if (strcmp(name, "qwen3") != 0)
        return xp_error(XP_ECONFIG,
                        "model.name = \"%s\": expar trains \"qwen3\" (Qwen3 and Qwen3-MoE); "
                        "model.flavor chooses the size, `expar config --help model` tells more",
                        name);
    const char *flavor = config->model.flavor ? config->model.flavor : "tiny_moe";
    xp_arch made = {0};
    XP_TRY(from_flavor(config, flavor, &made));
    snprintf(made.flavor, sizeof(made.flavor), "%s", flavor);
    XP_TRY(override_dense(config, &made));
    XP_TRY(override_moe(config, &made));
    XP_TRY(choose_backend(config, &made));
    XP_TRY(xp_arch_check(&made));
    *arch = made;
    return XP_OK;
}

#define MAX_PARAMS 1e15

/* The ranges of the configuration's fields hold for a config.json too: products of three sizes stay inside
 * int64, and so does what is counted for each layer and expert. */
static xp_status check_range(const char *key, int64_t value, int64_t most, const xp_arch *arch) {
    if (value < 1 || value > most)
        return xp_error(XP_ECONFIG, "%s = %lld: must be between 1 and %lld (model.flavor '%s')",
                        key, (long long)value, (long long)most, arch->flavor);
    return XP_OK;
}

/* In doubles: the sizes may each be in range and their product beyond int64. */
static xp_status check_total(const xp_arch *arch) {
    double d = (double)arch->dim, c = arch->head_dim;
    double ffn = arch->n_experts > 0 ? (double)arch->n_experts * (1 + 3 * (double)arch->moe_dim)
                                     : 3 * (double)arch->hidden_dim;
    double attention = 2 * (double)arch->n_heads * c + 2 * (double)arch->n_kv_heads * c;
    double total =
        (double)arch->n_layers * (attention + ffn) * d + 2 * (double)arch->vocab_size * d;
    if (total > MAX_PARAMS)
        return xp_error(XP_ECONFIG, "a model of %.3g parameters (model.flavor '%s'): at most %.0g",
                        total, arch->flavor, MAX_PARAMS);
    return XP_OK;
}

xp_status xp_arch_check(const xp_arch *arch) {
    XP_TRY(check_range("model.dim", arch->dim, 1 << 20, arch));
    XP_TRY(check_range("model.n_layers", arch->n_layers, 10000, arch));
    XP_TRY(check_range("model.n_heads", arch->n_heads, 65536, arch));
    XP_TRY(check_range("model.n_kv_heads", arch->n_kv_heads, 65536, arch));
    XP_TRY(check_range("model.head_dim", arch->head_dim, 65536, arch));
    XP_TRY(check_range("model.vocab_size", arch->vocab_size, 1 << 24, arch));
    if (arch->n_heads % arch->n_kv_heads != 0)
        return xp_error(XP_ECONFIG,
                        "model.n_heads = %d must be a multiple of model.n_kv_heads = %d",
                        arch->n_heads, arch->n_kv_heads);
    if (arch->head_dim % 2 != 0)
        return xp_error(XP_ECONFIG, "model.head_dim = %d must be even: RoPE turns pairs of halves",
                        arch->head_dim);
    if (!(arch->rope_theta > 0.0) || !(arch->norm_eps > 0.0))
        return xp_error(XP_ECONFIG,
                        "model.rope_theta = %g and model.norm_eps = %g must be positive",
                        arch->rope_theta, arch->norm_eps);
    if (arch->n_experts == 0) {
        XP_TRY(check_range("model.hidden_dim", arch->hidden_dim, 1 << 24, arch));
        return check_total(arch);
    }
    XP_TRY(check_range("moe.num_experts", arch->n_experts, 65536, arch));
    XP_TRY(check_range("moe.top_k", arch->top_k, 64, arch));
    XP_TRY(check_range("moe.moe_dim", arch->moe_dim, 1 << 24, arch));
    if (arch->top_k > arch->n_experts)
        return xp_error(XP_ECONFIG, "moe.top_k = %d must not exceed moe.num_experts = %d",
                        arch->top_k, arch->n_experts);
    if (!(arch->route_scale > 0.0))
        return xp_error(XP_ECONFIG, "moe.route_scale = %g must be positive", arch->route_scale);
    return check_total(arch);
}

/* Parameters of a model whose tokens pass `experts` experts a layer. */
static int64_t count_params(const xp_arch *arch, int64_t experts) {
    int64_t d = arch->dim, c = arch->head_dim, h = arch->n_heads, g = arch->n_kv_heads;
    int64_t layer = (h + 2 * g) * c * d + h * c * d + 2 * d + (arch->qk_norm ? 2 * c : 0);
    if (arch->n_experts > 0)
        layer += arch->n_experts * d + experts * 3 * arch->moe_dim * d;
    else
        layer += 3 * arch->hidden_dim * d;
    int64_t embeddings = arch->vocab_size * d * (arch->tie_embeddings ? 1 : 2);
    return embeddings + arch->n_layers * layer + d;
}

int64_t xp_arch_n_params(const xp_arch *arch) {
    return count_params(arch, arch->n_experts);
}

int64_t xp_arch_n_active_params(const xp_arch *arch) {
    return count_params(arch, arch->top_k);
}

double xp_arch_flops_per_token(const xp_arch *arch, int64_t seq_len) {
    int64_t matmul = xp_arch_n_active_params(arch);
    if (!arch->tie_embeddings)
        matmul -= arch->vocab_size * arch->dim;
    double attention = (double)arch->n_layers * arch->n_heads * arch->head_dim * (double)seq_len;
    return 6.0 * (double)matmul + 6.0 * attention;
}
