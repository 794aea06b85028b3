/** A table of NCCL calls that moves data between rank threads of this process, on the host and at
 * once, and writes down every call. One world of ranks at a time. */
#ifndef TESTS_UNIT_COMM_FAKE_NCCL_H
#define TESTS_UNIT_COMM_FAKE_NCCL_H

#include "comm/nccl/backend.h"

#define FAKE_MAX_RANKS 16
#define FAKE_MAX_CALLS 4096

typedef enum fake_fn {
    FAKE_GET_ID = 0,
    FAKE_INIT,
    FAKE_FINALIZE,
    FAKE_DESTROY,
    FAKE_ABORT,
    FAKE_GROUP_START,
    FAKE_GROUP_END,
    FAKE_SEND,
    FAKE_RECV,
    FAKE_ALL_GATHER,
    FAKE_BROADCAST,
    FAKE_ALL_REDUCE,
    FAKE_REDUCE_SCATTER
} fake_fn;

/** What a call was given; what it does not have is 0. */
typedef struct fake_call {
    fake_fn fn;
    void *nccl;
    int n_ranks, rank, max_ctas; /* INIT */
    int id;                      /* INIT: which of the ids that were given out */
    int peer;                    /* SEND, RECV; the root of a BROADCAST */
    int64_t n;                   /* bytes; elements of reductions */
    xp_dtype dtype;
    xp_reduce_op op;
    xp_stream *stream;
} fake_call;

typedef enum fake_mode {
    FAKE_WORKS = 0,
    FAKE_NEVER_TAKEN, /* calls stay in progress until the abort */
    FAKE_HANGS        /* calls are taken, and their streams then wait for the abort */
} fake_mode;

extern const xp_nccl_calls fake_nccl;

/** Forget everything; before each world of ranks. */
void fake_reset(void);
void fake_set_mode(fake_mode mode);
/** Whether communicators are of the device that they are asked about. */
void fake_set_on_device(bool on_device);
/** comm_init of this rank fails; -1: of none. */
void fake_fail_init(int rank);
/** Which rank the calling thread is; its calls are written down under this number. */
void fake_enter(int rank);
/** Calls of a rank so far, in order. */
int fake_n_calls(int rank);
const fake_call *fake_calls(int rank);
int fake_count(int rank, fake_fn fn);
/** Messages that somebody sent and nobody received. */
int fake_n_left(void);

/** xp_nccl_backend_args.reduce for memory of the CPU. */
xp_status fake_reduce(xp_stream *stream, const void *args);

#endif
