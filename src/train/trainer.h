/** The training run of one rank: reserve, step, evaluate, save, resume. */
#ifndef XP_TRAIN_TRAINER_H
#define XP_TRAIN_TRAINER_H

#include "config/config.h"
#include "core/log.h"
#include "data/loader.h"
#include "parallel/run.h"

/** What rank threads of a process share: the datasets, the tokenizer, the stop flag. */
typedef struct xp_train_shared xp_train_shared;
/** Opens the data: the first time, text is tokenised here. @param config borrowed */
XP_NODISCARD xp_status xp_train_shared_create(const xp_config *config, xp_log *log,
                                              xp_train_shared **shared);
void xp_train_shared_destroy(xp_train_shared *shared);
/** Async-signal-safe: finish the step, save, stop. A second call is the same. */
void xp_train_request_stop(xp_train_shared *shared);

typedef struct xp_train_result {
    int64_t first_step, last_step, steps_total;
    bool stopped_by_signal, already_done;
    double mean_loss_last_50, seconds;
    int64_t tokens_seen;
    int64_t
        n_step_allocs; /* device allocations after the first step: 0 unless something is wrong */
    char dump_folder[512], last_checkpoint[600]; /* last_checkpoint "" = none */
} xp_train_result;

/**
 * Run the whole training of one rank: resume or initialise, steps, validation, checkpoints,
 * metrics; rank 0 writes metrics and messages. Collective over `world`.
 *
 * @param world          NULL: one rank
 * @param n_local_ranks  ranks on this machine, which share its cores
 * @return XP_OK also when stopped by a signal; XP_ECONFIG, XP_ENUMERIC (step and tensor named), ...
 *         After an error the other ranks have been told (xp_comm_abort)
 */
XP_NODISCARD xp_status xp_train_run(const xp_config_set *config, xp_train_shared *shared,
                                    xp_comm *world, int n_local_ranks, xp_log *log,
                                    xp_train_result *result);

/** Cores this process may run on. */
int xp_train_n_cores(void);

#endif
