/** What a checkpoint's manifest says about the model it was made of. */
#ifndef XP_TRAIN_ARCH_VALUES_H
#define XP_TRAIN_ARCH_VALUES_H

#include "checkpoint/state.h"
#include "model/arch.h"

#define XP_ARCH_VALUES 18

typedef struct xp_arch_values {
    int n;
    const char *keys[XP_ARCH_VALUES];
    char values[XP_ARCH_VALUES][64];
} xp_arch_values;

/** Keys as in the configuration ("model.dim"), values printed so that they read back exactly. */
void xp_arch_values_fill(const xp_arch *arch, xp_arch_values *out);
/** The model of a checkpoint. XP_EFORMAT names a key that is missing or no number. */
XP_NODISCARD xp_status xp_arch_values_read(const xp_ckpt *ckpt, xp_arch *arch);
/** XP_ECONFIG naming the first key whose value in the checkpoint is another one. */
XP_NODISCARD xp_status xp_arch_values_check(const xp_arch *arch, const xp_ckpt *ckpt,
                                            const char *where);

#endif
