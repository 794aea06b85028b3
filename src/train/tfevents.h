/**
 * TensorBoard event files: scalars in TFRecord frames (length, masked CRC-32C, bytes, masked
 * CRC-32C).
 */
#ifndef XP_TRAIN_TFEVENTS_H
#define XP_TRAIN_TFEVENTS_H

#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

typedef struct xp_tfevents xp_tfevents;

/** One scalar of a step; TensorBoard stores it in fp32. */
typedef struct xp_tb_scalar {
    const char *tag;
    double value;
} xp_tb_scalar;

/** A new file in `folder` (made when missing); TensorBoard shows all files of a folder as one run. */
XP_NODISCARD xp_status xp_tfevents_create(const char *folder, xp_tfevents **events);
/** One event with the scalars of a step; on the disk when this returns. */
XP_NODISCARD xp_status xp_tfevents_add(xp_tfevents *events, int64_t step,
                                       const xp_tb_scalar *scalars, int n_scalars);
void xp_tfevents_destroy(xp_tfevents *events);

/** One event: the file version that every file starts with, or the scalars of a step. */
typedef struct xp_tb_event {
    double wall_time; /* seconds since 1970 */
    int64_t step;
    const char *file_version; /* NULL: the scalars */
    const xp_tb_scalar *scalars;
    int n_scalars;
} xp_tb_event;

/**
 * The event as protobuf bytes, as they stand in a frame.
 * @param[out] out  room for as many bytes as the call with NULL returns; NULL: nothing is written
 * @return number of bytes
 */
size_t xp_tb_event_encode(const xp_tb_event *event, uint8_t *out);

#endif
