/**
 * manifest.json of a checkpoint: what the tensors are, which piece of them lies in which file, and
 * the small values.
 *
 * The text ends in a checksum of everything before it, so that a changed or cut manifest is told
 * from a whole one.
 */
#ifndef XP_CHECKPOINT_MANIFEST_H
#define XP_CHECKPOINT_MANIFEST_H

#include "checkpoint/state.h"
#include "core/arena.h"
#include "core/text.h"

#define XP_MANIFEST_VERSION 1
#define XP_MANIFEST_DIMS    3

typedef struct xp_manifest_file {
    const char *name; /* a plain file name */
    int64_t n_bytes;
    uint64_t xxh64;
} xp_manifest_file;

/** Elements [first, first + n) of a tensor, stored in `file` under the name `tensor`. */
typedef struct xp_manifest_piece {
    int64_t file; /* index into files */
    const char *tensor;
    int64_t first, n;
    uint64_t xxh64; /* of the piece's bytes */
} xp_manifest_piece;

typedef struct xp_manifest_tensor {
    const char *name;
    xp_dtype dtype;
    int n_dims;
    int64_t shape[XP_MANIFEST_DIMS];
    int64_t n_elements;
    int64_t first_piece, n_pieces; /* in pieces: ascending, covering every element once */
} xp_manifest_tensor;

typedef struct xp_manifest {
    xp_arena *arena; /* owns everything below */
    int64_t step;
    const char *expar; /* the version that wrote it */
    xp_manifest_file *files;
    xp_manifest_tensor *tensors; /* sorted by name */
    xp_manifest_piece *pieces;
    xp_ckpt_value *values;
    int64_t n_files, n_tensors, n_pieces;
    int n_values;
} xp_manifest;

XP_NODISCARD xp_status xp_manifest_create(xp_manifest **manifest);
void xp_manifest_destroy(xp_manifest *manifest);

/** One rank's share of a save: its file and pieces, packed for the way to rank 0. */
XP_NODISCARD xp_status xp_manifest_pack(const xp_manifest_file *file, const xp_ckpt_piece *pieces,
                                        const uint64_t *piece_hashes, int64_t n_pieces,
                                        xp_text *packed);
/**
 * Make files, tensors and pieces of all ranks' shares: rank r's lies at packed[offsets[r] ..
 * offsets[r + 1]).
 * @return XP_EINVAL naming the tensor when ranks disagree about it, or an element is given twice or
 * never
 */
XP_NODISCARD xp_status xp_manifest_merge(const char *packed, const int64_t *offsets, int n_ranks,
                                         xp_manifest *manifest);

XP_NODISCARD xp_status xp_manifest_to_json(const xp_manifest *manifest, xp_text *text);
/** Parse and check everything. @param path only for messages */
XP_NODISCARD xp_status xp_manifest_parse(const char *path, const char *text, size_t n_bytes,
                                         xp_manifest **manifest);
/** NULL when absent. */
const xp_manifest_tensor *xp_manifest_find(const xp_manifest *manifest, const char *name);

/** "rank-00003.safetensors" */
char *xp_manifest_shard_name(xp_arena *arena, int rank);
/** What a piece is called inside its shard: the tensor's name when it is whole, "name[first:end]"
 * otherwise. */
char *xp_manifest_piece_name(xp_arena *arena, const char *name, int64_t first, int64_t n,
                             int64_t n_elements);

/** "[2, 3]" for messages. */
typedef struct xp_shape_text {
    char text[96];
} xp_shape_text;
xp_shape_text xp_shape_format(xp_dtype dtype, int n_dims, const int64_t *shape);

#endif
