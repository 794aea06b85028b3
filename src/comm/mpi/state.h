/**
 * The state of the MPI provider.
 *
 * One thread of a process, the progress thread, makes every MPI call: Open MPI is used with
 * MPI_THREAD_FUNNELED, and a thread that is stuck in MPI_Init or MPI_Finalize keeps nobody else.
 * Calls of all communicators and threads become exchanges, which the progress thread works on side
 * by side: two communicators used from two threads never wait for each other, in whatever order
 * ranks get to them.
 *
 * Messages are point to point, so that a wait that ends too late knows whom it waited for. A
 * communicator is a list of ranks and a message tag of its own.
 */
#ifndef XP_COMM_MPI_STATE_H
#define XP_COMM_MPI_STATE_H

#include <mpi.h>
#include <pthread.h>
#include "comm/liveness.h"
#include "comm/mpi/forward.h"
#include "comm/on_failure.h"
#include "comm/provider.h"

#define XP_MPI_TAG_FAILURE 0
#define XP_MPI_TAG_FIRST   1 /* of communicators */

/** Bytes that travel with an exchange's first message. */
#define XP_MPI_INLINE 1024
/** Longer messages are cut: MPI counts are int, and a wait sees progress after each piece. */
#define XP_MPI_PIECE ((int64_t)1 << 26)

typedef struct xp_mpi_world xp_mpi_world;
typedef struct xp_mpi_comm xp_mpi_comm;

/** The first message of an exchange: what the sender believes it takes part in. */
typedef struct xp_mpi_head {
    uint64_t n_call;                     /* of this communicator */
    int64_t n, n_bytes;                  /* of the call; that follow for the receiver */
    int32_t kind, dtype, op, root, step; /* step: which exchange of the call */
    char phase[28];
} xp_mpi_head;

typedef struct xp_mpi_envelope {
    xp_mpi_head head;
    char data[XP_MPI_INLINE];
} xp_mpi_envelope;

/** The four messages with one peer. */
enum { XP_MPI_HEAD_OUT = 0, XP_MPI_HEAD_IN, XP_MPI_DATA_OUT, XP_MPI_DATA_IN, XP_MPI_N_MESSAGES };

typedef struct xp_mpi_peer {
    const char *send;
    char *recv;
    int64_t send_bytes, recv_bytes;
    int64_t sent, received; /* bytes whose message is done or under way */
    bool arrived;           /* its first message has */
} xp_mpi_peer;

/**
 * Every rank of a communicator gives every other some bytes. The communicator owns it: a rank is in
 * one exchange of a communicator at a time.
 */
typedef struct xp_mpi_exchange {
    xp_mpi_comm *comm;
    xp_mpi_head head;
    const char *phase;
    xp_mpi_peer *peers;        /* [size]; the own entry is not used */
    xp_mpi_envelope *out, *in; /* [size] */
    MPI_Request *requests;     /* [XP_MPI_N_MESSAGES * size] */
    MPI_Status *statuses;
    int *indices;
    int n_open;                  /* messages under way */
    double moved_s;              /* when the last one was done */
    bool done;                   /* under the progress thread's lock */
    xp_status status;            /* when done */
    char error[XP_FAILURE_TEXT]; /* of a failure of this rank alone */
    struct xp_mpi_exchange *next;
} xp_mpi_exchange;

struct xp_mpi_comm {
    xp_comm base;
    xp_mpi_world *world;
    pthread_mutex_t lock; /* one call at a time */
    int tag;
    uint64_t n_calls;
    int *ranks, *nodes; /* [size] */
    xp_mpi_exchange exchange;
    char *scratch; /* of reductions */
    size_t scratch_bytes;
    const void **sources; /* [size] */
};

struct xp_mpi_world {
    MPI_Comm mpi;
    int rank, size, max_tag;
    int n_nodes, index; /* index: among the ranks of this node */
    int *nodes;         /* [size] */
    double init_timeout_s, timeout_s;
    char host[64];
    xp_liveness liveness;
    xp_comm *all; /* the communicator of all ranks */

    pthread_t progress_thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int wake;                        /* eventfd: there is something new for the progress thread */
    _Atomic bool sleeping;           /* the progress thread may be asleep on it */
    xp_mpi_exchange *queued;         /* under the lock */
    xp_mpi_exchange *active;         /* the progress thread's */
    bool started, stopping, stopped; /* under the lock */
    xp_status start_status;
    char start_error[XP_FAILURE_TEXT];
    int n_comms; /* under the lock */
    int n_tags;  /* made by this rank; under the lock */

    xp_failure_hooks hooks;
    xp_failure_hook wake_hook; /* wakes the progress thread */
    _Atomic bool failed;       /* `failure` is whole and constant */
    xp_failure failure;
    _Atomic bool superseded;     /* another node found an earlier failure: it tells the user */
    MPI_Request failure_request; /* a failure from another node */
    xp_failure failure_received;

    xp_forward_map map;            /* who tells whom of a failure */
    int *forward_targets;          /* [map.max_targets] */
    MPI_Request *forward_requests; /* [map.max_targets] */
};

#endif
