/**
 * The MPI provider's insides.
 *
 * One thread of a process, the engine, makes every MPI call: Open MPI is used with
 * MPI_THREAD_FUNNELED, and a thread that is stuck in MPI_Init or MPI_Finalize keeps nobody else.
 * Calls of all communicators and threads become exchanges, which the engine works on side by side:
 * two communicators used from two threads never wait for each other, in whatever order ranks get
 * to them.
 *
 * Messages are point to point, so that a wait that ends too late knows whom it waited for. A
 * communicator is a list of ranks and a message tag of its own.
 */
#ifndef XP_COMM_MPI_WORLD_H
#define XP_COMM_MPI_WORLD_H

#include <mpi.h>
#include <pthread.h>
#include "comm/mpi/board.h"
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
    bool done;                   /* under the engine's lock */
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
    xp_board board;
    xp_comm *all; /* the communicator of all ranks */

    pthread_t engine;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int wake;                        /* eventfd: there is something new for the engine */
    _Atomic bool sleeping;           /* the engine may be asleep on it */
    xp_mpi_exchange *queued;         /* under the lock */
    xp_mpi_exchange *active;         /* the engine's */
    bool started, stopping, stopped; /* under the lock */
    xp_status start_status;
    char start_error[XP_FAILURE_TEXT];
    int n_comms; /* under the lock */
    int n_tags;  /* made by this rank; under the lock */

    xp_failure_hooks hooks;
    _Atomic bool failed; /* `failure` is whole and constant */
    xp_failure failure;
    _Atomic bool outdone; /* another node found an earlier failure: it tells the user */
    MPI_Request notice;   /* a failure from another node */
    xp_failure noticed;

    xp_forward_map map;            /* who tells whom of a failure */
    int *forward_targets;          /* [map.max_targets] */
    MPI_Request *forward_requests; /* [map.max_targets] */
};

extern const xp_comm_provider xp_mpi_comm_provider;

/* world.c */
/** A communicator over these ranks of the world; takes a reference of the world. */
XP_NODISCARD xp_status xp_mpi_comm_create(xp_mpi_world *world, const int *ranks, int size, int rank,
                                          int tag, xp_comm **comm);
/** A tag that no other communicator has or had, should this rank be the first of a new one. */
int xp_mpi_next_tag(xp_mpi_world *world);

/* engine.c */
/** Start the thread, which connects to all ranks first. */
XP_NODISCARD xp_status xp_mpi_engine_start(xp_mpi_world *world);
/** @return true once it has connected or failed to (start_status), false when the time is over */
bool xp_mpi_engine_wait_start(xp_mpi_world *world, double seconds);
/** End the thread, in good order unless the ranks have failed: then MPI is left as it is.
 * @return false when the thread is stuck in MPI: the world must not be freed */
XP_NODISCARD bool xp_mpi_engine_stop(xp_mpi_world *world);
/** Hand the exchange to the engine and wait for its end. */
XP_NODISCARD xp_status xp_mpi_exchange_run(xp_mpi_exchange *exchange);
/** The engine looks around soon. Any thread. */
void xp_mpi_engine_wake(xp_mpi_world *world);

/* connect.c */
/** MPI_Init, node map, board. On the engine's thread. */
XP_NODISCARD xp_status xp_mpi_connect(xp_mpi_world *world);
xp_status xp_mpi_error(const char *what, int code);

/* exchange.c, on the engine's thread */
XP_NODISCARD xp_status xp_mpi_exchange_post(xp_mpi_exchange *exchange);
/** Take what has come. @return XP_OK also while something is missing (n_open > 0) */
XP_NODISCARD xp_status xp_mpi_exchange_poll(xp_mpi_exchange *exchange, bool *moved);
void xp_mpi_exchange_cancel(xp_mpi_exchange *exchange);
/** Who is missing, as the failure of all. */
void xp_mpi_exchange_report(xp_mpi_exchange *exchange);
/** True while data of a peer that has come is under way. */
bool xp_mpi_exchange_is_flowing(const xp_mpi_exchange *exchange);
/** The first peer that something is missing from, a rank of the world, or -1. */
int xp_mpi_exchange_waits_for(const xp_mpi_exchange *exchange);

/* failure.c */
/** This becomes the failure of all ranks unless there is one. Any thread.
 * @param culprit  a rank of the world, or -1 */
void xp_mpi_fail(xp_mpi_world *world, xp_failure_reason reason, int culprit, const char *text);
/** XP_OK, or the failure of all with its text as the last error. Never waits. */
xp_status xp_mpi_world_status(const xp_mpi_world *world);
/** Another process of the node has failed or died: make it ours. Engine's thread. */
void xp_mpi_look_around(xp_mpi_world *world);
/** Tell the other nodes. Engine's thread, once. */
void xp_mpi_relay_failure(xp_mpi_world *world);
/** See xp_comm_last_words(). */
xp_status xp_mpi_last_words(xp_comm *comm, xp_status status);

/* collectives.c */
xp_status xp_mpi_run(xp_comm *comm, const xp_comm_call *call);
/** Every rank's `n_bytes` (small) in rank order; part of a split or a window. */
XP_NODISCARD xp_status xp_mpi_share(xp_mpi_comm *comm, xp_comm_kind kind, const void *mine,
                                    void *all, int64_t n_bytes);

/* window.c */
xp_status xp_mpi_window_create(xp_comm *comm, xp_device *device, size_t n_bytes, const char *tag,
                               xp_window **window);
void xp_mpi_window_destroy(xp_window *window);

#endif
