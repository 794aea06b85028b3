#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>
#include "checkpoint/manifest.h"
#include "checkpoint/publish.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/state.h"
#include "core/file.h"

#define MAX_MANIFEST_BYTES ((size_t)1 << 31)

struct xp_ckpt {
    char *path;
    xp_manifest *manifest;
    xp_st_file **shards; /* [n_files] opened at first use */
    bool *checked;       /* [n_pieces] whose bytes were compared with their checksum */
};

static xp_status read_manifest(xp_ckpt *ckpt) {
    char *path = xp_path_join(ckpt->path, XP_CKPT_MANIFEST);
    if (path == NULL)
        return xp_error(XP_ENOMEM, "no memory to open %s", ckpt->path);
    char *text;
    size_t n_bytes;
    xp_status status = xp_file_read(path, MAX_MANIFEST_BYTES, &text, &n_bytes);
    if (status == XP_OK) {
        status = xp_manifest_parse(path, text, n_bytes, &ckpt->manifest);
        free(text);
    }
    free(path);
    return status;
}

/** Missing and cut files show here, before anything of the checkpoint is used. */
static xp_status check_sizes(const xp_ckpt *ckpt) {
    for (int64_t i = 0; i < ckpt->manifest->n_files; i++) {
        const xp_manifest_file *file = &ckpt->manifest->files[i];
        char *path = xp_path_join(ckpt->path, file->name);
        if (path == NULL)
            return xp_error(XP_ENOMEM, "no memory to open %s", ckpt->path);
        struct stat info;
        int failed = stat(path, &info) != 0 ? errno : 0;
        free(path);
        char text[128];
        if (failed != 0)
            return xp_error(XP_EFORMAT, "%s: %s: %s; the checkpoint is not whole", ckpt->path,
                            file->name, strerror_r(failed, text, sizeof text));
        if (info.st_size != file->n_bytes)
            return xp_error(
                XP_EFORMAT, "%s: %s has %lld bytes instead of %lld; the checkpoint is not whole",
                ckpt->path, file->name, (long long)info.st_size, (long long)file->n_bytes);
    }
    return XP_OK;
}

static xp_status open_path(const char *path, xp_ckpt **ckpt) {
    xp_ckpt *made = calloc(1, sizeof *made);
    if (made == NULL)
        return xp_error(XP_ENOMEM, "no memory to open %s", path);
    xp_status status;
    made->path = strdup(path);
    if (made->path == NULL) {
        status = xp_error(XP_ENOMEM, "no memory to open %s", path);
        goto fail;
    }
    XP_TRY_GOTO(status, read_manifest(made), fail);
    XP_TRY_GOTO(status, check_sizes(made), fail);
    made->shards = calloc((size_t)made->manifest->n_files + 1, sizeof *made->shards);
    made->checked = calloc((size_t)made->manifest->n_pieces + 1, sizeof *made->checked);
    if (made->shards == NULL || made->checked == NULL) {
        status = xp_error(XP_ENOMEM, "no memory to open %s", path);
        goto fail;
    }
    *ckpt = made;
    return XP_OK;
fail:
    xp_ckpt_close(made);
    return status;
}

xp_status xp_ckpt_open_path(const char *path, xp_ckpt **ckpt) {
    bool is_folder = false;
    XP_TRY(xp_path_is_folder(path, &is_folder));
    if (!is_folder)
        return xp_error(XP_ENOENT, "%s: no such checkpoint folder", path);
    xp_status status = open_path(path, ckpt);
    if (status == XP_ENOENT)
        return xp_error(XP_EFORMAT, "%s holds no " XP_CKPT_MANIFEST ": not an expar checkpoint",
                        path);
    return status;
}

/** Open FOLDER/step-N; also where a replacement of it was interrupted. */
static xp_status open_step(const char *folder, int64_t step, xp_ckpt **ckpt) {
    xp_step_paths paths;
    XP_TRY(xp_step_paths_create(folder, step, &paths));
    bool final = false, aside = false;
    xp_status status = xp_path_is_folder(paths.final, &final);
    if (status == XP_OK && !final)
        status = xp_path_is_folder(paths.aside, &aside);
    if (status == XP_OK)
        status = xp_ckpt_open_path(aside ? paths.aside : paths.final, ckpt);
    xp_step_paths_free(&paths);
    if (status == XP_OK && (*ckpt)->manifest->step != step) {
        status = xp_error(XP_EFORMAT, "%s says it is of step %lld", (*ckpt)->path,
                          (long long)(*ckpt)->manifest->step);
        xp_ckpt_close(*ckpt);
        *ckpt = NULL;
    }
    return status;
}

/** The newest checkpoint, with `before` >= 0 the newest before that step; -1: there is none. */
static xp_status newest_step(const char *folder, int64_t before, int64_t *step) {
    int64_t *steps, n;
    XP_TRY(xp_steps_list(folder, &steps, &n));
    *step = -1;
    for (int64_t i = 0; i < n; i++) {
        if (before < 0 || steps[i] < before)
            *step = steps[i];
    }
    free(steps);
    return XP_OK;
}

xp_status xp_ckpt_suggest_older(const char *folder, int64_t step, xp_status status) {
    char damage[1024];
    int64_t older;
    if (status != XP_EFORMAT)
        return status;
    snprintf(damage, sizeof damage, "%s", xp_last_error());
    if (newest_step(folder, step, &older) != XP_OK || older < 0)
        return xp_error(status, "%s", damage);
    return xp_error(status, "%s; step %lld is there too: --checkpoint.load_step %lld", damage,
                    (long long)older, (long long)older);
}

xp_status xp_ckpt_none_in(const char *folder) {
    char run[512];
    if (xp_folder_find_below(folder, "checkpoint", run, sizeof run))
        return xp_error(XP_ENOENT, "no complete checkpoint in %s; did you mean %s?", folder, run);
    return xp_error(XP_ENOENT, "no complete checkpoint in %s", folder);
}

xp_status xp_ckpt_open(const char *folder, int64_t step, xp_ckpt **ckpt) {
    int64_t wanted = step;
    if (step < 0)
        XP_TRY(newest_step(folder, -1, &wanted));
    if (wanted < 0)
        return xp_ckpt_none_in(folder);
    return xp_ckpt_suggest_older(folder, wanted, open_step(folder, wanted, ckpt));
}

void xp_ckpt_close(xp_ckpt *ckpt) {
    if (ckpt == NULL)
        return;
    for (int64_t i = 0; ckpt->shards != NULL && i < ckpt->manifest->n_files; i++)
        xp_st_close(ckpt->shards[i]);
    free(ckpt->shards);
    free(ckpt->checked);
    xp_manifest_destroy(ckpt->manifest);
    free(ckpt->path);
    free(ckpt);
}

int64_t xp_ckpt_step(const xp_ckpt *ckpt) {
    return ckpt->manifest->step;
}

const xp_manifest *xp_ckpt_manifest(const xp_ckpt *ckpt) {
    return ckpt->manifest;
}

const char *xp_ckpt_path(const xp_ckpt *ckpt) {
    return ckpt->path;
}

const char *xp_ckpt_value_get(const xp_ckpt *ckpt, const char *key) {
    for (int i = 0; i < ckpt->manifest->n_values; i++) {
        if (strcmp(ckpt->manifest->values[i].key, key) == 0)
            return ckpt->manifest->values[i].value;
    }
    return NULL;
}

bool xp_ckpt_has(const xp_ckpt *ckpt, const char *name, int *n_dims, int64_t shape[3]) {
    const xp_manifest_tensor *tensor = xp_manifest_find(ckpt->manifest, name);
    if (tensor == NULL)
        return false;
    *n_dims = tensor->n_dims;
    memcpy(shape, tensor->shape, sizeof tensor->shape);
    return true;
}

int64_t xp_ckpt_n_tensors(const xp_ckpt *ckpt) {
    return ckpt->manifest->n_tensors;
}

const char *xp_ckpt_tensor_name(const xp_ckpt *ckpt, int64_t i) {
    return ckpt->manifest->tensors[i].name;
}

static xp_status open_shard(const xp_ckpt *ckpt, int64_t i, const xp_st_file **shard) {
    if (ckpt->shards[i] == NULL) {
        char *path = xp_path_join(ckpt->path, ckpt->manifest->files[i].name);
        if (path == NULL)
            return xp_error(XP_ENOMEM, "no memory to open %s", ckpt->path);
        xp_status status = xp_st_open(path, &ckpt->shards[i]);
        free(path);
        XP_TRY(status);
    }
    *shard = ckpt->shards[i];
    return XP_OK;
}

/** The bytes of a stored piece, compared with their checksum the first time. */
static xp_status map_piece(const xp_ckpt *ckpt, const xp_manifest_tensor *tensor, int64_t index,
                           const xp_st_tensor **mapped) {
    const xp_manifest_piece *piece = &ckpt->manifest->pieces[index];
    const char *file = ckpt->manifest->files[piece->file].name;
    const xp_st_file *shard = NULL;
    XP_TRY(open_shard(ckpt, piece->file, &shard));
    const xp_st_tensor *stored = xp_st_find(shard, piece->tensor);
    if (stored == NULL || stored->dtype != tensor->dtype || stored->n_elements != piece->n)
        return xp_error(XP_EFORMAT, "%s/%s: tensor '%.200s' is not what the manifest says",
                        ckpt->path, file, piece->tensor);
    if (!ckpt->checked[index] && XXH64(stored->data, (size_t)stored->n_bytes, 0) != piece->xxh64)
        return xp_error(XP_EFORMAT,
                        "%s/%s: the bytes of '%.200s' do not fit their checksum: damaged",
                        ckpt->path, file, piece->tensor);
    ckpt->checked[index] = true;
    *mapped = stored;
    return XP_OK;
}

static xp_status find_tensor(const xp_ckpt *ckpt, const xp_ckpt_piece *piece,
                             const xp_manifest_tensor **found) {
    const xp_manifest_tensor *tensor = xp_manifest_find(ckpt->manifest, piece->name);
    xp_shape_text wanted = xp_shape_format(piece->dtype, piece->n_dims, piece->shape);
    if (tensor == NULL)
        return xp_error(XP_EFORMAT, "%s has no tensor '%.200s' (%s)", ckpt->path, piece->name,
                        wanted.text);
    if (tensor->dtype != piece->dtype || tensor->n_dims != piece->n_dims ||
        memcmp(tensor->shape, piece->shape, (size_t)piece->n_dims * sizeof *piece->shape) != 0)
        return xp_error(
            XP_EFORMAT, "%s: '%.200s' is %s there, this run needs %s", ckpt->path, piece->name,
            xp_shape_format(tensor->dtype, tensor->n_dims, tensor->shape).text, wanted.text);
    if (piece->first < 0 || piece->n < 0 || piece->first > tensor->n_elements ||
        piece->n > tensor->n_elements - piece->first)
        return xp_error(XP_EINVAL, "piece [%lld, %lld) of '%.200s' is outside the tensor",
                        (long long)piece->first, (long long)(piece->first + piece->n), piece->name);
    *found = tensor;
    return XP_OK;
}

/** The stored piece that holds element `element`. */
static int64_t locate(const xp_manifest *manifest, const xp_manifest_tensor *tensor,
                      int64_t element) {
    int64_t low = tensor->first_piece, high = low + tensor->n_pieces - 1;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        if (manifest->pieces[middle].first <= element)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static xp_status read_piece(const xp_ckpt *ckpt, const xp_ckpt_piece *piece) {
    const xp_manifest_tensor *tensor = NULL;
    XP_TRY(find_tensor(ckpt, piece, &tensor));
    size_t element_bytes = xp_dtype_bytes(tensor->dtype);
    char *out = piece->data;
    int64_t cursor = piece->first, end = piece->first + piece->n;
    while (cursor < end) {
        int64_t index = locate(ckpt->manifest, tensor, cursor);
        const xp_manifest_piece *stored = &ckpt->manifest->pieces[index];
        const xp_st_tensor *mapped = NULL;
        XP_TRY(map_piece(ckpt, tensor, index, &mapped));
        int64_t stop = stored->first + stored->n < end ? stored->first + stored->n : end;
        size_t n_bytes = (size_t)(stop - cursor) * element_bytes;
        memcpy(out, (const char *)mapped->data + (size_t)(cursor - stored->first) * element_bytes,
               n_bytes);
        xp_st_release(mapped);
        out += n_bytes;
        cursor = stop;
    }
    return XP_OK;
}

xp_status xp_ckpt_read(const xp_ckpt *ckpt, const xp_ckpt_piece *pieces, int64_t n_pieces) {
    for (int64_t i = 0; i < n_pieces; i++)
        XP_TRY(read_piece(ckpt, &pieces[i]));
    return XP_OK;
}

xp_status xp_ckpt_verify(const xp_ckpt *ckpt) {
    for (int64_t i = 0; i < ckpt->manifest->n_files; i++) {
        const xp_manifest_file *file = &ckpt->manifest->files[i];
        const xp_st_file *shard = NULL;
        XP_TRY(open_shard(ckpt, i, &shard));
        uint64_t hash = 0;
        XP_TRY(xp_st_xxh64(shard, &hash));
        if (xp_st_n_bytes(shard) != file->n_bytes || hash != file->xxh64)
            return xp_error(XP_EFORMAT, "%s/%s does not fit its checksum: damaged", ckpt->path,
                            file->name);
    }
    return XP_OK;
}
