/** The training run of one rank: reserve, step, evaluate, save, resume. */
#ifndef XP_TRAIN_TRAINER_H
#define XP_TRAIN_TRAINER_H

#include "checkpoint/state.h"
#include "config/config.h"
#include "core/log.h"
#include "data/loader.h"
#include "model/model.h"
#include "parallel/shard.h"

/** Everything of a rank that occupies device memory for the whole run, made by one function for
 * real and predicted runs alike. */
typedef struct xp_run {
    xp_device *device;
    xp_mesh mesh;
    xp_model *model;
    xp_shard *shard;
    xp_stream *stream;
    int64_t local_batch, n_microbatches, global_batch, seq_len;
    int n_data_ranks;
} xp_run;
/**
 * Reserve all device memory of a run: parameters, gradients, optimizer, activations, EP buffers,
 * workspaces. Called by the trainer on the real device and by the planner on the null device.
 * Collective over `world`.
 */
XP_NODISCARD xp_status xp_run_reserve(const xp_config *config, xp_device *device, xp_comm *world,
                                      xp_run *run);
void xp_run_release(xp_run *run);

typedef struct xp_train_shared xp_train_shared; /* what rank threads of a process share: the
                                                   dataset, the tokenizer, the stop flag */
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
    char dump_folder[512], last_checkpoint[600];
} xp_train_result;
/**
 * Run the whole training of one rank: resume or initialise, steps, validation, checkpoints,
 * metrics; rank 0 writes metrics and messages. Collective over `world`.
 */
XP_NODISCARD xp_status xp_train_run(const xp_config_set *config, xp_train_shared *shared,
                                    xp_comm *world, int n_local_ranks, xp_log *log,
                                    xp_train_result *result);

#endif
