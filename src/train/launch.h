/** Start the ranks of a training run: threads of this process, or this process as one MPI rank. */
#ifndef XP_TRAIN_LAUNCH_H
#define XP_TRAIN_LAUNCH_H

#include "train/start_choice.h"
#include "train/trainer.h"

/**
 * Train with rank threads, or as the rank that a launcher made this process. Takes the tuned values that fit
 * (tune/adopt.h) into the configuration first.
 * SIGINT, SIGTERM, SIGHUP and SIGUSR1 end the run after its step (train/signals.h).
 *
 * @param start  from xp_start_choose(), not XP_START_PROCESSES
 * @param[out] result  of rank 0, or of this process's rank
 * @return XP_OK; the status of the rank that failed first, its error as the last error with the
 *         rank named
 */
XP_NODISCARD xp_status xp_train_launch(xp_config_set *config, const xp_start *start, xp_log *log,
                                       xp_train_result *result);

#endif
