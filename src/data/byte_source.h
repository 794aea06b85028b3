/** The bytes of one data file, whatever packs them: plain, gzip (one member or several) or Zstandard (frames), told by
 * what the file starts with. Damage is an error, never a shorter file. */
#ifndef XP_DATA_BYTE_SOURCE_H
#define XP_DATA_BYTE_SOURCE_H

#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

typedef struct xp_byte_source xp_byte_source;

/** @param path borrowed until closing; "-": standard input
 *  @return XP_OK; XP_EIO; XP_EFORMAT: named .gz or .zst, but not packed so */
XP_NODISCARD xp_status xp_byte_source_open(const char *path, xp_byte_source **source);
void xp_byte_source_close(xp_byte_source *source);
/** Up to `room` bytes; *n = 0 at the end only.
 *  @return XP_OK; XP_EIO; XP_EFORMAT: damaged or cut off */
XP_NODISCARD xp_status xp_byte_source_read(xp_byte_source *source, char *out, size_t room,
                                           size_t *n);
/** Bytes of the file read so far. */
int64_t xp_byte_source_position(const xp_byte_source *source);

#endif
