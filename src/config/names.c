/** Names beside the table: aliases, TorchTitan keys without a counterpart, and the nearest valid
 * name to a wrong one. */
#include "config/fields.h"

#include <string.h>
#include "core/text.h"

typedef struct alias {
    const char *section, *key, *target_section, *target_key;
} alias;

/* Second names, and the names of TorchTitan's releases before 0.2. */
static const alias aliases[] = {
    {"training", "debug_moe_force_load_balance", "debug", "moe_force_load_balance"},
    {"training", "seed", "debug", "seed"},
    {"training", "deterministic", "debug", "deterministic"},
    {"training", "batch_size", "training", "local_batch_size"},
    {"checkpoint", "enable_checkpoint", "checkpoint", "enable"},
    {"validation", "enabled", "validation", "enable"},
    {"model", "tokenizer_path", "model", "hf_assets_path"},
    {"job", "print_args", "job", "print_config"},
};

/* Whole sections, and the tables below a section, by their first name. */
static const char *const foreign_sections[] = {
    "compile",      "quantize",          "float8",          "mx",           "mxfp8",
    "liger_kernel", "memory_estimation", "fault_tolerance", "experimental",
};

static const char *const foreign_keys[] = {
    "job.use_for_integration_test",
    "job.custom_config_module",
    "profiling.enable_memory_snapshot",
    "profiling.save_memory_snapshot_folder",
    "profiling.profiler_active",
    "profiling.profiler_warmup",
    "metrics.enable_wandb",
    "metrics.save_for_all_ranks",
    "model.converters",
    "model.print_after_conversion",
    "optimizer.implementation",
    "optimizer.early_step_in_backward",
    "training.compile",
    "training.dataloader",
    "training.enable_cpu_offload",
    "training.mixed_precision_param",
    "training.mixed_precision_reduce",
    "training.gc_freq",
    "training.gc_debug",
    "parallelism.context_parallel_rotate_method",
    "parallelism.context_parallel_load_balancer",
    "parallelism.disable_loss_parallel",
    "parallelism.enable_async_tensor_parallel",
    "parallelism.enable_compiled_autograd",
    "parallelism.expert_tensor_parallel_degree",
    "parallelism.expert_parallel_a2a_impl",
    "parallelism.fsdp_reshard_after_forward",
    "parallelism.module_fqns_per_model_part",
    "parallelism.pipeline_parallel_expert_parallel_overlap",
    "parallelism.pipeline_parallel_first_stage_less_layers",
    "parallelism.pipeline_parallel_last_stage_less_layers",
    "parallelism.pipeline_parallel_layers_per_stage",
    "parallelism.pipeline_parallel_microbatch_size",
    "parallelism.pipeline_parallel_schedule",
    "parallelism.pipeline_parallel_schedule_csv",
    "parallelism.pipeline_parallel_split_points",
    "checkpoint.create_seed_checkpoint",
    "checkpoint.enable_ft_dataloader_checkpoints",
    "checkpoint.initial_load_in_hf_quantized",
    "checkpoint.load_only",
    "validation.dataloader",
    "activation_checkpoint.selective_ac_option",
    "activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns",
    "activation_checkpoint.early_stop",
    "activation_checkpoint.memory_budget",
    "activation_checkpoint.visualize_memory_budget_pareto",
    "activation_checkpoint.preserve_rng_state",
    "activation_checkpoint.determinism_check",
    "activation_checkpoint.debug",
    "comm.mode",
    "comm.trace_buf_size",
    "comm.save_traces_folder",
    "comm.save_traces_file_prefix",
    "debug.deterministic_warn_only",
};

const xp_field *xp_field_alias(const char *section, const char *key) {
    for (size_t i = 0; i < sizeof aliases / sizeof aliases[0]; i++)
        if (strcmp(aliases[i].section, section) == 0 && strcmp(aliases[i].key, key) == 0)
            return xp_field_find(aliases[i].target_section, aliases[i].target_key);
    return NULL;
}

bool xp_field_foreign(const char *section, const char *key) {
    for (size_t i = 0; i < sizeof foreign_sections / sizeof foreign_sections[0]; i++)
        if (strcmp(foreign_sections[i], section) == 0)
            return true;
    if (!key)
        return false;
    size_t n_section = strlen(section), n_key = strcspn(key, ".");
    for (size_t i = 0; i < sizeof foreign_keys / sizeof foreign_keys[0]; i++) {
        const char *name = foreign_keys[i];
        if (strncmp(name, section, n_section) == 0 && name[n_section] == '.' &&
            strlen(name + n_section + 1) == n_key && strncmp(name + n_section + 1, key, n_key) == 0)
            return true;
    }
    return false;
}

int xp_name_tolerance(const char *word) {
    size_t n = strlen(word);
    return n <= 3 ? 1 : n <= 8 ? 2 : (int)(n / 3 < 6 ? n / 3 : 6);
}

const char *xp_field_nearest_section(const char *section) {
    int best = xp_name_tolerance(section) + 1;
    const char *nearest = NULL;
    for (int i = 0; xp_field_section(i); i++) {
        int distance = xp_edit_distance(section, xp_field_section(i));
        if (distance < best) {
            best = distance;
            nearest = xp_field_section(i);
        }
    }
    return nearest;
}

/** The nearest key in one section (NULL: any), within the tolerance. */
static const xp_field *nearest_key(const char *section, const char *key) {
    int best = xp_name_tolerance(key) + 1;
    const xp_field *nearest = NULL;
    for (int i = 0; i < xp_field_count(); i++) {
        const xp_field *field = xp_field_at(i);
        if (section && strcmp(field->section, section) != 0)
            continue;
        int distance = xp_edit_distance(key, field->key);
        if (distance < best) {
            best = distance;
            nearest = field;
        }
    }
    return nearest;
}

const xp_field *xp_field_nearest(const char *section, const char *key) {
    const char *home = section ? xp_field_nearest_section(section) : NULL;
    const xp_field *exact = home ? xp_field_find(home, key) : NULL;
    for (int i = 0; !exact && i < xp_field_count(); i++)
        if (strcmp(xp_field_at(i)->key, key) == 0)
            exact = xp_field_at(i);
    if (exact)
        return exact;
    const xp_field *near = home ? nearest_key(home, key) : NULL;
    return near ? near : nearest_key(NULL, key);
}
