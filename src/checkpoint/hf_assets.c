#include "checkpoint/hf_assets.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"

#define MAX_ASSET_BYTES ((size_t)1 << 30)
#define GENERATION_FILE "generation_config.json"

/* What a Hugging Face tokenizer may consist of; the first must be there. */
static const char *const tokenizer_files[] = {"tokenizer.json",
                                              "tokenizer_config.json",
                                              "special_tokens_map.json",
                                              "added_tokens.json",
                                              "vocab.json",
                                              "merges.txt",
                                              "chat_template.jinja",
                                              "chat_template.json",
                                              "tokenizer.model"};
#define N_TOKENIZER_FILES (sizeof tokenizer_files / sizeof tokenizer_files[0])

bool xp_hf_is_asset(const char *name) {
    for (size_t i = 0; i < N_TOKENIZER_FILES; i++)
        if (strcmp(name, tokenizer_files[i]) == 0)
            return true;
    return strcmp(name, GENERATION_FILE) == 0;
}

static bool lies_below(const char *path, const char *folder) {
    size_t n = strlen(folder);
    return strncmp(path, folder, n) == 0 && path[n] == '/';
}

/* The blobs that the links of a Hugging Face cache point to: of ".../models--a--b/snapshots/REVISION" they are in
 * ".../models--a--b/blobs". */
static bool lies_in_blobs(const char *path, const char *folder) {
    static const char snapshots[] = "/snapshots/";
    const char *at = strstr(folder, snapshots);
    char blobs[PATH_MAX + 8];
    if (at == NULL || strchr(at + sizeof snapshots - 1, '/') != NULL)
        return false;
    snprintf(blobs, sizeof blobs, "%.*s/blobs", (int)(at - folder), folder);
    return lies_below(path, blobs);
}

/* The real path of folder/name; *inside = false when a link leads out of the folder. XP_ENOENT: it is not there. */
static xp_status find_inside(const char *folder, const char *name, char real[PATH_MAX],
                             bool *inside) {
    char *path = xp_path_join(folder, name), real_folder[PATH_MAX];
    if (path == NULL)
        return xp_error(XP_ENOMEM, "no memory to copy %s", name);
    bool exists = false;
    xp_status status = xp_path_exists(path, &exists);
    if (status == XP_OK && !exists)
        status = xp_error(XP_ENOENT, "%s is not there", path);
    if (status == XP_OK && (realpath(folder, real_folder) == NULL || realpath(path, real) == NULL))
        status = xp_error(XP_EIO, "cannot read %s", path);
    free(path);
    XP_TRY(status);
    *inside = lies_below(real, real_folder) || lies_in_blobs(real, real_folder);
    return XP_OK;
}

static void warn_about_link(const xp_hf_export_args *args, const char *folder, const char *name,
                            const char *real) {
    char text[2 * PATH_MAX + 200];
    if (args->warn == NULL)
        return;
    snprintf(text, sizeof text,
             "%s/%s is a symbolic link out of that folder, to %s: not copied into the export; copy "
             "it by hand if "
             "it belongs there",
             folder, name, real);
    args->warn(args->warn_context, text);
}

/* *copied stays false when the file is absent, or a link out of the folder. */
static xp_status copy_one(const xp_hf_export_args *args, const char *folder, const char *name,
                          const char *target, bool *copied) {
    char real[PATH_MAX], *data = NULL;
    size_t n_bytes = 0;
    bool inside = false;
    *copied = false;
    xp_status status = find_inside(folder, name, real, &inside);
    if (status == XP_ENOENT)
        return XP_OK;
    XP_TRY(status);
    if (!inside) {
        warn_about_link(args, folder, name, real);
        return XP_OK;
    }
    XP_TRY(xp_file_read(real, MAX_ASSET_BYTES, &data, &n_bytes));
    char *path = xp_path_join(target, name);
    status = path == NULL ? xp_error(XP_ENOMEM, "no memory to copy %s", name)
                          : xp_file_write_atomic(path, data, n_bytes);
    free(path);
    free(data);
    *copied = status == XP_OK;
    return status;
}

static xp_status copy_tokenizer(const xp_hf_export_args *args, const char *target) {
    const char *folder = args->tokenizer_folder;
    char real[PATH_MAX];
    bool copied = false, inside = false;
    XP_TRY(find_inside(folder, tokenizer_files[0], real, &inside));
    for (size_t i = 0; i < N_TOKENIZER_FILES; i++)
        XP_TRY(copy_one(args, folder, tokenizer_files[i], target, &copied));
    return XP_OK;
}

static xp_status copy_generation(const xp_hf_export_args *args, const char *target) {
    bool copied = false;
    if (args->source_folder != NULL)
        XP_TRY(copy_one(args, args->source_folder, GENERATION_FILE, target, &copied));
    if (copied || args->generation_json == NULL)
        return XP_OK;
    char *path = xp_path_join(target, GENERATION_FILE);
    if (path == NULL)
        return xp_error(XP_ENOMEM, "no memory for " GENERATION_FILE);
    xp_status status =
        xp_file_write_atomic(path, args->generation_json, strlen(args->generation_json));
    free(path);
    return status;
}

xp_status xp_hf_copy_assets(const xp_hf_export_args *args, const char *target) {
    if (args->tokenizer_folder != NULL)
        XP_TRY(copy_tokenizer(args, target));
    return copy_generation(args, target);
}
