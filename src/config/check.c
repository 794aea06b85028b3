/** Rules between fields that need nothing but the configuration. */
#include "config/set.h"

#include <inttypes.h>
#include <string.h>

/** Where the value of a field came from, for the front of an error. */
static const char *where(xp_config_set *set, const char *section, const char *key) {
    const xp_field *field = xp_field_find(section, key);
    const xp_origin *origin = xp_set_origin(set, field);
    const char *text = NULL;
    if (origin->kind == XP_ORIGIN_FILE)
        text =
            xp_arena_printf(set->arena, "%s:%d:%d: ", origin->name, origin->line, origin->column);
    else if (origin->kind == XP_ORIGIN_ENVIRONMENT)
        text = xp_arena_printf(set->arena, "%s: ", origin->name);
    else if (origin->kind == XP_ORIGIN_COMMAND_LINE)
        text = xp_arena_printf(set->arena, "--%s.%s: ", section, key);
    return text ? text : "";
}

static xp_status check_parallelism(xp_config_set *set) {
    const struct {
        const char *key, *name;
        int64_t degree;
    } absent[] = {
        {"tensor_parallel_degree", "tensor", set->config.parallelism.tensor_parallel_degree},
        {"pipeline_parallel_degree", "pipeline", set->config.parallelism.pipeline_parallel_degree},
        {"context_parallel_degree", "context", set->config.parallelism.context_parallel_degree},
    };
    for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++)
        if (absent[i].degree > 1)
            return xp_error(XP_ECONFIG,
                            "%sparallelism.%s is %" PRId64
                            ": %s parallelism is not supported yet; set it to 1 and use data and "
                            "expert parallelism",
                            where(set, "parallelism", absent[i].key), absent[i].key,
                            absent[i].degree, absent[i].name);
    return XP_OK;
}

static xp_status check_ranks(xp_config_set *set) {
    const xp_origin *origin = xp_set_origin(set, xp_field_find("job", "ngpu"));
    if (set->config.job.ngpu == 0 && origin->kind != XP_ORIGIN_DEFAULT)
        return xp_error(XP_ECONFIG, "%sjob.ngpu is 0, must be at least 1",
                        where(set, "job", "ngpu"));
    return XP_OK;
}

static xp_status check_model(xp_config_set *set) {
    const xp_config *c = &set->config;
    if (c->moe.num_experts > 0 && c->moe.top_k > c->moe.num_experts)
        return xp_error(XP_ECONFIG,
                        "%smoe.top_k is %" PRId64 ", more than moe.num_experts = %" PRId64,
                        where(set, "moe", "top_k"), c->moe.top_k, c->moe.num_experts);
    if (c->model.n_heads > 0 && c->model.n_kv_heads > 0 &&
        c->model.n_heads % c->model.n_kv_heads != 0)
        return xp_error(XP_ECONFIG,
                        "%smodel.n_kv_heads is %" PRId64
                        ", which does not divide model.n_heads = %" PRId64,
                        where(set, "model", "n_kv_heads"), c->model.n_kv_heads, c->model.n_heads);
    if (c->model.head_dim % 2 != 0)
        return xp_error(XP_ECONFIG, "%smodel.head_dim is %" PRId64 ", must be even",
                        where(set, "model", "head_dim"), c->model.head_dim);
    const char *backend = c->parallelism.expert_parallel_comm_backend;
    if (backend && c->moe.use_deepep >= 0 &&
        (strcmp(backend, "deepep") == 0) != (c->moe.use_deepep == 1))
        return xp_error(XP_ECONFIG,
                        "%sparallelism.expert_parallel_comm_backend is \"%s\", but moe.use_deepep "
                        "is %s; set one of them",
                        where(set, "parallelism", "expert_parallel_comm_backend"), backend,
                        c->moe.use_deepep ? "true" : "false");
    return XP_OK;
}

/* Two ways to name the data: the one that was given later (command line over environment over file)
 * replaces the other; both in one place are a mistake. */
static xp_status check_data(xp_config_set *set) {
    xp_config *c = &set->config;
    xp_origin *several = xp_set_origin(set, xp_field_find("training", "datasets"));
    xp_origin *one = xp_set_origin(set, xp_field_find("training", "dataset_path"));
    if (c->training.datasets.n == 0 || !c->training.dataset_path)
        return XP_OK;
    if (several->kind > one->kind) {
        c->training.dataset_path = NULL;
        *one = (xp_origin){.kind = XP_ORIGIN_DEFAULT};
    } else if (several->kind < one->kind) {
        c->training.datasets = (xp_source_list){.n = 0};
        *several = (xp_origin){.kind = XP_ORIGIN_DEFAULT};
    } else {
        return xp_error(XP_ECONFIG,
                        "%straining.datasets and training.dataset_path are both set; give one of "
                        "them",
                        where(set, "training", "datasets"));
    }
    return XP_OK;
}

static xp_status check_checkpoint(xp_config_set *set) {
    const xp_config *c = &set->config;
    if (c->checkpoint.keep_latest_k == 1)
        return xp_error(XP_ECONFIG,
                        "%scheckpoint.keep_latest_k is 1: the only checkpoint would be deleted "
                        "while the next is written; use 2 or more, or 0 to keep all",
                        where(set, "checkpoint", "keep_latest_k"));
    if (c->checkpoint.enable && c->debug.moe_send_copies > 1)
        return xp_error(
            XP_ECONFIG,
            "%sdebug.moe_send_copies is %" PRId64
            ": it makes the exchange slower on purpose, for measurements, and is refused "
            "with checkpoint.enable; switch one of them off",
            where(set, "debug", "moe_send_copies"), c->debug.moe_send_copies);
    if (c->checkpoint.load_step >= 0 && !c->checkpoint.enable)
        return xp_error(XP_ECONFIG,
                        "%scheckpoint.load_step is %" PRId64
                        ", but checkpoint.enable is off: nothing would be loaded; turn it on, or "
                        "start from the checkpoint with checkpoint.initial_load_path",
                        where(set, "checkpoint", "load_step"), c->checkpoint.load_step);
    if (c->checkpoint.initial_load_in_hf && !c->checkpoint.initial_load_model_only)
        return xp_error(XP_ECONFIG,
                        "%scheckpoint.initial_load_in_hf needs initial_load_model_only = true: a "
                        "Hugging Face folder holds no optimizer state",
                        where(set, "checkpoint", "initial_load_in_hf"));
    const char *path = c->checkpoint.initial_load_path, *assets = c->model.hf_assets_path;
    if (c->checkpoint.initial_load_in_hf && !(path && path[0]) && !(assets && assets[0]))
        return xp_error(XP_ECONFIG,
                        "%scheckpoint.initial_load_in_hf needs a folder to load from: set "
                        "checkpoint.initial_load_path, or model.hf_assets_path",
                        where(set, "checkpoint", "initial_load_in_hf"));
    return XP_OK;
}

/** Values that TorchTitan's files hold and that mean a neighbour here. */
static xp_status replace_foreign_values(xp_config_set *set) {
    xp_config *c = &set->config;
    if (c->debug.seed < 0)
        c->debug.seed = 0;
    if (strcmp(c->checkpoint.async_mode, "async_with_pinned_mem") == 0)
        c->checkpoint.async_mode = "async";
    if (strcmp(c->checkpoint.export_dtype, "float16") != 0)
        return XP_OK;
    c->checkpoint.export_dtype = "float32";
    return xp_set_warn(set,
                       xp_arena_printf(set->arena,
                                       "%scheckpoint.export_dtype \"float16\" is not written here: "
                                       "weights are exported as float32, which loses nothing",
                                       where(set, "checkpoint", "export_dtype")));
}

xp_status xp_set_check(xp_config_set *set) {
    XP_TRY(check_ranks(set));
    XP_TRY(check_parallelism(set));
    XP_TRY(check_model(set));
    XP_TRY(check_data(set));
    XP_TRY(check_checkpoint(set));
    return replace_foreign_values(set);
}
