/** A training state for the tests: known values, cut among ranks in any way, saved and loaded by
 * thread ranks. */
#ifndef XP_TEST_CHECKPOINT_LAYOUT_H
#define XP_TEST_CHECKPOINT_LAYOUT_H

#include "checkpoint/state.h"

#define XP_LAYOUT_MAX_PIECES 256

/** The pieces of one rank over memory of their own. */
typedef struct xp_layout {
    xp_ckpt_piece pieces[XP_LAYOUT_MAX_PIECES];
    int64_t n_pieces;
} xp_layout;

/** Names, types and shapes of all tensors: the state as one whole-tensor piece each, without
 * memory. */
int64_t xp_layout_tensors(xp_ckpt_piece *pieces);

/** Cut the state into the layouts of n_ranks ranks; the same seed gives the same cut. Memory is
 * zeros. */
void xp_layout_cut(uint64_t seed, int n_ranks, xp_layout *layouts);
/** Give every element its value; `version` makes different states. */
void xp_layout_fill(xp_layout *layout, int version);
/** True when every element has its value. */
bool xp_layout_is(const xp_layout *layout, int version);
void xp_layout_free(xp_layout *layouts, int n_ranks);

/** Save as n_ranks thread ranks (1: without a communicator); returns rank 0's status with its error
 * text. */
xp_status xp_layout_save(const char *folder, int64_t step, int64_t keep, xp_layout *layouts,
                         int n_ranks);
/** Read the checkpoint (step -1: newest) into every rank's layout. */
xp_status xp_layout_load(const char *folder, int64_t step, xp_layout *layouts, int n_ranks);

/** Run body(context, comm, rank) on n_ranks threads. */
typedef void (*xp_rank_body)(void *context, xp_comm *comm, int rank);
void xp_layout_run_ranks(int n_ranks, xp_rank_body body, void *context);

#endif
