/** Where hardware descriptions lie. */
#ifndef XP_PREDICT_HARDWARE_FILES_H
#define XP_PREDICT_HARDWARE_FILES_H

#include <stddef.h>
#include "expar/status.h"

/** The file of a description: `name` itself when it is a path, else NAME.toml of the installed ones.
 * @return XP_OK; XP_ENOENT with the nearest name */
XP_NODISCARD xp_status xp_hardware_path(const char *name, char *path, size_t n_path);

#endif
