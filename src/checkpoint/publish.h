/** Folders that appear whole: written beside under a temporary name, then renamed; and the step-N
 * folders of a run. */
#ifndef XP_CHECKPOINT_PUBLISH_H
#define XP_CHECKPOINT_PUBLISH_H

#include <stdbool.h>
#include <stdint.h>
#include "expar/status.h"

#define XP_CKPT_MANIFEST "manifest.json"

/**
 * Sync the finished folder `temp` and give it the name `target` in the same parent. A folder that
 * is there is replaced by one exchange of names where the file system can do that; elsewhere it is
 * moved to `aside` first. It is removed afterwards.
 */
XP_NODISCARD xp_status xp_folder_publish(const char *temp, const char *target, const char *aside);

/** Remove the folder that failed work left; returns `cause`, and keeps its text as the last error.
 */
XP_NODISCARD xp_status xp_folder_discard(const char *temp, xp_status cause);

/** A step's folders: "FOLDER/step-N", ".step-N.tmp" while it is written, ".step-N.old" while it is
 * replaced. */
typedef struct xp_step_paths {
    char *final, *temp, *aside;
} xp_step_paths;
XP_NODISCARD xp_status xp_step_paths_create(const char *folder, int64_t step, xp_step_paths *paths);
void xp_step_paths_free(xp_step_paths *paths);

/** Steps of the complete checkpoints (those with a manifest), ascending. Caller frees. None, or no
 * folder: n = 0. */
XP_NODISCARD xp_status xp_steps_list(const char *folder, int64_t **steps, int64_t *n);
/** Remove what crashed saves left behind, and bring back a checkpoint that was just being replaced.
 */
XP_NODISCARD xp_status xp_steps_clean(const char *folder);
/**
 * Move the complete checkpoints of steps after `after` out of the way, the newest first, into the
 * first free FOLDER/set-aside-N: nothing resumes from there, and nothing is removed from there.
 *
 * @param except     a step that stays; -1 = none
 * @param[out] into  the folder's path when something was moved, NULL otherwise; the caller frees it
 */
XP_NODISCARD xp_status xp_steps_set_aside(const char *folder, int64_t after, int64_t except,
                                          char **into);
/** Remove the oldest complete checkpoints until `keep` are left; never `newest_saved`. keep = 0:
 * nothing. */
XP_NODISCARD xp_status xp_steps_prune(const char *folder, int64_t keep, int64_t newest_saved);

#endif
