/** Where hardware descriptions lie. */
#ifndef XP_PREDICT_HARDWARE_FILES_H
#define XP_PREDICT_HARDWARE_FILES_H

#include <stddef.h>
#include "predict/hardware.h"

#define XP_HARDWARE_MAX 64

typedef struct xp_hardware_list {
    int n;
    char names[XP_HARDWARE_MAX][XP_HARDWARE_NAME];
} xp_hardware_list;

/** Names of the installed descriptions, sorted. @return XP_OK; XP_ENOENT: no folder of them was found */
XP_NODISCARD xp_status xp_hardware_list_installed(xp_hardware_list *list);

/** The file of a description: `name` itself when it is a path, else NAME.toml of the installed ones.
 * @return XP_OK; XP_ENOENT with the nearest name */
XP_NODISCARD xp_status xp_hardware_path(const char *name, char *path, size_t n_path);

#endif
