/** The state of the NCCL backend, and NCCL's communicator in it, which several threads use. */
#ifndef XP_COMM_NCCL_HANDLE_H
#define XP_COMM_NCCL_HANDLE_H

#include <pthread.h>
#include "comm/device/backend.h"
#include "comm/nccl/calls.h"

/** Collectives under way at a time that the watcher tells apart. */
#define XP_NCCL_SPANS 256

/** A collective on a stream, between two events: nobody is blamed for the time before `begin`. */
typedef struct xp_nccl_span {
    xp_event *begin, *end;
    const char *phase;
    xp_comm_kind kind;
    double began_s; /* when its begin was first seen passed; 0: not yet */
} xp_nccl_span;

/** What one rank sends to another and gets from it; none of it where the bytes are 0. */
typedef struct xp_nccl_part {
    const char *send;
    char *recv;
    int64_t send_bytes, recv_bytes;
} xp_nccl_part;

typedef struct xp_nccl_backend {
    xp_comm_backend base;
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
    pthread_mutex_t watch_lock; /* around the spans */
    pthread_cond_t changed;
    bool watched, stopping, ended;
    xp_nccl_span spans[XP_NCCL_SPANS]; /* a ring; the oldest at `first` */
    int first, n_spans;
    bool begun;   /* the collective being queued has a span of its own */
    bool growing; /* the newest span's end is being recorded again */
} xp_nccl_backend;

/** The failure of all ranks becomes `text` unless there is one; NCCL is given up. @return XP_ECOMM
 */
xp_status xp_nccl_fail(xp_nccl_backend *backend, const char *text);
/** NCCL's communicator is aborted, once: what it still does on the GPU ends. Any thread. */
void xp_nccl_abort(xp_nccl_backend *backend);
/** Between lock and unlock calls of NCCL may be made. XP_ECOMM when it has been given up: then it
 * is not locked. */
XP_NODISCARD xp_status xp_nccl_lock(xp_nccl_backend *backend);
void xp_nccl_unlock(xp_nccl_backend *backend);
/** After a call: wait on the host until NCCL has taken it, not for the GPU. */
XP_NODISCARD xp_status xp_nccl_settle(xp_nccl_backend *backend, const xp_comm_call *call,
                                      xp_nccl_state state);
/** Time is up: who is missing, as the failure of all. NCCL is the caller's to abort. @return
 * XP_ECOMM */
xp_status xp_nccl_report_timeout(xp_nccl_backend *backend, xp_comm_kind kind, const char *phase);

#endif
