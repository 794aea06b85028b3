/** The GEMM algorithms of a run stay what they are across stop and resume. */
#ifndef XP_TRAIN_GEMMS_H
#define XP_TRAIN_GEMMS_H

#include "checkpoint/state.h"

/** gemm.algorithms as one text, and the GPU and library that they are of ("": no GPU). NULL: not known. */
typedef struct xp_gemms_in_force {
    const char *algorithms, *tuned_for;
} xp_gemms_in_force;

typedef enum xp_gemms_verdict {
    XP_GEMMS_SAME = 0,
    XP_GEMMS_KEEP, /* the checkpoint's list can and must serve */
    XP_GEMMS_LOST  /* another GPU or library: no list keeps the bits */
} xp_gemms_verdict;
xp_gemms_verdict xp_gemms_judge(const xp_gemms_in_force *saved, const xp_gemms_in_force *now);

typedef struct xp_trainer xp_trainer;
/** Fill the trainer's gemms and gemm_for, which its checkpoints carry. */
XP_NODISCARD xp_status xp_trainer_open_gemms(xp_trainer *t);
/** Take the checkpoint's list where the run's is another. Before the first GEMM. */
XP_NODISCARD xp_status xp_trainer_keep_gemms(xp_trainer *t, const xp_ckpt *ckpt);

#endif
