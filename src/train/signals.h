/** The signals that end a training run in good order. */
#ifndef XP_TRAIN_SIGNALS_H
#define XP_TRAIN_SIGNALS_H

#include "train/trainer.h"

typedef struct xp_signals xp_signals;

typedef struct xp_signals_args {
    xp_train_shared *shared; /* borrowed: gets the request to stop */
    xp_log *log;             /* borrowed; NULL: silent */
    bool saves;    /* the run writes checkpoints: the message promises that the step is saved */
    bool patient;  /* under expar's own launcher, which counts the signals itself: a second one does
                     not end the process */
    xp_comm *comm; /* borrowed, NULL: none. A second signal ends its peers' waits, too */
} xp_signals_args;

/**
 * SIGINT, SIGTERM, SIGHUP and SIGUSR1 let the run finish its step, save and stop. SIGHUP and SIGUSR1
 * stay ignored where the process was started so (nohup). A second signal, more than 1 s after the
 * first, ends the process with exit code 1 within 2 s, whatever its threads or its GPU wait for. The
 * signals stay blocked in the calling thread and in the threads that it starts.
 */
XP_NODISCARD xp_status xp_signals_start(const xp_signals_args *args, xp_signals **signals);
/** NULL is accepted. */
void xp_signals_stop(xp_signals *signals);

#endif
