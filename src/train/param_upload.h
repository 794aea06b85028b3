/** Inside src/train: host values into a model's flat parameters. */
#ifndef XP_TRAIN_PARAM_UPLOAD_H
#define XP_TRAIN_PARAM_UPLOAD_H

#include "expar/device.h"

/**
 * fp32 host values to elements [at, at + n) of `params`, converted to its type; they have arrived on return.
 * @param values  [n]; overwritten
 * @return XP_OK; XP_EFORMAT: a value that the type cannot hold
 */
XP_NODISCARD xp_status xp_param_upload(xp_stream *stream, void *params, xp_dtype dtype, int64_t at,
                                       float *values, int64_t n);

#endif
