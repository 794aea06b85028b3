/**
 * One save on its way: a thread writes this rank's shard, and the ranks publish together when all
 * are done. Both kinds of save are made of it; the rank that saves synchronously waits in short
 * collective polls, so that a slow disk is no lost peer.
 */
#ifndef XP_CHECKPOINT_SAVE_JOB_H
#define XP_CHECKPOINT_SAVE_JOB_H

#include "checkpoint/state.h"

typedef struct xp_save_job xp_save_job;

/**
 * Collective. Names and values are copied; the pieces' data stay borrowed until the job ends.
 * @param local  this rank's status so far; a failure on any rank is everyone's, and nothing is
 * started
 */
XP_NODISCARD xp_status xp_save_job_start(const xp_ckpt_save_args *args, xp_status local,
                                         xp_save_job **job);
/** Collective. *done: all ranks have written (or failed). @param wait come back only then */
XP_NODISCARD xp_status xp_save_job_poll(xp_save_job *job, bool wait, bool *done);
/** Collective, once, after *done. @param[out] published  true when step-N is there, also when
 * removing older ones failed */
XP_NODISCARD xp_status xp_save_job_publish(xp_save_job *job, bool *published);
/** What went wrong after the publish, on rank 0; "" = nothing. */
const char *xp_save_job_warning(const xp_save_job *job);
int64_t xp_save_job_step(const xp_save_job *job);
/** Joins the thread. NULL is accepted. */
void xp_save_job_destroy(xp_save_job *job);

#endif
