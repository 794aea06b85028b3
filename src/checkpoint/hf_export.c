#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "checkpoint/hf.h"
#include "checkpoint/hf_assets.h"
#include "checkpoint/outfile.h"
#include "checkpoint/publish.h"
#include "core/arena.h"
#include "core/file.h"
#include "core/text.h"
#include "expar/version.h"

#define DEFAULT_SHARD_BYTES 5000000000
#define CHUNK_ELEMENTS      (1 << 18)
#define MARK_KEY            "exported_by" /* in the shards' metadata: ours to replace */
#define EXTRA_FILE          "expar_extra.safetensors"

typedef struct export_run {
    const xp_hf_export_args *args;
    xp_arena *arena;
    char *target, *temp, *aside;
    int64_t *shard_of; /* [n_tensors] */
    int64_t n_shards, total_bytes;
    float *values;    /* [CHUNK_ELEMENTS] */
    uint16_t *narrow; /* [CHUNK_ELEMENTS] */
} export_run;

static xp_status no_memory(const export_run *run) {
    return xp_error(XP_ENOMEM, "no memory to export to %s", run->args->folder);
}

static int64_t source_elements(const xp_hf_source *source) {
    int64_t n = 1;
    for (int d = 0; d < source->n_dims; d++)
        n *= source->shape[d];
    return n;
}

/** Fill shards in order, each up to the limit; a tensor larger than that has a shard of its own. */
static void plan_shards(export_run *run) {
    const xp_hf_export_args *args = run->args;
    int64_t limit = args->max_shard_bytes > 0 ? args->max_shard_bytes : DEFAULT_SHARD_BYTES;
    int64_t used = 0, shard = 0;
    for (int64_t i = 0; i < args->n_tensors; i++) {
        int64_t n_bytes = source_elements(&args->tensors[i]) * (int64_t)xp_dtype_bytes(args->dtype);
        if (used > 0 && used + n_bytes > limit) {
            shard++;
            used = 0;
        }
        used += n_bytes;
        run->total_bytes += n_bytes;
        run->shard_of[i] = shard;
    }
    run->n_shards = shard + 1;
}

static char *shard_name(const export_run *run, int64_t shard) {
    if (run->n_shards == 1)
        return xp_arena_strdup(run->arena, "model.safetensors");
    return xp_arena_printf(run->arena, "model-%05" PRId64 "-of-%05" PRId64 ".safetensors",
                           shard + 1, run->n_shards);
}

static xp_status stream_tensor(export_run *run, const xp_hf_source *source, xp_dtype dtype,
                               xp_st_writer *writer) {
    int64_t total = source_elements(source);
    for (int64_t first = 0, n; first < total; first += n) {
        n = total - first < CHUNK_ELEMENTS ? total - first : CHUNK_ELEMENTS;
        XP_TRY(source->fill(source->context, first, n, run->values));
        if (dtype == XP_BF16) {
            for (int64_t i = 0; i < n; i++)
                run->narrow[i] = xp_bf16_from_f32(run->values[i]);
            XP_TRY(xp_st_writer_data(writer, run->narrow, (size_t)n * sizeof *run->narrow));
        } else {
            XP_TRY(xp_st_writer_data(writer, run->values, (size_t)n * sizeof *run->values));
        }
    }
    return XP_OK;
}

/** tensors[0 .. n) into one open file. */
static xp_status fill_file(export_run *run, const xp_hf_source *tensors, int64_t n, xp_dtype dtype,
                           xp_st_writer *writer) {
    XP_TRY(xp_st_writer_add_metadata(writer, "format", "pt"));
    XP_TRY(xp_st_writer_add_metadata(writer, MARK_KEY, "expar " XP_VERSION));
    for (int64_t i = 0; i < n; i++)
        XP_TRY(xp_st_writer_declare(writer, tensors[i].name, dtype, tensors[i].n_dims,
                                    tensors[i].shape));
    for (int64_t i = 0; i < n; i++)
        XP_TRY(stream_tensor(run, &tensors[i], dtype, writer));
    return xp_st_writer_finish(writer);
}

static xp_status write_file(export_run *run, const char *name, const xp_hf_source *tensors,
                            int64_t n, xp_dtype dtype) {
    char *path = name == NULL ? NULL : xp_path_join(run->temp, name);
    if (path == NULL)
        return no_memory(run);
    xp_st_writer *writer;
    xp_status status = xp_st_writer_create(path, &writer);
    free(path);
    XP_TRY(status);
    status = fill_file(run, tensors, n, dtype, writer);
    xp_st_writer_destroy(writer);
    return status;
}

static xp_status write_text(const export_run *run, const char *name, const char *data,
                            size_t n_bytes) {
    char *path = xp_path_join(run->temp, name);
    if (path == NULL)
        return no_memory(run);
    xp_status status = xp_file_write_atomic(path, data, n_bytes);
    free(path);
    return status;
}

static int compare_sources(const void *a, const void *b) {
    const xp_hf_source *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

static const xp_hf_source *const *sort_by_name(const export_run *run) {
    size_t n = (size_t)run->args->n_tensors;
    const xp_hf_source **sorted = xp_arena_alloc(run->arena, n * sizeof *sorted);
    if (sorted == NULL)
        return NULL;
    for (size_t i = 0; i < n; i++)
        sorted[i] = &run->args->tensors[i];
    qsort(sorted, n, sizeof *sorted, compare_sources);
    return sorted;
}

/** As transformers writes it: json.dumps(..., indent=2, sort_keys=True). */
static xp_status write_index(const export_run *run) {
    const xp_hf_source *const *sorted = sort_by_name(run);
    if (sorted == NULL)
        return no_memory(run);
    xp_text text = {0};
    xp_text_printf(&text, "{\n  \"metadata\": {\n    \"total_size\": %lld\n  },\n",
                   (long long)run->total_bytes);
    xp_text_puts(&text, "  \"weight_map\": {");
    for (int64_t i = 0; i < run->args->n_tensors; i++) {
        const char *file = shard_name(run, run->shard_of[sorted[i] - run->args->tensors]);
        xp_text_puts(&text, i > 0 ? ",\n    " : "\n    ");
        xp_text_add_json(&text, sorted[i]->name, strlen(sorted[i]->name));
        xp_text_printf(&text, ": \"%s\"", file == NULL ? "" : file);
        text.failed = text.failed || file == NULL;
    }
    xp_text_puts(&text, "\n  }\n}\n");
    xp_status status =
        text.failed ? no_memory(run)
                    : write_text(run, "model.safetensors.index.json", text.data, text.length);
    xp_text_free(&text);
    return status;
}

static xp_status write_weights(export_run *run) {
    const xp_hf_export_args *args = run->args;
    int64_t first = 0;
    for (int64_t shard = 0; shard < run->n_shards; shard++) {
        int64_t n = 0;
        while (first + n < args->n_tensors && run->shard_of[first + n] == shard)
            n++;
        XP_TRY(write_file(run, shard_name(run, shard), args->tensors + first, n, args->dtype));
        first += n;
    }
    if (run->n_shards > 1)
        XP_TRY(write_index(run));
    if (args->n_extra > 0)
        XP_TRY(write_file(run, EXTRA_FILE, args->extra, args->n_extra, XP_F32));
    return XP_OK;
}

/** A name that an export may have written. */
static bool is_export_name(const char *name) {
    size_t n = strlen(name);
    bool weights =
        strncmp(name, "model", 5) == 0 && n > 12 && strcmp(name + n - 12, ".safetensors") == 0;
    if (weights || strcmp(name, "config.json") == 0 || strcmp(name, EXTRA_FILE) == 0 ||
        strcmp(name, "model.safetensors.index.json") == 0)
        return true;
    return xp_hf_is_asset(name);
}

/** True when the file is a safetensors file with our mark. */
static bool has_mark(const char *folder, const char *name) {
    char *path = xp_path_join(folder, name);
    xp_st_file *file;
    if (path == NULL)
        return false;
    bool ours = xp_st_open(path, &file) == XP_OK;
    free(path);
    if (ours) {
        ours = xp_st_metadata(file, MARK_KEY) != NULL;
        xp_st_close(file);
    }
    return ours;
}

/** What the export's folder holds already. */
typedef struct target_content {
    bool any, marked;
    char foreign[256];
} target_content;

static xp_status see_target_entry(void *context, const char *folder, const char *name) {
    target_content *content = context;
    size_t n = strlen(name);
    content->any = true;
    if (!is_export_name(name))
        snprintf(content->foreign, sizeof content->foreign, "%s", name);
    else if (!content->marked && n > 12 && strcmp(name + n - 12, ".safetensors") == 0)
        content->marked = has_mark(folder, name);
    return XP_OK;
}

/** Nothing of the user's may be lost: the target is absent, empty, or an earlier export and nothing
 * else. */
static xp_status check_target(const export_run *run) {
    target_content content = {0};
    xp_status status = xp_folder_each(run->target, see_target_entry, &content);
    if (status == XP_ENOENT)
        return XP_OK;
    if (status != XP_OK)
        return xp_error_context(XP_EINVAL, "cannot export to %s", run->target);
    if (!content.any || (content.marked && content.foreign[0] == '\0'))
        return XP_OK;
    return xp_error(
        XP_EINVAL,
        "%s exists and is no earlier export (%s is in it): choose another folder or remove it",
        run->target, content.foreign[0] != '\0' ? content.foreign : "a model of another origin");
}

/** "a/b/" -> "a/b", "a/.b.tmp", "a/.b.old"; the parent is made. */
static xp_status name_folders(export_run *run) {
    char *target = xp_arena_strdup(run->arena, run->args->folder);
    if (target == NULL)
        return no_memory(run);
    for (size_t n = strlen(target); n > 1 && target[n - 1] == '/'; n--)
        target[n - 1] = '\0';
    char *slash = strrchr(target, '/');
    const char *name = slash == NULL ? target : slash + 1;
    if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return xp_error(XP_EINVAL, "cannot export to '%s': give the folder a name",
                        run->args->folder);
    int n_parent = (int)(name - target);
    run->target = target;
    run->temp = xp_arena_printf(run->arena, "%.*s.%s.tmp", n_parent, target, name);
    run->aside = xp_arena_printf(run->arena, "%.*s.%s.old", n_parent, target, name);
    char *parent = xp_arena_strndup(run->arena, target, (size_t)n_parent);
    if (run->temp == NULL || run->aside == NULL || parent == NULL)
        return no_memory(run);
    return n_parent > 0 ? xp_folder_create(parent) : XP_OK;
}

static xp_status check_args(const xp_hf_export_args *args) {
    if (args->folder == NULL || args->config_json == NULL || args->n_tensors < 1)
        return xp_error(XP_EINVAL, "an export needs a folder, a config.json and tensors");
    if (args->dtype != XP_F32 && args->dtype != XP_BF16)
        return xp_error(XP_EINVAL, "an export can be float32 or bfloat16, not %s",
                        xp_dtype_name(args->dtype));
    return XP_OK;
}

static xp_status write_all(export_run *run) {
    const char *config = run->args->config_json;
    XP_TRY(name_folders(run));
    XP_TRY(check_target(run));
    XP_TRY(xp_folder_remove(run->temp)); /* of an export that was killed */
    XP_TRY(xp_folder_create(run->temp));
    XP_TRY(write_text(run, "config.json", config, strlen(config)));
    XP_TRY(xp_hf_copy_assets(run->args, run->temp));
    XP_TRY(write_weights(run));
    XP_TRY(xp_folder_publish(run->temp, run->target, run->aside));
    return xp_folder_remove(run->aside); /* of a replacement that was killed */
}

xp_status xp_hf_export(const xp_hf_export_args *args) {
    XP_TRY(check_args(args));
    export_run run = {.args = args};
    XP_TRY(xp_arena_create(&run.arena));
    run.shard_of = xp_arena_alloc(run.arena, (size_t)args->n_tensors * sizeof *run.shard_of);
    run.values = malloc(CHUNK_ELEMENTS * sizeof *run.values);
    run.narrow = malloc(CHUNK_ELEMENTS * sizeof *run.narrow);
    xp_status status = no_memory(&run);
    if (run.shard_of != NULL && run.values != NULL && run.narrow != NULL) {
        plan_shards(&run);
        status = write_all(&run);
    }
    if (status != XP_OK && run.temp != NULL)
        status = xp_folder_discard(run.temp, status);
    free(run.values);
    free(run.narrow);
    xp_arena_destroy(run.arena);
    return status;
}
