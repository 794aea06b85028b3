/**
 * The calling thread's current accelerator belongs to the program: a public call that may reach one
 * makes its device current while it runs and the program's again when it returns. Inside such a call
 * further ones change nothing.
 */
#ifndef XP_DEVICE_SCOPE_H
#define XP_DEVICE_SCOPE_H

#include "expar/device.h"

typedef struct xp_device_scope {
    void (*leave)(int before); /* NULL: there is nothing to undo */
    int before;
} xp_device_scope;

/** @param device  NULL: no device; nothing happens on devices without a current one */
xp_device_scope xp_device_scope_begin(xp_device *device);
void xp_device_scope_end(const xp_device_scope *scope);

/** The first line of a public function: from here to its return. */
#define XP_DEVICE_SCOPE(device)                                                                    \
    const xp_device_scope xp_scope_ __attribute__((cleanup(xp_device_scope_end), unused)) =        \
        xp_device_scope_begin(device)

#endif
