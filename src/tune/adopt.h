/** A run takes what `expar tune` has measured, where it fits this machine and model. */
#ifndef XP_TUNE_ADOPT_H
#define XP_TUNE_ADOPT_H

#include "config/config.h"
#include "expar/comm.h"

typedef struct xp_adopt_args {
    xp_comm *world; /* processes; NULL: ranks are threads of this process */
    int n_ranks;    /* on this machine */
    int n_cores;    /* of this process */
} xp_adopt_args;

/**
 * Set deepep.transport and deepep.num_sms from the tuned file (xp_config_tuned_path()) where it fits and the user
 * has left them open. What the run says about it becomes xp_config_tuned_note() or, where the file does not fit
 * or is damaged, a warning of the configuration. Rank 0 reads, so that all ranks use the same. Collective over
 * the world.
 * @return XP_OK; XP_ECONFIG or XP_ENOENT: the file that deepep.tuned_file names is damaged or absent
 */
XP_NODISCARD xp_status xp_tune_adopt(xp_config_set *set, const xp_adopt_args *args);
/** The second half of it: gemm.algorithms, where GPU and library fit, also without expert parallelism. */
XP_NODISCARD xp_status xp_tune_adopt_gemms(xp_config_set *set, const xp_adopt_args *args);

#endif
