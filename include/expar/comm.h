/**
 * Ranks and collectives. All code is SPMD: every rank of a communicator makes the same calls in the
 * same order.
 *
 * Streams     A collective is queued on `stream`; buffers stay valid until the stream has passed
 *             it. With a NULL stream the buffers are host memory and the call returns with the
 *             result. On a stream of a GPU the buffers are memory of that GPU, and a communicator
 *             works with one device a rank (xp_comm_prepare).
 * Sums        Ascending rank order, in fp32 (fp64 for XP_F64), bf16 with one cast: every provider
 *             gives the same bits. Exception: over several nodes NCCL itself adds fp32, fp64, and
 *             bf16 beyond XP_COMM_MAX_ORDERED ranks, in an order that depends on the machine's
 *             wiring but not on the run; its bf16 sums are rounded at every hop.
 * Errors      XP_EINVAL: this call's arguments, nothing was done. XP_ECOMM: the world has failed (a
 *             rank is lost, late, gave up, or made another call); the last error names the rank and
 *             the phase, the same on every rank, and every later call returns it. Destroy the
 *             communicators then. Every wait has a time limit.
 *
 * What carries a collective on GPUs follows from the GPU placement of the ranks:
 *
 *   ranks                                      xp_thread_world          others
 *   all on one GPU                             kernels and copies       pinned host memory
 *   a GPU each, used by no other communicator  NCCL                     NCCL
 *   anything else                              pinned host memory       pinned host memory
 *
 * Through pinned host memory the caller waits for the stream.
 *
 * Do not reserve or free GPU memory while another rank's collective may be waiting for this one:
 * where ranks are threads, the driver may make one wait for the other.
 *
 * A failure that is found while a GPU waits for a peer ends that wait: the stream goes on with
 * wrong data. Ask xp_comm_async_error() after xp_stream_sync() and before results are used.
 */
#ifndef EXPAR_COMM_H
#define EXPAR_COMM_H

#include "expar/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct xp_comm xp_comm;

/** Most ranks whose sums on GPUs are in rank order, bf16 with one cast. */
#define XP_COMM_MAX_ORDERED 128

typedef enum xp_reduce_op { XP_SUM = 0, XP_MAX, XP_MIN } xp_reduce_op;

/**
 * Ranks that are threads of this process. The world must outlive its communicators. A failure
 * (abort, timeout, calls that do not match) is the world's: all its communicators return the first
 * root cause.
 */
typedef struct xp_thread_world xp_thread_world;
XP_API XP_NODISCARD xp_status xp_thread_world_create(int n_ranks, double timeout_s,
                                                     xp_thread_world **world);
XP_API void xp_thread_world_destroy(xp_thread_world *world);
/** Rank `rank`'s communicator over all ranks of the world; call from the thread that will be this
 * rank. */
XP_API XP_NODISCARD xp_status xp_thread_world_comm(xp_thread_world *world, int rank,
                                                   xp_comm **comm);

/** Rank `rank` cannot even take its communicator: the others return XP_ECOMM with `reason` (NULL:
 * the last error) at once. Any thread. */
XP_API void xp_thread_world_abort(xp_thread_world *world, int rank, const char *reason);

typedef struct xp_mpi_args {
    double init_timeout_s; /* how long a rank waits for all others to arrive */
    double timeout_s;      /* of every wait afterwards */
    /* Where ranks create their arrival files, best seen by all nodes. Borrowed.
     * NULL: $TMPDIR or /tmp */
    const char *rendezvous_folder;
} xp_mpi_args;

/**
 * Ranks that are processes under mpirun or srun. Loads the MPI shared object; at most one world a
 * process. MPI is initialised here and finalised when the last communicator is destroyed.
 *
 * After a failure, here or later, MPI cannot be left in good order: the process must end with
 * _exit(), not with exit() or a return from main().
 *
 * @return XP_OK; XP_ENOTSUP when MPI is not installed or was not built in; XP_ECOMM naming the
 * ranks that are absent
 */
XP_API XP_NODISCARD xp_status xp_mpi_world_create(const xp_mpi_args *args, xp_comm **comm);
/** The same with the default rendezvous folder. */
XP_API XP_NODISCARD xp_status xp_mpi_world_comm(double init_timeout_s, double timeout_s,
                                                xp_comm **comm);
/**
 * This rank cannot start: ranks that wait for it in xp_mpi_world_create(), now or later, return
 * XP_ECOMM with `reason` at once. For what goes wrong before this rank's own xp_mpi_world_create().
 * @param rendezvous_folder  that of xp_mpi_args; NULL: not known, which the ranks of this host hear
 * @param reason  NULL: the last error
 */
XP_API void xp_mpi_world_abort(const char *rendezvous_folder, const char *reason);
/** True when the environment says that a launcher (mpirun, srun) started this process as one of
 * several ranks. */
XP_API bool xp_mpi_launched(void);

/**
 * Ranks that your program has connected already: a table of functions that carry bytes between
 * them. A function returns 0 when it is done and anything else when it has failed, which ends the
 * communicator. It blocks, works on host memory, and is called on the thread that calls the
 * library: for collectives on a stream of a CPU, too, which then wait for the stream first.
 *
 * When a communicator is made the ranks find out with all_gather who runs on which node. Ranks of
 * one node (the same machine, boot and process number space) talk through shared memory from then
 * on, with the time limit below; a rank that is killed or gives up is heard there within 0.1 s.
 * Between nodes the functions carry the collectives, also those of later splits of all ranks; time
 * limits and lost ranks are then theirs to find. No function is called after
 * xp_comm_destroy() of the last communicator, and the library never calls one from a thread of its
 * own. Two communicators over the same table are used in the same order on all ranks.
 */
typedef struct xp_comm_callbacks {
    int rank, size;
    void *context; /* handed to the functions */
    /** Every rank's n_bytes, recv [size, n_bytes] in rank order. */
    int (*all_gather)(void *context, const void *send, void *recv, size_t n_bytes);
    /** May be NULL: an all_gather of one byte. */
    int (*barrier)(void *context);
    /** Part r of `send` to rank r, counts and offsets in bytes; what comes from rank r is
     * recv_bytes[r] at recv_offsets[r]. Parts stay below 64 MiB. May be NULL: made from all_gather,
     * which carries as much again for every rank. */
    int (*all_to_allv)(void *context, const void *send, const int64_t *send_bytes,
                       const int64_t *send_offsets, void *recv, const int64_t *recv_bytes,
                       const int64_t *recv_offsets);
    double timeout_s; /* of waits for ranks of the node and on GPUs; 0: 100 */
} xp_comm_callbacks;

/**
 * Collective. A communicator over the ranks of the table, which is copied; what `context` points to
 * must outlive it. Any number of them in a process, in any number of groups; ranks may be processes
 * or threads.
 *
 * xp_comm_split() makes groups of ranks of one node, and of all ranks. A group of some ranks of
 * several nodes is XP_ENOTSUP: make it from a table of its own.
 *
 * @return XP_OK; XP_EINVAL; XP_ECOMM: a function failed, or a rank could not set up shared memory
 */
XP_API XP_NODISCARD xp_status xp_comm_from_callbacks(const xp_comm_callbacks *callbacks,
                                                     xp_comm **comm);

/**
 * Collective over the ranks of the caller's MPI communicator. MPI stays the caller's: initialised
 * before, finalised after xp_comm_destroy(), called here on the calling thread alone, on a
 * duplicate of the communicator and with time limits (100 s). What xp_comm_callbacks says of nodes
 * holds; xp_comm_split() makes any groups. With MPI_THREAD_FUNNELED the calling thread is the one
 * that has initialised MPI.
 *
 * @param mpi_comm  points to an MPI_Comm, of the Open MPI that expar was built with
 * @return XP_OK; XP_EINVAL: MPI is not initialised, MPI_COMM_NULL; XP_ENOTSUP: no MPI, or another
 * one is loaded; XP_ECOMM
 */
XP_API XP_NODISCARD xp_status xp_comm_from_mpi(const void *mpi_comm, xp_comm **comm);

/**
 * Collective over the ranks of the caller's NCCL communicator, one rank a GPU: rank, size and the
 * exchange of bytes come from it (all-gathers through a small buffer on the GPU, on a stream of
 * their own; nothing else of the program may use the communicator meanwhile). The NCCL that the
 * process has loaded serves (2.28 or newer); no second one is. What xp_comm_callbacks says of nodes
 * holds.
 *
 * @param nccl_comm  an ncclComm_t; borrowed, must outlive the communicator; never aborted here
 * @param device  the GPU of nccl_comm; outlives the communicator
 * @return XP_OK; XP_EINVAL: another GPU, or none; XP_ENOTSUP: no NCCL is loaded, or an older one;
 * XP_ECOMM
 */
XP_API XP_NODISCARD xp_status xp_comm_from_nccl(void *nccl_comm, xp_device *device, xp_comm **comm);

XP_API void xp_comm_destroy(xp_comm *comm);
XP_API int xp_comm_rank(const xp_comm *comm);
XP_API int xp_comm_size(const xp_comm *comm);
/** True when all ranks run on one node: xp_comm_window_create() works. */
XP_API bool xp_comm_is_one_node(const xp_comm *comm);
/** The rank's node (0-based, by first appearance) and how many nodes the communicator spans. */
XP_API int xp_comm_node(const xp_comm *comm, int rank);
XP_API int xp_comm_n_nodes(const xp_comm *comm);

/** Collective. Ranks with equal `color` form a communicator, ordered by their rank here.
 * @param color  < 0: this rank takes part and gets NULL
 * @param[out] sub  the caller's to destroy, before the world */
XP_API XP_NODISCARD xp_status xp_comm_split(xp_comm *comm, int color, xp_comm **sub);

/**
 * Collective. Makes all that collectives on streams of `device` need (NCCL's communicator, staging
 * memory), so that nothing is made inside a step; otherwise the first of them does it. Does nothing
 * for devices that are no GPUs and for one rank. The communicator must be destroyed before the
 * device.
 *
 * @param max_bytes  of the largest collective to come, counted over all ranks' parts: larger ones
 * work as well, in more pieces. 0: not known
 * @return XP_OK; XP_ENOTSUP (on all ranks): the ranks are on several GPUs, and NCCL cannot serve;
 * XP_ECOMM; XP_ENOMEM: the world has failed
 */
XP_API XP_NODISCARD xp_status xp_comm_prepare(xp_comm *comm, xp_device *device, size_t max_bytes);

/** What the following collectives are for ("dispatch", "all-reduce", "checkpoint"): named in
 * errors. Static string. */
XP_API void xp_comm_set_phase(xp_comm *comm, const char *phase);
/**
 * Tell all ranks that this one cannot go on: waiting peers return XP_ECOMM with `reason` at once.
 * The first failure of a world stays. Any thread.
 * @param reason  NULL: the last error; a failure that all ranks have agreed on (a checkpoint's)
 * then stays that of the rank where it happened
 */
XP_API void xp_comm_abort(xp_comm *comm, const char *reason);
/** XP_OK, or the sticky failure of this communicator (the last error says which rank, phase, why).
 */
XP_API xp_status xp_comm_async_error(const xp_comm *comm);

/**
 * The error to print at the end of a failed run. Call it once, before the communicator is destroyed
 * and the process ends. Where ranks are processes every rank prints one line, and the rank that
 * found the failure prints the root cause last: here it waits until the others of its node have
 * ended, at most for the time limit.
 * @param status  of the run; its text is the last error
 * @return status, with the text to print as the last error
 */
XP_API xp_status xp_comm_final_error(xp_comm *comm, xp_status status);

/** recv[i] = op over ranks of send[i].
 * @param send, recv  [n] of XP_F32, XP_BF16, XP_F64, XP_I32 or XP_I64; may be equal */
XP_API XP_NODISCARD xp_status xp_comm_all_reduce(xp_comm *comm, const void *send, void *recv,
                                                 int64_t n, xp_dtype dtype, xp_reduce_op op,
                                                 xp_stream *stream);
/** Rank r gets elements [r * n_each, (r + 1) * n_each) of the sum over ranks.
 * @param send  [size, n_each]
 * @param recv  [n_each]; may be send + rank * n_each */
XP_API XP_NODISCARD xp_status xp_comm_reduce_scatter(xp_comm *comm, const void *send, void *recv,
                                                     int64_t n_each, xp_dtype dtype,
                                                     xp_stream *stream);
/** The ranks' parts in rank order.
 * @param send  [n_each]; may be recv + rank * n_each
 * @param recv  [size, n_each] */
XP_API XP_NODISCARD xp_status xp_comm_all_gather(xp_comm *comm, const void *send, void *recv,
                                                 int64_t n_each, xp_dtype dtype, xp_stream *stream);
/** Byte counts and byte offsets per peer, host arrays of `size` entries, borrowed until done. No
 * aliasing. */
typedef struct xp_alltoallv_args {
    const void *send;
    const int64_t *send_bytes, *send_offsets;
    void *recv;
    const int64_t *recv_bytes, *recv_offsets;
} xp_alltoallv_args;
XP_API XP_NODISCARD xp_status xp_comm_all_to_allv(xp_comm *comm, const xp_alltoallv_args *args,
                                                  xp_stream *stream);
/** Part r of `send` to rank r; what rank r sent is part r of `recv`.
 * @param send, recv  [size, n_bytes_each] bytes; must not overlap */
XP_API XP_NODISCARD xp_status xp_comm_all_to_all(xp_comm *comm, const void *send, void *recv,
                                                 int64_t n_bytes_each, xp_stream *stream);
/** Rank root's data on every rank.
 * @param data  [n_bytes] */
XP_API XP_NODISCARD xp_status xp_comm_broadcast(xp_comm *comm, void *data, int64_t n_bytes,
                                                int root, xp_stream *stream);
/** No rank passes before all have come to it; on a stream: none's later work starts before. */
XP_API XP_NODISCARD xp_status xp_comm_barrier(xp_comm *comm, xp_stream *stream);

/**
 * A window: memory of every rank that every rank of the communicator can address, by plain pointers
 * (threads), mappings (processes), peer access or CUDA IPC (GPUs).
 */
typedef struct xp_window xp_window;
/**
 * Collective. Contents start as zeros.
 * @param n_bytes  of this rank's part, > 0; may differ
 * @param tag  see xp_device_alloc()
 * @return XP_OK; XP_ENOTSUP or XP_EDEVICE: the ranks are on several nodes, the GPUs cannot reach
 * each other, or the system forbids it (the error says what to use instead); XP_ENOMEM; XP_ECOMM.
 * After an error the world has failed, unless the ranks are on several nodes
 */
XP_API XP_NODISCARD xp_status xp_comm_window_create(xp_comm *comm, xp_device *device,
                                                    size_t n_bytes, const char *tag,
                                                    xp_window **window);
/** Collective; before the communicator and the device are destroyed, and when what this rank has
 * queued on the window is done. After a failure it waits up to 1 s for ranks that still come;
 * memory that a rank may still write to is not freed. */
XP_API void xp_comm_window_destroy(xp_window *window);
/** Rank r's memory as this rank addresses it; NULL: no such rank. Valid as long as the window. */
XP_API void *xp_window_peer(const xp_window *window, int rank);

#ifdef __cplusplus
}
#endif
#endif
