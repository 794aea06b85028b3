/** safetensors files, read as strictly as their specification and written deterministically. */
#ifndef XP_CHECKPOINT_SAFETENSORS_H
#define XP_CHECKPOINT_SAFETENSORS_H

#include <stdint.h>
#include "expar/tensor.h"

#define XP_ST_MAX_DIMS 8

typedef struct xp_st_tensor {
    const char *name;
    xp_dtype dtype;        /* types expar does not compute with are listed as XP_N_DTYPES */
    char dtype_name[8];    /* as in the file: "BF16" */
    int n_dims;
    int64_t shape[XP_ST_MAX_DIMS];
    int64_t n_elements, n_bytes;
    const void *data;      /* in the file's map */
} xp_st_tensor;

typedef struct xp_st_file xp_st_file;

/** Validates everything before returning (header size, UTF-8, duplicate keys, overlaps, holes, ranges, dtypes, shape products). */
XP_NODISCARD xp_status xp_st_open(const char *path, xp_st_file **file);
void xp_st_close(xp_st_file *file);
int64_t xp_st_n_tensors(const xp_st_file *file);
const xp_st_tensor *xp_st_tensor_at(const xp_st_file *file, int64_t i); /* in file order */
const xp_st_tensor *xp_st_find(const xp_st_file *file, const char *name); /* NULL when absent */
/** Value of a __metadata__ key, NULL when absent. */
const char *xp_st_metadata(const xp_st_file *file, const char *key);
/** Convert n elements from `first` on to fp32 (F32, F16, BF16, F64 sources). */
XP_NODISCARD xp_status xp_st_read_f32(const xp_st_tensor *tensor, int64_t first, int64_t n, float *out);

/**
 * Writer: declare all tensors, then give their bytes in the same order in any number of pieces. The file appears under its
 * name when finish succeeds; before that it is "path.tmp", removed on destroy.
 */
typedef struct xp_st_writer xp_st_writer;
XP_NODISCARD xp_status xp_st_writer_create(const char *path, xp_st_writer **writer);
XP_NODISCARD xp_status xp_st_writer_add_metadata(xp_st_writer *writer, const char *key, const char *value);
XP_NODISCARD xp_status xp_st_writer_declare(xp_st_writer *writer, const char *name, xp_dtype dtype, int n_dims,
                                            const int64_t *shape);
XP_NODISCARD xp_status xp_st_writer_data(xp_st_writer *writer, const void *data, size_t n_bytes);
XP_NODISCARD xp_status xp_st_writer_finish(xp_st_writer *writer);
void xp_st_writer_destroy(xp_st_writer *writer);

#endif
