/** The few collectives of a save. A NULL communicator is one rank. */
#ifndef XP_CHECKPOINT_AGREE_H
#define XP_CHECKPOINT_AGREE_H

#include <stdbool.h>
#include "core/text.h"
#include "expar/comm.h"

int xp_agree_rank(const xp_comm *comm);
int xp_agree_size(const xp_comm *comm);

/**
 * XP_OK when every rank brought XP_OK. Otherwise every rank gets a failure: its own, or the first
 * failing rank's with that rank and its error text as the last error.
 */
XP_NODISCARD xp_status xp_agree(xp_comm *comm, xp_status status);
/** *all = every rank brought true. */
XP_NODISCARD xp_status xp_agree_all(xp_comm *comm, bool mine, bool *all);
/** Rank 0 gets all ranks' texts: rank r's at all[offsets[r] .. offsets[r + 1]). Other ranks get
 * NULL. Caller frees both. */
XP_NODISCARD xp_status xp_agree_gather(xp_comm *comm, const xp_text *mine, char **all,
                                       int64_t **offsets);

#endif
