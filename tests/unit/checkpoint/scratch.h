/** A folder for one test, and files in it. */
#ifndef XP_TEST_CHECKPOINT_SCRATCH_H
#define XP_TEST_CHECKPOINT_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>

/** cmocka setup and teardown: *state is the folder's path (char *). */
int xp_scratch_setup(void **state);
int xp_scratch_teardown(void **state);

/** "folder/name" in a buffer of the test. */
typedef struct xp_scratch_path {
    char text[512];
} xp_scratch_path;
xp_scratch_path xp_scratch_join(const char *folder, const char *name);

void xp_scratch_write(const char *path, const void *data, size_t n_bytes);
/** Caller frees. */
char *xp_scratch_read(const char *path, size_t *n_bytes);
/** Names in the folder, "." and ".." not counted. */
int xp_scratch_count(const char *folder);
/** True when the last error holds `part`; prints the error otherwise. */
bool xp_scratch_error_has(const char *part);

#endif
