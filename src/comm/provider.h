/**
 * What a communication provider fills in, and what the layers above get beside expar/comm.h.
 *
 * comm.c checks arguments, puts calls on streams and hands each one to the provider as one blocking
 * request, so a provider hardly ever sees a stream. Calls on streams of GPUs go to the
 * communicator's collective backend (comm/device/backend.h), which uses the provider for what ranks
 * tell each other on the host.
 *
 * A provider's communicator starts with xp_comm. Whatever fails (a peer's abort, a timeout, calls
 * that do not match) becomes one record on every rank, the first root cause, and stays: every later
 * request returns it.
 */
#ifndef XP_COMM_PROVIDER_H
#define XP_COMM_PROVIDER_H

#include <stdatomic.h>
#include "comm/failure.h"
#include "expar/comm.h"

typedef enum xp_comm_kind {
    XP_COMM_BARRIER = 0,
    XP_COMM_ALL_REDUCE,
    XP_COMM_REDUCE_SCATTER,
    XP_COMM_ALL_GATHER,
    XP_COMM_ALL_TO_ALLV,
    XP_COMM_ALL_TO_ALL,
    XP_COMM_BROADCAST,
    XP_COMM_SPLIT, /* never inside a request: names split in errors and in the check that calls
                      match */
    XP_COMM_WINDOW,
    XP_COMM_N_KINDS
} xp_comm_kind;

/** "all-reduce", ... ; static. */
const char *xp_comm_kind_name(xp_comm_kind kind);

/** One collective, arguments already checked. */
typedef struct xp_comm_call {
    xp_comm_kind kind;
    xp_reduce_op op; /* ALL_REDUCE; REDUCE_SCATTER always sums */
    xp_dtype dtype;  /* of the elements counted by n; XP_U8 where n counts bytes */
    int root;        /* BROADCAST */
    int64_t n;       /* ALL_REDUCE, BROADCAST: all; the others: per rank */
    const void *send;
    void *recv;          /* BROADCAST: the data on every rank */
    xp_alltoallv_args v; /* ALL_TO_ALLV */
    const char *phase;   /* what for; static string */
} xp_comm_call;

/** What is known of another rank while somebody waits for it. */
typedef enum xp_wait_state {
    XP_WAIT_UNKNOWN = 0, /* a rank of another node: nobody here can see it */
    XP_WAIT_WAITING,     /* in a wait for others */
    XP_WAIT_BUSY         /* in none: late, stopped or at work */
} xp_wait_state;

typedef struct xp_comm_provider {
    const char *name; /* "thread", "mpi" */
    /** Do it and return when this rank's result is there and its inputs may be reused. */
    xp_status (*run)(xp_comm *comm, const xp_comm_call *call);
    /** The same on memory of the one GPU that all ranks use, with plain pointers: queued on the
     * stream, waits for other ranks' calls but not for the device. Not for one rank. May be NULL:
     * ranks that cannot address each other's memory. */
    xp_status (*run_on_device)(xp_comm *comm, const xp_comm_call *call, xp_stream *stream);
    xp_status (*split)(xp_comm *comm, int color, xp_comm **sub);
    void (*destroy)(xp_comm *comm);
    /** Make this the failure of the world on every rank unless it has one, and wake whoever waits.
     * The provider fills in the phase, and may replace the culprit of a timeout by the rank that
     * all wait for in the end. Any thread. */
    void (*fail)(xp_comm *comm, const xp_failure *failure);
    /** The world's failure, constant from then on, or NULL. Never waits. */
    const xp_failure *(*failure)(const xp_comm *comm);
    /** This rank starts (+1) or ends (-1) a wait of its own, outside requests: others that wait for
     * it should blame whom it waits for. May be NULL. */
    void (*mark_waiting)(xp_comm *comm, int change);
    /** Whether `rank` is in a wait itself, here or in a request. May be NULL: not known. */
    xp_wait_state (*wait_state)(const xp_comm *comm, int rank);
    xp_status (*window_create)(xp_comm *comm, xp_device *device, size_t n_bytes, const char *tag,
                               xp_window **window);
    void (*window_destroy)(xp_window *window);
    /**
     * The last barrier over what the ranks of the communicator have shown each other under `id`
     * (xp_window.id): returns when all are here, in a failed world also when some do not come.
     * @return true: nobody uses this rank's part any more; false: somebody may, so it must not be
     * freed
     */
    bool (*final_barrier)(xp_comm *comm, int64_t id);
    /** May be NULL. The phase has changed: for peers that want to know what this rank is doing. */
    void (*set_phase)(xp_comm *comm, const char *phase);
    /** May be NULL: the last error is what to tell. See xp_comm_final_error(). */
    xp_status (*final_error)(xp_comm *comm, xp_status status);
} xp_comm_provider;

/** First member of every provider's communicator. */
struct xp_comm {
    const xp_comm_provider *provider;
    int rank, size;
    int n_nodes;
    const int *nodes;       /* [size] 0-based by first appearance */
    const int *world_ranks; /* [size] names for people: ranks of the world this communicator was
                               split from */
    bool one_node;          /* one node, windows work */
    bool calls_back;   /* collectives call the caller's transport: only on the calling thread */
    bool same_process; /* a plain pointer of one rank is valid on all (threads of one process) */
    double timeout_s;
    int max_ctas; /* of a GPU that a collective takes at most; 0: as many as NCCL likes. Read when
                     collectives are prepared; equal on all ranks */
    _Atomic(const char *) phase;
    int64_t n_windows;               /* made or tried so far: the same on all ranks */
    struct xp_failure_hooks *hooks;  /* of the world; see comm/on_failure.h */
    struct xp_comm_backend *backend; /* of collectives on a GPU; NULL until they are prepared */
};

/** First member of every provider's window. */
struct xp_window {
    xp_comm *comm;
    int64_t id; /* the same on all ranks, of no other window of the communicator */
    int size;
    void **peers; /* [size] */
    void (*destroy)(xp_window *window);
};

/**
 * Number the nodes of a communicator by first appearance: `nodes`[n] from the world's own numbers,
 * of which `world_nodes` has one for each rank of the world.
 * @param ranks  [n] of the world
 * @return how many nodes there are
 */
int xp_comm_number_nodes(const int *world_nodes, const int *ranks, int n, int *nodes);

/** Every rank's `n_bytes` of host memory in rank order: what ranks tell each other while things are
 * made. Collective. */
XP_NODISCARD xp_status xp_comm_gather_bytes(xp_comm *comm, const char *phase, const void *mine,
                                            void *all, int64_t n_bytes);

/** What xp_comm_prepare() reserves on a GPU at most, besides NCCL's own memory: for predictions. */
size_t xp_comm_device_bytes(int n_ranks, size_t max_bytes);
/** The number by which people know this rank. */
int xp_comm_world_rank(const xp_comm *comm, int rank);
double xp_comm_timeout(const xp_comm *comm);
bool xp_comm_same_process(const xp_comm *comm);
/** Its collectives call the caller's transport, on the calling thread alone. */
bool xp_comm_calls_back(const xp_comm *comm);
/** What this rank does between collectives, for the error of a rank that misses it. Static string.
 */
void xp_comm_show_phase(xp_comm *comm, const char *phase);
/** Around a wait for other ranks that is no collective (flags in a window). */
void xp_comm_mark_waiting(xp_comm *comm, int change);
/** Whether `rank` is in a wait itself: then it is not the one to blame yet. */
xp_wait_state xp_comm_wait_state(const xp_comm *comm, int rank);
/** How many ranks besides this one are in that state. */
int xp_comm_count_in_state(const xp_comm *comm, xp_wait_state state);
/** wait_state is WAITING. */
bool xp_comm_is_waiting(const xp_comm *comm, int rank);

/**
 * Make this the failure of all ranks unless there is one. Any thread.
 * @return XP_ECOMM, with the text of the failure that holds as the last error
 */
xp_status xp_comm_fail_with(xp_comm *comm, const xp_failure *failure);
/** The same for a failure of this rank that has no better description (reason LIBRARY, culprit this
 * rank). */
xp_status xp_comm_fail(xp_comm *comm, const char *text);
/** The same for a wait that has ended: `peer` is the rank of `comm` that did not come. The provider
 * may know that the peer waits for another rank in turn, and names that one. */
xp_status xp_comm_fail_timeout(xp_comm *comm, int peer, const char *text);
/** The same for ranks that do not make the same call. */
xp_status xp_comm_fail_mismatch(xp_comm *comm, const char *text);

/** The record. @return false: the world has not failed, *failure is untouched */
bool xp_comm_get_failure(const xp_comm *comm, xp_failure *failure);

/**
 * The symbol that mpi_load.c looks for in libexpar_mpi.so: make the world communicator of this
 * process. Name of the symbol: XP_MPI_ENTRY.
 */
#define XP_MPI_ENTRY "xp_mpi_provider"
typedef xp_status (*xp_mpi_entry_fn)(const xp_mpi_args *args, xp_comm **comm);
/** And the one for xp_comm_from_mpi(). */
#define XP_MPI_GUEST_ENTRY "xp_mpi_guest"
typedef xp_status (*xp_mpi_guest_fn)(const void *mpi_comm, xp_comm **comm);

#endif
