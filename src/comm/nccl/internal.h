/** The NCCL engine's insides. */
#ifndef XP_COMM_NCCL_INTERNAL_H
#define XP_COMM_NCCL_INTERNAL_H

#include <pthread.h>
#include "comm/nccl/engine.h"

/** Collectives under way at a time that the watcher tells apart. */
#define XP_NCCL_MARKS 256

/** A collective on a stream: nobody is blamed for the time before its begin. */
typedef struct xp_nccl_mark {
    xp_event *begin, *end;
    const char *phase;
    xp_comm_kind kind;
    double began_s; /* when its begin was first seen passed; 0: not yet */
} xp_nccl_mark;

/** What one rank sends to another and gets from it; none of it where the bytes are 0. */
typedef struct xp_nccl_part {
    const char *send;
    char *recv;
    int64_t send_bytes, recv_bytes;
} xp_nccl_part;

typedef struct xp_nccl_engine {
    xp_comm_engine base;
    const xp_nccl_calls *calls;
    xp_status (*reduce)(xp_stream *stream, const void *args);

    pthread_mutex_t lock; /* around every NCCL call and `nccl` */
    void *nccl;           /* NULL once it has been aborted */

    char *scratch; /* [size] parts of what others send of a reduction */
    int64_t scratch_bytes;
    int32_t *flag;       /* a barrier's one number */
    xp_nccl_part *parts; /* [size] */
    const void **sources;

    pthread_t watcher;
    pthread_mutex_t watch_lock; /* around the marks */
    pthread_cond_t changed;
    bool watched, stopping, ended;
    xp_nccl_mark marks[XP_NCCL_MARKS]; /* a ring; the oldest at `first` */
    int first, n_marks;
    bool begun;   /* the collective being queued has a mark of its own */
    bool growing; /* the newest mark's end is being recorded again */
} xp_nccl_engine;

/* engine.c */
/** The failure of all ranks becomes `text` unless there is one; NCCL is given up. @return XP_ECOMM
 */
xp_status xp_nccl_fail(xp_nccl_engine *engine, const char *text);
/** NCCL's communicator is aborted, once: what it still does on the GPU ends. Any thread. */
void xp_nccl_abort(xp_nccl_engine *engine);
/** Between lock and unlock calls of NCCL may be made. XP_ECOMM when it has been given up: then it
 * is not locked. */
XP_NODISCARD xp_status xp_nccl_lock(xp_nccl_engine *engine);
void xp_nccl_unlock(xp_nccl_engine *engine);
/** After a call: wait on the host until NCCL has taken it, not for the GPU. */
XP_NODISCARD xp_status xp_nccl_settle(xp_nccl_engine *engine, const xp_comm_call *call,
                                      xp_nccl_state state);

/* collectives.c */
xp_status xp_nccl_run(xp_comm_engine *engine, const xp_comm_call *call, xp_stream *stream);

/* watch.c */
XP_NODISCARD xp_status xp_nccl_watch_start(xp_nccl_engine *engine);
/** @return false when the watcher is stuck in NCCL: the engine must not be freed */
XP_NODISCARD bool xp_nccl_watch_stop(xp_nccl_engine *engine);
/** Around what a collective queues. */
XP_NODISCARD xp_status xp_nccl_watch_begin(xp_nccl_engine *engine, const xp_comm_call *call,
                                           xp_stream *stream);
XP_NODISCARD xp_status xp_nccl_watch_end(xp_nccl_engine *engine, const xp_comm_call *call,
                                         xp_stream *stream);
/** Time is up: who is missing, as the failure of all. NCCL is the caller's to abort. @return
 * XP_ECOMM */
xp_status xp_nccl_report_late(xp_nccl_engine *engine, xp_comm_kind kind, const char *phase);

#endif
