/**
 * Training checkpoints: DUMP/checkpoint/step-N/ holds one safetensors shard a rank and
 * manifest.json; complete or absent.
 *
 * The trainer describes its state as pieces of named global tensors; a checkpoint can be loaded by
 * any set of pieces, so at any rank count and EP degree. Names: "param/<hf name>", "exp_avg/<hf
 * name>", "exp_avg_sq/<hf name>", "expert_bias/<layer>".
 */
#ifndef XP_CHECKPOINT_STATE_H
#define XP_CHECKPOINT_STATE_H

#include <stdbool.h>
#include "core/log.h"
#include "expar/comm.h"

/** Elements [first, first + n) of the flattened global tensor `name`, in host memory. */
typedef struct xp_ckpt_piece {
    const char *name;
    xp_dtype dtype; /* XP_F32 or XP_I64 */
    int n_dims;
    int64_t shape[3]; /* of the whole tensor */
    int64_t first, n;
    void *data;
} xp_ckpt_piece;

/** Small values that go into the manifest: step, tokens seen, data position, seed, config text,
 * versions. */
typedef struct xp_ckpt_value {
    const char *key;
    const char *value;
} xp_ckpt_value;

typedef struct xp_ckpt_save_args {
    const char *folder; /* DUMP/checkpoint */
    int64_t step;
    const xp_ckpt_piece
        *pieces; /* of this rank; every global element is given by exactly one rank */
    int64_t n_pieces;
    const xp_ckpt_value *values; /* the same on every rank; written by rank 0 */
    int n_values;
    int64_t keep_latest_k; /* older complete checkpoints are removed after the publish; 0 = all */
    xp_comm *comm;         /* all ranks; NULL = one rank */
    bool set_aside_later;  /* after the publish checkpoints of later steps are set aside */
    /** The pieces' memory does not change before the save has been published: xp_ckpt_saver makes
     * no copy of its own. */
    bool pieces_stay;
} xp_ckpt_save_args;

/** Write, sync, agree that all ranks are done, then publish by rename. Collective. Fails whole:
 * earlier checkpoints stay. XP_ENUMERIC names a tensor that holds NaN or Inf. */
XP_NODISCARD xp_status xp_ckpt_save(const xp_ckpt_save_args *args);

/**
 * Asynchronous save: xp_ckpt_saver_start() copies the pieces into its own staging memory (unless
 * they stay) and returns; a thread writes. xp_ckpt_saver_wait() ends it (collective: the publish
 * happens here or in the next poll). One save at a time: start waits for the one before.
 */
typedef struct xp_ckpt_saver xp_ckpt_saver;
XP_NODISCARD xp_status xp_ckpt_saver_create(xp_comm *comm, xp_ckpt_saver **saver);
/** Collective; args->comm is not used, the saver's is. The pieces' memory may change when it
 * returns. */
XP_NODISCARD xp_status xp_ckpt_saver_start(xp_ckpt_saver *saver, const xp_ckpt_save_args *args);
/** Collective, cheap: publishes a save that all ranks have finished. Call once a step. @param[out]
 * published_step -1 = none */
XP_NODISCARD xp_status xp_ckpt_saver_poll(xp_ckpt_saver *saver, int64_t *published_step);
/** Collective: the same, and waits for it. */
XP_NODISCARD xp_status xp_ckpt_saver_wait(xp_ckpt_saver *saver, int64_t *published_step);
/** Collective: wait until all ranks have written the save under way; it is not published yet. For
 * saves that the run waits for: what must be on the disk before the checkpoint shows is written
 * between this and xp_ckpt_saver_wait(). */
XP_NODISCARD xp_status xp_ckpt_saver_wait_written(xp_ckpt_saver *saver);
/** A save has been started and not been published; the same on all ranks. */
bool xp_ckpt_saver_is_busy(const xp_ckpt_saver *saver);
/** What went wrong after the last publish without harm to it (an older checkpoint that cannot be
 * removed), on rank 0; "" = nothing. Valid until the next call. */
const char *xp_ckpt_saver_warning(const xp_ckpt_saver *saver);
void xp_ckpt_saver_destroy(xp_ckpt_saver *saver);
/** Move checkpoints of later steps than `after`, but not `except` (-1: none), into a folder beside
 * them: a run that goes back to an earlier step continues from there. One rank calls it. @param[out]
 * into that folder, NULL when none was later; the caller frees it */
XP_NODISCARD xp_status xp_ckpt_set_aside(const char *folder, int64_t after, int64_t except,
                                         char **into);
/** Bytes of staging memory that a save of these pieces takes. */
int64_t xp_ckpt_staging_bytes(const xp_ckpt_piece *pieces, int64_t n_pieces);

typedef struct xp_ckpt xp_ckpt;
/** @param step -1 = the newest complete one. XP_ENOENT when there is none (not an error to print
 * when starting fresh). */
XP_NODISCARD xp_status xp_ckpt_open(const char *folder, int64_t step, xp_ckpt **ckpt);
/** The error of a folder that was given and holds no complete checkpoint: names a run below it, where there is one.
 * @return XP_ENOENT */
XP_NODISCARD xp_status xp_ckpt_none_in(const char *folder);
/** For a checkpoint found damaged while it was read: when FOLDER holds one before `step`, the last
 * error tells how to load that. Gives `status` back; other statuses than XP_EFORMAT are left as
 * they are. */
XP_NODISCARD xp_status xp_ckpt_suggest_older(const char *folder, int64_t step, xp_status status);
/** Open one checkpoint folder itself ("…/step-100"). */
XP_NODISCARD xp_status xp_ckpt_open_path(const char *path, xp_ckpt **ckpt);
void xp_ckpt_close(xp_ckpt *ckpt);
int64_t xp_ckpt_step(const xp_ckpt *ckpt);
const char *xp_ckpt_value_get(const xp_ckpt *ckpt, const char *key); /* NULL when absent */
/** True with shape when the tensor is in it. */
bool xp_ckpt_has(const xp_ckpt *ckpt, const char *name, int *n_dims, int64_t shape[3]);
int64_t xp_ckpt_n_tensors(const xp_ckpt *ckpt);
const char *xp_ckpt_tensor_name(const xp_ckpt *ckpt, int64_t i);
struct xp_manifest;
/** What it holds, as the manifest says (checkpoint/manifest.h); borrowed. */
const struct xp_manifest *xp_ckpt_manifest(const xp_ckpt *ckpt);
/** The folder it was opened from; valid until it is closed. */
const char *xp_ckpt_path(const xp_ckpt *ckpt);
/** Read every file and compare size and checksum: XP_EFORMAT names the first that is damaged. */
XP_NODISCARD xp_status xp_ckpt_verify(const xp_ckpt *ckpt);
/**
 * Fill the pieces. Everything read is compared with its checksum first. A missing tensor or another
 * shape is XP_EFORMAT that names it and both shapes; on an error the pieces before the named one
 * are filled.
 */
XP_NODISCARD xp_status xp_ckpt_read(const xp_ckpt *ckpt, const xp_ckpt_piece *pieces,
                                    int64_t n_pieces);

#endif
