/** The element types of safetensors files and how they meet expar's own; which names a file may
 * use. */
#ifndef XP_CHECKPOINT_ST_DTYPE_H
#define XP_CHECKPOINT_ST_DTYPE_H

#include <stdbool.h>
#include <stdint.h>
#include "expar/tensor.h"

typedef struct xp_st_dtype {
    const char *name; /* at most 7 characters */
    int bits;         /* of one element */
    xp_dtype dtype;   /* XP_N_DTYPES when expar does not compute with it */
} xp_st_dtype;

/** NULL when no such type exists. */
const xp_st_dtype *xp_st_dtype_find(const char *name);
/** The file type of one of expar's types; NULL for a value that is no type. */
const xp_st_dtype *xp_st_dtype_of(xp_dtype dtype);

/**
 * Elements and bytes of a shape. False when a dimension is negative, a product overflows, or the
 * bits of a sub-byte type do not fill whole bytes.
 */
bool xp_st_shape_sizes(const xp_st_dtype *type, int n_dims, const int64_t *shape,
                       int64_t *n_elements, int64_t *n_bytes);

/** True when the text holds no control character (C0, DEL, C1). It must be valid UTF-8. */
bool xp_st_name_is_clean(const char *name);

#endif
