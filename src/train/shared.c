#include "train/shared.h"

#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/process.h"
#include "data/mixture.h"

int xp_train_n_cores(void) {
    return xp_process_n_cores();
}

static bool is_tokens(const char *dataset) {
    return strcmp(dataset, "tokens") == 0;
}

/* Which setting led to what is not there. */
static xp_status name_key(const char *key, xp_status status) {
    if (status != XP_ENOENT && status != XP_EIO)
        return status;
    if (strstr(xp_last_error(), key))
        return status;
    return xp_error_context(
        status,
        "%s (a relative path counts from the folder the command runs in, then from "
        "the configuration file's)",
        key);
}

/* Token ids need no tokenizer, but one that is there tells which id ends a document. */
static xp_status load_tokenizer(xp_train_shared *shared) {
    const xp_config *config = shared->config;
    const char *assets = config->model.hf_assets_path;
    bool needed = !is_tokens(config->training.dataset) ||
                  (config->validation.enable && config->validation.dataset &&
                   !is_tokens(config->validation.dataset));
    if (!assets) {
        if (needed)
            return xp_error(XP_ECONFIG,
                            "model.hf_assets_path is not set: it names the folder with "
                            "tokenizer.json that dataset \"%s\" needs",
                            config->training.dataset);
        return XP_OK;
    }
    char *path = xp_path_join(assets, "tokenizer.json");
    if (!path)
        return xp_error(XP_ENOMEM, "no memory for the tokenizer's path");
    bool found = false;
    xp_status status = xp_path_exists(path, &found);
    if (status == XP_OK && (needed || found))
        status = name_key("model.hf_assets_path", xp_tokenizer_load(assets, &shared->tokenizer));
    free(path);
    if (status == XP_ENOENT && !found)
        return xp_error_context(status,
                                "no tokenizer (scripts/prepare_text.sh, which ./run_train.sh runs, "
                                "prepares that of the debug configurations; `expar "
                                "tokenizer-train` makes one from text)");
    XP_TRY(status);
    if (shared->tokenizer && xp_tokenizer_vocab_size(shared->tokenizer) > shared->arch.vocab_size)
        return xp_error(XP_ECONFIG,
                        "the tokenizer in %s has %lld tokens, the model's vocabulary only %lld: "
                        "raise model.vocab_size or use another tokenizer",
                        assets, (long long)xp_tokenizer_vocab_size(shared->tokenizer),
                        (long long)shared->arch.vocab_size);
    return XP_OK;
}

bool xp_train_shuffles(const xp_config *config) {
    return config->training.shuffle >= 0 ? config->training.shuffle != 0
                                         : !is_tokens(config->training.dataset);
}

typedef struct source {
    const char *kind, *path, *path_key;
    const xp_source_list *sources; /* NULL: path alone */
    int64_t seq_len;
    bool shuffle;
} source;

static xp_status open_data(const xp_train_shared *shared, const source *from, const char *cache,
                           xp_pool *pool, xp_log *log, xp_dataset **data) {
    const xp_config *config = shared->config;
    int n_sources = from->sources ? from->sources->n : 0;
    if (!from->path && n_sources == 0)
        return xp_error(XP_ECONFIG, "%s is not set: name a file, folder or glob with the data",
                        from->path_key);
    xp_dataset_source sources[XP_MIXTURE_MAX_SOURCES];
    if (n_sources > XP_MIXTURE_MAX_SOURCES)
        return xp_error(XP_ECONFIG, "training.datasets has %d sources, at most %d are possible",
                        n_sources, XP_MIXTURE_MAX_SOURCES);
    for (int i = 0; i < n_sources; i++)
        sources[i] = (xp_dataset_source){.path = from->sources->items[i].path,
                                         .weight = from->sources->items[i].weight};
    xp_dataset_args args = {
        .kind = from->kind,
        .path = from->path,
        .sources = sources,
        .n_sources = n_sources,
        .text_field = config->training.text_field,
        .skip_bad_lines = strcmp(config->training.bad_lines, "skip") == 0,
        .token_type = config->training.token_type,
        .tokenizer = is_tokens(from->kind) ? NULL : shared->tokenizer,
        .cache_folder = cache,
        .vocab_size = shared->arch.vocab_size,
        .seq_len = from->seq_len,
        .shuffle = from->shuffle,
        .seed = config->debug.seed > 0 ? (uint64_t)config->debug.seed : 0,
        .eos_id = shared->tokenizer ? xp_tokenizer_eos(shared->tokenizer) : -1,
        .note_borders = from->sources != NULL,
        .document_attention = xp_run_attention(config) == XP_ATTENTION_DOCUMENT,
        .log = log,
        .pool = pool,
    };
    return name_key(from->path_key, xp_dataset_open(&args, data));
}

static xp_status open_all(xp_train_shared *shared, const char *cache, xp_pool *pool, xp_log *log) {
    const xp_config *config = shared->config;
    source training = {
        .kind = config->training.dataset,
        .path = config->training.dataset_path,
        .path_key = "training.dataset_path",
        .sources = &config->training.datasets,
        .seq_len = config->training.seq_len,
        .shuffle = xp_train_shuffles(config),
    };
    XP_TRY(open_data(shared, &training, cache, pool, log, &shared->data));
    if (!config->validation.enable)
        return XP_OK;
    source validation = {
        .kind = config->validation.dataset ? config->validation.dataset : training.kind,
        .path = config->validation.dataset_path,
        .path_key = "validation.dataset_path",
        .seq_len = config->validation.seq_len > 0 ? config->validation.seq_len : training.seq_len,
    };
    return open_data(shared, &validation, cache, pool, log, &shared->validation);
}

static xp_status create_parts(xp_train_shared *shared, xp_log *log) {
    const xp_config *config = shared->config;
    XP_TRY(xp_arch_from_config(config, &shared->arch));
    if (config->checkpoint.enable && config->checkpoint.last_save_in_hf &&
        xp_arch_check_hf(&shared->arch) != XP_OK) /* said now, not behind the last step */
        return xp_error_context(XP_ECONFIG, "checkpoint.last_save_in_hf");
    XP_TRY(load_tokenizer(shared));
    XP_TRY(xp_folder_create(config->job.dump_folder));
    char *cache = xp_path_join(config->job.dump_folder, "cache");
    if (!cache)
        return xp_error(XP_ENOMEM, "no memory for the data's cache path");
    xp_pool *pool = NULL;
    xp_status status = xp_pool_create(xp_train_n_cores(), &pool);
    if (status == XP_OK)
        status = open_all(shared, cache, pool, log);
    xp_pool_destroy(pool);
    free(cache);
    return status;
}

xp_status xp_train_shared_create(const xp_config *config, xp_log *log, xp_train_shared **shared) {
    xp_train_shared *s = calloc(1, sizeof *s);
    if (!s)
        return xp_error(XP_ENOMEM, "no memory for the run");
    s->config = config;
    atomic_init(&s->stop, false);
    xp_status status = create_parts(s, log);
    if (status != XP_OK) {
        xp_train_shared_destroy(s);
        return status;
    }
    *shared = s;
    return XP_OK;
}

void xp_train_shared_destroy(xp_train_shared *shared) {
    if (!shared)
        return;
    xp_dataset_close(shared->validation);
    xp_dataset_close(shared->data);
    xp_tokenizer_destroy(shared->tokenizer);
    free(shared);
}

void xp_train_request_stop(xp_train_shared *shared) {
    atomic_store(&shared->stop, true);
}
