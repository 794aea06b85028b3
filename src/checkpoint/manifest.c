#include "checkpoint/manifest.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "checkpoint/st_dtype.h"

xp_status xp_manifest_create(xp_manifest **manifest) {
    xp_arena *arena;
    XP_TRY(xp_arena_create(&arena));
    xp_manifest *made = xp_arena_alloc(arena, sizeof *made);
    if (made == NULL) {
        xp_arena_destroy(arena);
        return xp_error(XP_ENOMEM, "no memory for a checkpoint's manifest");
    }
    made->arena = arena;
    *manifest = made;
    return XP_OK;
}

void xp_manifest_destroy(xp_manifest *manifest) {
    if (manifest != NULL)
        xp_arena_destroy(manifest->arena);
}

static int compare_with_name(const void *key, const void *element) {
    return strcmp(key, ((const xp_manifest_tensor *)element)->name);
}

const xp_manifest_tensor *xp_manifest_find(const xp_manifest *manifest, const char *name) {
    if (manifest->n_tensors == 0)
        return NULL;
    return bsearch(name, manifest->tensors, (size_t)manifest->n_tensors, sizeof *manifest->tensors,
                   compare_with_name);
}

char *xp_manifest_shard_name(xp_arena *arena, int rank) {
    return xp_arena_printf(arena, "rank-%05d.safetensors", rank);
}

char *xp_manifest_piece_name(xp_arena *arena, const char *name, int64_t first, int64_t n,
                             int64_t n_elements) {
    if (first == 0 && n == n_elements)
        return xp_arena_strdup(arena, name);
    return xp_arena_printf(arena, "%s[%lld:%lld]", name, (long long)first, (long long)(first + n));
}

xp_shape_text xp_shape_format(xp_dtype dtype, int n_dims, const int64_t *shape) {
    xp_shape_text result;
    int used = snprintf(result.text, sizeof result.text, "%s [", xp_dtype_name(dtype));
    for (int i = 0; i < n_dims && used < (int)sizeof result.text - 24; i++)
        used += snprintf(result.text + used, sizeof result.text - (size_t)used, "%s%lld",
                         i > 0 ? ", " : "", (long long)shape[i]);
    snprintf(result.text + used, sizeof result.text - (size_t)used, "]");
    return result;
}

/* What goes to rank 0: all ranks run the same program, so plain structs can travel. */
typedef struct packed_file {
    int64_t n_bytes, n_pieces;
    uint64_t xxh64;
} packed_file;

typedef struct packed_piece {
    int64_t first, n;
    int64_t shape[XP_MANIFEST_DIMS];
    uint64_t xxh64;
    int64_t dtype, n_dims, name_bytes; /* the name follows */
} packed_piece;

xp_status xp_manifest_pack(const xp_manifest_file *file, const xp_ckpt_piece *pieces,
                           const uint64_t *piece_hashes, int64_t n_pieces, xp_text *packed) {
    packed_file head = {.n_bytes = file->n_bytes, .n_pieces = n_pieces, .xxh64 = file->xxh64};
    xp_text_add(packed, (const char *)&head, sizeof head);
    for (int64_t i = 0; i < n_pieces; i++) {
        packed_piece piece = {.first = pieces[i].first,
                              .n = pieces[i].n,
                              .xxh64 = piece_hashes[i],
                              .dtype = pieces[i].dtype,
                              .n_dims = pieces[i].n_dims,
                              .name_bytes = (int64_t)strlen(pieces[i].name)};
        for (int d = 0; d < pieces[i].n_dims; d++)
            piece.shape[d] = pieces[i].shape[d];
        xp_text_add(packed, (const char *)&piece, sizeof piece);
        xp_text_add(packed, pieces[i].name, (size_t)piece.name_bytes);
    }
    return packed->failed ? xp_error(XP_ENOMEM, "no memory for a checkpoint's manifest") : XP_OK;
}

/** A piece of any rank on its way into the manifest. */
typedef struct raw_piece {
    packed_piece info;
    const char *name;
    int64_t file;
} raw_piece;

static int compare_raw(const void *a, const void *b) {
    const raw_piece *left = a, *right = b;
    int names = strcmp(left->name, right->name);
    if (names != 0)
        return names;
    if (left->info.first != right->info.first)
        return left->info.first < right->info.first ? -1 : 1;
    return (left->info.n > right->info.n) - (left->info.n < right->info.n);
}

static xp_status unpack_rank(xp_manifest *manifest, const char *packed, int rank, raw_piece *raw,
                             int64_t *n_raw) {
    packed_file head;
    memcpy(&head, packed, sizeof head);
    packed += sizeof head;
    xp_manifest_file *file = &manifest->files[rank];
    file->n_bytes = head.n_bytes;
    file->xxh64 = head.xxh64;
    file->name = xp_manifest_shard_name(manifest->arena, rank);
    if (file->name == NULL)
        return xp_error(XP_ENOMEM, "no memory for a checkpoint's manifest");
    for (int64_t i = 0; i < head.n_pieces; i++) {
        raw_piece *piece = &raw[(*n_raw)++];
        memcpy(&piece->info, packed, sizeof piece->info);
        packed += sizeof piece->info;
        piece->file = rank;
        piece->name = xp_arena_strndup(manifest->arena, packed, (size_t)piece->info.name_bytes);
        if (piece->name == NULL)
            return xp_error(XP_ENOMEM, "no memory for a checkpoint's manifest");
        packed += piece->info.name_bytes;
    }
    return XP_OK;
}

/** One tensor from its pieces raw[0 .. n), sorted. */
static xp_status join_tensor(xp_manifest *manifest, const raw_piece *raw, int64_t n) {
    const packed_piece *info = &raw[0].info;
    xp_manifest_tensor *tensor = &manifest->tensors[manifest->n_tensors++];
    *tensor = (xp_manifest_tensor){.name = raw[0].name,
                                   .dtype = (xp_dtype)info->dtype,
                                   .n_dims = (int)info->n_dims,
                                   .n_elements = 1,
                                   .first_piece = manifest->n_pieces};
    memcpy(tensor->shape, info->shape, sizeof tensor->shape);
    for (int d = 0; d < tensor->n_dims; d++)
        tensor->n_elements *= tensor->shape[d];
    int64_t cursor = 0;
    for (int64_t i = 0; i < n; i++) {
        const packed_piece *piece = &raw[i].info;
        if (piece->dtype != info->dtype || piece->n_dims != info->n_dims ||
            memcmp(piece->shape, info->shape, sizeof info->shape) != 0)
            return xp_error(XP_EINVAL, "ranks disagree about the type or shape of '%.200s'",
                            tensor->name);
        if (piece->n == 0)
            continue;
        if (piece->first != cursor)
            return xp_error(XP_EINVAL, "element %lld of '%.200s' is given by %s",
                            (long long)(piece->first < cursor ? piece->first : cursor),
                            tensor->name, piece->first < cursor ? "two pieces" : "no rank");
        cursor += piece->n;
        xp_manifest_piece *out = &manifest->pieces[manifest->n_pieces++];
        *out = (xp_manifest_piece){
            .file = raw[i].file, .first = piece->first, .n = piece->n, .xxh64 = piece->xxh64};
        out->tensor = xp_manifest_piece_name(manifest->arena, tensor->name, piece->first, piece->n,
                                             tensor->n_elements);
        if (out->tensor == NULL)
            return xp_error(XP_ENOMEM, "no memory for a checkpoint's manifest");
    }
    if (cursor != tensor->n_elements)
        return xp_error(XP_EINVAL, "element %lld of '%.200s' is given by no rank",
                        (long long)cursor, tensor->name);
    tensor->n_pieces = manifest->n_pieces - tensor->first_piece;
    return XP_OK;
}

xp_status xp_manifest_merge(const char *packed, const int64_t *offsets, int n_ranks,
                            xp_manifest *manifest) {
    int64_t n_all = 0, n_raw = 0;
    for (int rank = 0; rank < n_ranks; rank++) {
        packed_file head;
        memcpy(&head, packed + offsets[rank], sizeof head);
        n_all += head.n_pieces;
    }
    size_t n_slots = (size_t)n_all + 1;
    raw_piece *raw = calloc(n_slots, sizeof *raw);
    manifest->n_files = n_ranks;
    manifest->files = xp_arena_alloc(manifest->arena, (size_t)n_ranks * sizeof *manifest->files);
    manifest->tensors = xp_arena_alloc(manifest->arena, n_slots * sizeof *manifest->tensors);
    manifest->pieces = xp_arena_alloc(manifest->arena, n_slots * sizeof *manifest->pieces);
    xp_status status = XP_OK;
    if (raw == NULL || manifest->files == NULL || manifest->tensors == NULL ||
        manifest->pieces == NULL)
        status = xp_error(XP_ENOMEM, "no memory for the manifest of %lld pieces", (long long)n_all);
    for (int rank = 0; rank < n_ranks && status == XP_OK; rank++)
        status = unpack_rank(manifest, packed + offsets[rank], rank, raw, &n_raw);
    if (status == XP_OK)
        qsort(raw, (size_t)n_raw, sizeof *raw, compare_raw);
    for (int64_t i = 0, n; i < n_raw && status == XP_OK; i += n) {
        n = 1;
        while (i + n < n_raw && strcmp(raw[i].name, raw[i + n].name) == 0)
            n++;
        status = join_tensor(manifest, raw + i, n);
    }
    free(raw);
    return status;
}
