/**
 * The merged configuration: defaults, then the TOML file, then the environment, then the command
 * line. One field table (fields.c) drives parsing, ranges, --help, `expar config` and
 * docs/reference/config.md; this struct is its mirror. Strings belong to the config; an unset string is NULL.
 * Field meanings: docs/reference/config.md.
 */
#ifndef XP_CONFIG_CONFIG_H
#define XP_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include "expar/status.h"

typedef struct xp_string_list {
    int n;
    const char **items;
} xp_string_list;

/** One of several sources of training data. */
typedef struct xp_data_source {
    const char *path;
    double weight; /* positive */
} xp_data_source;

typedef struct xp_source_list {
    int n;
    xp_data_source *items;
} xp_source_list;

typedef struct xp_config {
    struct {
        const char *config_file, *dump_folder, *description, *save_config_file;
        bool print_config;
        int64_t threads_per_rank; /* 0 = cores / local ranks */
        int64_t log_rank;         /* -1 = rank 0 only; from LOG_RANK */
        int64_t ngpu;             /* ranks of a machine; 0 = unset; from NGPU */
        const char *ranks;        /* "auto", "threads", "processes" */
        bool check_memory;
    } job;
    struct {
        const char *name, *flavor, *hf_assets_path;
        /* 0 (floats: 0, tie_embeddings: -1) = as the flavor says */
        int64_t dim, n_layers, n_heads, n_kv_heads, head_dim, hidden_dim, vocab_size;
        double rope_theta, norm_eps;
        int64_t tie_embeddings; /* -1 unset, 0, 1; a boolean in TOML */
    } model;
    struct {
        const char *dataset, *dataset_path, *dtype, *attention, *backend;
        const char *text_field, *bad_lines, *token_type;
        xp_source_list datasets; /* n = 0: dataset_path */
        int64_t local_batch_size, global_batch_size, seq_len, steps;
        double max_norm;
        int64_t shuffle;    /* -1 = by dataset */
        int64_t cuda_graph; /* -1 = auto, 0, 1 */
    } training;
    struct {
        const char *name;
        double lr, beta1, beta2, eps, weight_decay;
        bool decay_norms;
    } optimizer;
    struct {
        int64_t warmup_steps, total_steps; /* total_steps 0 = training.steps */
        double decay_ratio;                /* < 0 = none */
        const char *decay_type;
        double min_lr_factor;
    } lr_scheduler;
    struct {
        int64_t data_parallel_replicate_degree, data_parallel_shard_degree, expert_parallel_degree;
        const char *expert_parallel_comm_backend; /* NULL = by flavor */
        int64_t expert_parallel_overlap;          /* -1 = auto, 0, 1 */
        int64_t bucket_mb, tensor_parallel_degree, pipeline_parallel_degree,
            context_parallel_degree;
    } parallelism;
    struct {
        int64_t num_experts, top_k, moe_dim; /* 0 = as the flavor says */
        const char *score_func, *save_dispatched;
        int64_t route_norm, use_deepep; /* -1 unset, 0, 1 */
        double route_scale;             /* 0 = as the flavor says */
        double load_balance_coeff, aux_loss_coeff, z_loss_coeff, capacity_factor;
        double saved_rows_factor; /* 0 = choose */
    } moe;
    struct {
        int64_t num_sms, chunk_tokens; /* 0 = choose */
        const char *transport, *tuned_for;
        const char *tuned_file; /* NULL: NAME.tuned.toml beside the configuration NAME.toml */
        double overlap_split;
        int64_t overlap_num_sms; /* 0 = choose */
    } deepep;
    struct {
        const char *tuned_for;
        xp_string_list algorithms; /* xp_gemm_choice_parse() */
    } gemm;
    struct {
        const char *mode;
        int64_t reuse_for_gradients; /* -1 = auto, 0, 1 */
    } activation_checkpoint;
    struct {
        bool enable, initial_load_model_only, initial_load_in_hf, last_save_model_only,
            last_save_in_hf;
        bool enable_first_step_checkpoint;
        const char *folder, *initial_load_path, *export_dtype, *async_mode;
        int64_t interval, keep_latest_k, load_step;
        xp_string_list exclude_from_loading;
    } checkpoint;
    struct {
        int64_t log_freq;
        bool enable_tensorboard, disable_color_printing;
        const char *save_tb_folder, *log_file;
    } metrics;
    struct {
        bool enable_profiling;
        const char *save_traces_folder;
        int64_t profile_freq;
    } profiling;
    struct {
        bool enable;
        const char *dataset, *dataset_path; /* dataset NULL = training.dataset */
        int64_t local_batch_size, seq_len;  /* 0 = training's */
        int64_t freq, steps;                /* steps -1 = all of the data */
    } validation;
    struct {
        int64_t init_timeout_seconds, train_timeout_seconds;
    } comm;
    struct {
        int64_t seed; /* >= 0; -1 in the file means 0 */
        bool deterministic, moe_force_load_balance;
        const char *moe_force_load_balance_mode;
        int64_t moe_send_copies;
        const char *device_caps; /* NULL: all */
    } debug;
} xp_config;

/** Where values come from, and warnings met on the way; owns the strings. */
typedef struct xp_config_set xp_config_set;

/**
 * Build the merged configuration.
 * @param argc, argv  the words after the command name, nothing else among them: --section.key
 * value,
 *                    --section.key=value, --section.flag, --section.no_flag. Copied; argv may be
 *                    NULL when argc is 0
 * @param environment consult NGPU, CONFIG_FILE, LOG_RANK
 * @param[out] set    only set on success; xp_config_destroy() it
 * @return XP_OK; XP_ECONFIG (file:line:column, the variable or the option in the error); XP_EIO or
 *         XP_ENOENT when the file cannot be read; XP_ENOMEM
 */
XP_NODISCARD xp_status xp_config_load(int argc, char **argv, bool environment, xp_config_set **set);
/**
 * Defaults, then TOML in memory, as xp_config_dump_toml() made it: no environment and no command line.
 * @param name  where the text is from, for errors
 * @return as of xp_config_load()
 */
XP_NODISCARD xp_status xp_config_load_text(const char *name, const char *text, xp_config_set **set);
void xp_config_destroy(xp_config_set *set);
const xp_config *xp_config_get(const xp_config_set *set);
/**
 * For callers that adjust what was merged (tests, tools): checks ranges again.
 * @param section_key "training.steps"; second names work too
 * @return XP_OK; XP_ECONFIG or XP_EINVAL (no "section.key"): nothing changed. Strings got earlier
 * stay valid
 */
XP_NODISCARD xp_status xp_config_override(xp_config_set *set, const char *section_key,
                                          const char *value);
/**
 * The i-th warning, NULL past the last. TorchTitan's keys without a counterpart give one:
 * "TorchTitan keys without a counterpart here, ignored: compile.enable, training.gc_freq".
 */
const char *xp_config_warning(const xp_config_set *set, int i);

typedef void (*xp_config_say)(void *context, const char *text);
/** What the configuration itself does not say; true where it is not known. */
typedef struct xp_config_facts {
    bool has_experts; /* the model */
    bool on_gpu;      /* the run */
} xp_config_facts;

/**
 * Name the settings that were made and change nothing, because another one switches off what they govern
 * ("checkpoint.interval (run.toml:7) has no effect: checkpoint.enable is off"): a line for each cause.
 */
XP_NODISCARD xp_status xp_config_effects(const xp_config_set *set, const xp_config_facts *facts,
                                         xp_config_say say, void *context);

/**
 * The merged configuration as TOML that reads back to the same configuration, but for
 * job.config_file. Caller frees *text.
 */
XP_NODISCARD xp_status xp_config_dump_toml(const xp_config_set *set, char **text);
/**
 * As JSON: {"section": {"key": {"value": ..., "origin": ...}}}. An origin is "default",
 * "FILE:LINE", "environment NAME", "command line" or "program" (xp_config_override()); unset values
 * are null. Caller frees *text.
 */
XP_NODISCARD xp_status xp_config_dump_json(const xp_config_set *set, char **text);
/**
 * --help text of all keys, grouped; section NULL = all. With `markdown` the tables of
 * docs/reference/config.md. XP_ECONFIG, with the nearest name, for an unknown section. Caller frees *text.
 */
XP_NODISCARD xp_status xp_config_help(const char *section, bool markdown, char **text);

#endif
