/** Files: whole reads, atomic writes, folders, memory maps. Errors name the path and say what the
 * system said. */
#ifndef XP_CORE_FILE_H
#define XP_CORE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

/** Reading and mapping refuse a Git LFS pointer by name (XP_EFORMAT): it stands for a file that was
 * not downloaded. */

/** Read a whole file; NUL added past the end. @param max_bytes larger files are XP_EFORMAT. Caller
 * frees *data. */
XP_NODISCARD xp_status xp_file_read(const char *path, size_t max_bytes, char **data,
                                    size_t *n_bytes);
/** Write aside ("path.tmp"), fsync, rename over `path`, fsync the folder: the file is whole or
 * unchanged. What is no file (a folder, a device, a pipe) is not replaced: XP_EIO. */
XP_NODISCARD xp_status xp_file_write_atomic(const char *path, const void *data, size_t n_bytes);
XP_NODISCARD xp_status xp_file_sync_folder(const char *path);
/** mkdir -p; the parents of new folders are synced. */
XP_NODISCARD xp_status xp_folder_create(const char *path);
/** rm -r of a folder this program made; XP_OK when it is not there. */
XP_NODISCARD xp_status xp_folder_remove(const char *path);
/** One entry of a folder. Another status than XP_OK ends the listing and is its result. */
typedef xp_status (*xp_folder_entry_fn)(void *context, const char *folder, const char *name);
/** Every entry but "." and "..", in no order. XP_ENOENT: no such folder. XP_EIO: it cannot be read,
 * or not to its end. */
XP_NODISCARD xp_status xp_folder_each(const char *path, xp_folder_entry_fn entry, void *context);
/**
 * What stands at a path, links followed. Absent is only what the system says is not there (ENOENT):
 * a path that cannot be looked at, or a link that leads nowhere, is XP_EIO, never "absent".
 */
XP_NODISCARD xp_status xp_path_exists(const char *path, bool *exists);
/** *folder = there is a folder of this name. Errors as of xp_path_exists(). */
XP_NODISCARD xp_status xp_path_is_folder(const char *path, bool *folder);
/** The folder below `path`, the first in the alphabet, that holds something called `inside`. For messages: false
 * when there is none, or when it cannot be found out. @param[out] below  "path/NAME" */
bool xp_folder_find_below(const char *path, const char *inside, char *below, size_t n_bytes);
/** "a/b"; NULL when memory is out. Caller frees. */
char *xp_path_join(const char *a, const char *b);

/** Read-only map of a whole file; an empty file gives data = NULL, n_bytes = 0. */
typedef struct xp_file_map {
    const unsigned char *data;
    size_t n_bytes;
} xp_file_map;
XP_NODISCARD xp_status xp_file_map_open(const char *path, xp_file_map *map);
void xp_file_map_close(xp_file_map *map);

/** Monotonic seconds. */
double xp_time_s(void);
/** Peak resident set of this process in bytes, and the resident set now. */
int64_t xp_process_peak_rss(void);
int64_t xp_process_rss(void);

#endif
