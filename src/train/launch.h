/** Start the ranks of a training run: threads of this process, or this process as one MPI rank. */
#ifndef XP_TRAIN_LAUNCH_H
#define XP_TRAIN_LAUNCH_H

#include "train/trainer.h"

/**
 * Train with NGPU rank threads (default 1), or as the rank that mpirun or srun made this process.
 * SIGINT, SIGTERM, SIGHUP and SIGUSR1 end the run after its step (train/signals.h).
 *
 * @param[out] result  of rank 0, or of this process's rank
 * @return XP_OK; the status of the rank that failed first, its error as the last error with the
 *         rank named
 */
XP_NODISCARD xp_status xp_train_launch(const xp_config_set *config, xp_log *log,
                                       xp_train_result *result);

#endif
