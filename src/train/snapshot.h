/**
 * A rank's training state as pieces of named global tensors, for checkpoints. On the CPU the pieces
 * point at the state itself; other devices go through a host copy, which stays as it is until the
 * next collect or restore.
 */
#ifndef XP_TRAIN_SNAPSHOT_H
#define XP_TRAIN_SNAPSHOT_H

#include "checkpoint/state.h"
#include "parallel/run.h"
#include "train/arch_values.h"
#include "train/staging.h"

typedef struct xp_snapshot xp_snapshot;

/**
 * Lists the tensors of this rank's chunks: "param/<hf name>", "exp_avg/<hf name>",
 * "exp_avg_sq/<hf name>", and "expert_bias/<layer>".
 * @param run, staging  borrowed
 * @param bias  [n_layers, E] host copy of the expert bias, borrowed; NULL in a dense model
 */
XP_NODISCARD xp_status xp_snapshot_create(const xp_run *run, xp_staging *staging, float *bias,
                                          xp_snapshot **snapshot);
void xp_snapshot_destroy(xp_snapshot *snapshot);

typedef enum xp_snapshot_part {
    XP_SNAPSHOT_PARAMS = 1,
    XP_SNAPSHOT_MOMENTS = 2,
    XP_SNAPSHOT_BIAS = 4,
    XP_SNAPSHOT_ALL = 7,
} xp_snapshot_part;

/**
 * What this rank gives to a save of `parts`: nothing on replicas other than the first, and the
 * expert bias from world rank 0 only. Waits for the stream.
 * @param[out] pieces  valid until the snapshot is destroyed or collected again
 */
XP_NODISCARD xp_status xp_snapshot_collect(xp_snapshot *snapshot, int parts,
                                           const xp_ckpt_piece **pieces, int64_t *n_pieces);
/**
 * Fill this rank's chunks (and the host copy of the bias) from a checkpoint. Not yet published.
 * @param without  parameters (Hugging Face names) that keep their values and moments
 * @return XP_OK; XP_ECONFIG when `without` names no parameter; what xp_ckpt_read() returns
 */
XP_NODISCARD xp_status xp_snapshot_restore(xp_snapshot *snapshot, const xp_ckpt *ckpt, int parts,
                                           const xp_string_list *without);

#endif
