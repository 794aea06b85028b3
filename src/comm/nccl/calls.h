/**
 * What the backend needs of NCCL, as a table: filled from libnccl.so.2 (library.c, the only file
 * that sees nccl.h), or by a test that records the calls. Communicators are nonblocking: a call may
 * return while it is still being worked on, and comm_state tells when the next one may be made.
 */
#ifndef XP_COMM_NCCL_CALLS_H
#define XP_COMM_NCCL_CALLS_H

#include "expar/comm.h"

#define XP_NCCL_ID_BYTES 128
typedef struct xp_nccl_id {
    char bytes[XP_NCCL_ID_BYTES];
} xp_nccl_id;

typedef enum xp_nccl_state {
    XP_NCCL_OK = 0,
    XP_NCCL_BUSY,  /* in progress: ask comm_state */
    XP_NCCL_FAILED /* the last error says what failed and what NCCL says about it */
} xp_nccl_state;

typedef struct xp_nccl_calls {
    xp_nccl_state (*get_unique_id)(xp_nccl_id *id);
    /** @param max_ctas  thread blocks of a kernel at most; 0: NCCL's choice
     * @param[out] nccl  the communicator, also while BUSY; NULL after a failure that made none */
    xp_nccl_state (*comm_init)(xp_device *device, int n_ranks, const xp_nccl_id *id, int rank,
                               int max_ctas, void **nccl);
    /** OK, BUSY, or FAILED with what has happened to it, also on other ranks. */
    xp_nccl_state (*comm_state)(void *nccl);
    /** Of one communicator: finalize and, once it is not BUSY any more, destroy; or abort alone,
     * which ends what still runs on the GPU. abort may be called from any thread while no other
     * call of this communicator is being made. */
    xp_nccl_state (*comm_finalize)(void *nccl);
    xp_nccl_state (*comm_destroy)(void *nccl);
    xp_nccl_state (*comm_abort)(void *nccl);

    /** Of a communicator that the program has made: which rank of how many, and whether it is of
     * `device`. */
    xp_nccl_state (*comm_describe)(void *nccl, xp_device *device, int *rank, int *size,
                                   bool *on_device);

    /** Around sends and receives that belong together. */
    xp_nccl_state (*group_start)(void);
    xp_nccl_state (*group_end)(void);
    xp_nccl_state (*send)(void *nccl, const void *data, size_t n_bytes, int peer,
                          xp_stream *stream);
    xp_nccl_state (*recv)(void *nccl, void *data, size_t n_bytes, int peer, xp_stream *stream);
    xp_nccl_state (*all_gather)(void *nccl, const void *send, void *recv, size_t n_bytes_each,
                                xp_stream *stream);
    xp_nccl_state (*broadcast)(void *nccl, void *data, size_t n_bytes, int root, xp_stream *stream);
    xp_nccl_state (*all_reduce)(void *nccl, const void *send, void *recv, int64_t n, xp_dtype dtype,
                                xp_reduce_op op, xp_stream *stream);
    xp_nccl_state (*reduce_scatter)(void *nccl, const void *send, void *recv, int64_t n_each,
                                    xp_dtype dtype, xp_stream *stream);
} xp_nccl_calls;

/** Of the CUDA backend; see xp_cuda_backend.nccl and loaded_nccl. */
const void *xp_nccl_open(char *text, size_t n_bytes);
const void *xp_nccl_open_loaded(char *text, size_t n_bytes);

#endif
