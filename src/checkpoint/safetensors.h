/** safetensors files, read as strictly as their specification and written deterministically. */
#ifndef XP_CHECKPOINT_SAFETENSORS_H
#define XP_CHECKPOINT_SAFETENSORS_H

#include <stdint.h>
#include "expar/tensor.h"

#define XP_ST_MAX_DIMS   8
#define XP_ST_MAX_HEADER 100000000 /* bytes; the specification's limit */

typedef struct xp_st_tensor {
    const char *name;
    xp_dtype dtype;     /* types expar does not compute with are listed as XP_N_DTYPES */
    char dtype_name[8]; /* as in the file: "BF16" */
    int n_dims;
    int64_t shape[XP_ST_MAX_DIMS];
    int64_t n_elements, n_bytes;
    const void *data; /* in the file's map; any alignment */
} xp_st_tensor;

typedef struct xp_st_file xp_st_file;

/**
 * Map and validate everything before returning: header size, UTF-8, duplicate keys, names, types,
 * shape products, ranges, overlaps, holes, and that the data fill the file to its last byte.
 * @return XP_OK; XP_ENOENT; XP_EIO; XP_ENOMEM; XP_EFORMAT naming the file, the tensor and what is
 * wrong with it
 */
XP_NODISCARD xp_status xp_st_open(const char *path, xp_st_file **file);
void xp_st_close(xp_st_file *file);
int64_t xp_st_n_tensors(const xp_st_file *file);
const xp_st_tensor *xp_st_tensor_at(const xp_st_file *file, int64_t i);   /* in file order */
const xp_st_tensor *xp_st_find(const xp_st_file *file, const char *name); /* NULL when absent */
/** Value of a __metadata__ key, NULL when absent. */
const char *xp_st_metadata(const xp_st_file *file, const char *key);
/** Bytes of the whole file. */
int64_t xp_st_n_bytes(const xp_st_file *file);
/** XXH64 (seed 0) of the whole file: reads all of it. @return XP_OK; XP_ENOMEM */
XP_NODISCARD xp_status xp_st_xxh64(const xp_st_file *file, uint64_t *hash);
/**
 * Drop a tensor's pages from this process's memory; the next use reads them again. Loading calls it
 * tensor by tensor, so that a mapped file never counts as a second copy of the model. Only for
 * tensors of an open file.
 */
void xp_st_release(const xp_st_tensor *tensor);
/** Convert n elements from `first` on to fp32 (F32, F16, BF16, F64 sources). */
XP_NODISCARD xp_status xp_st_read_f32(const xp_st_tensor *tensor, int64_t first, int64_t n,
                                      float *out);

/**
 * Writer: metadata and all tensors first, then the tensors' bytes in the same order in any number
 * of pieces. The same calls give the same bytes. The file appears under its name when finish
 * succeeds; before that it is "path.tmp", removed on destroy.
 */
typedef struct xp_st_writer xp_st_writer;
XP_NODISCARD xp_status xp_st_writer_create(const char *path, xp_st_writer **writer);
XP_NODISCARD xp_status xp_st_writer_add_metadata(xp_st_writer *writer, const char *key,
                                                 const char *value);
XP_NODISCARD xp_status xp_st_writer_declare(xp_st_writer *writer, const char *name, xp_dtype dtype,
                                            int n_dims, const int64_t *shape);
/** The first call writes the header and reserves the file's whole size. @return XP_EIO when the
 * disk is full */
XP_NODISCARD xp_status xp_st_writer_data(xp_st_writer *writer, const void *data, size_t n_bytes);
/** XP_EINVAL when fewer bytes came than were declared. */
XP_NODISCARD xp_status xp_st_writer_finish(xp_st_writer *writer);
/** Size and 64-bit xxHash of the finished file. */
void xp_st_writer_result(const xp_st_writer *writer, int64_t *n_bytes, uint64_t *xxh64);
void xp_st_writer_destroy(xp_st_writer *writer);

#endif
