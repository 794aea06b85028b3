/**
 * A file being written: buffered and hashed on the way, and under its name only when it is whole
 * and on the disk. Until then the bytes are in "path.tmp".
 */
#ifndef XP_CHECKPOINT_OUTFILE_H
#define XP_CHECKPOINT_OUTFILE_H

#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

typedef struct xp_outfile xp_outfile;

XP_NODISCARD xp_status xp_outfile_open(const char *path, xp_outfile **out);
/** Ask the file system for the whole size now, so that a full disk shows before gigabytes are
 * written. */
XP_NODISCARD xp_status xp_outfile_reserve(xp_outfile *out, int64_t n_bytes);
/** After an error the file is dead: every later call returns the same status. */
XP_NODISCARD xp_status xp_outfile_write(xp_outfile *out, const void *data, size_t n_bytes);
/** Flush, fsync, rename, fsync the folder. */
XP_NODISCARD xp_status xp_outfile_commit(xp_outfile *out);
int64_t xp_outfile_n_bytes(const xp_outfile *out);
/** XXH64 (seed 0) of what was written so far. */
uint64_t xp_outfile_xxh64(const xp_outfile *out);
/** Closes; what was not committed is removed. NULL is accepted. */
void xp_outfile_close(xp_outfile *out);

#endif
