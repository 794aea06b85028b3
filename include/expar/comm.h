/**
 * Ranks and collectives. All code is SPMD: every rank of a communicator makes the same calls in the
 * same order.
 *
 * Reductions add in ascending rank order in fp32 (fp64 for XP_F64), so every provider gives the
 * same bits. Every wait has a timeout. A dead or late peer gives XP_ECOMM on every rank, with the
 * rank that is missing and the phase in the error; after that the communicator is unusable: destroy
 * it.
 *
 * Collectives are queued on `stream`. With a NULL stream the call returns when its result is there
 * (host buffers).
 *
 * On streams of GPUs, buffers are memory of that GPU, and a communicator works with one device a
 * rank (xp_comm_prepare). Who carries the data follows from where the ranks sit: each on a GPU of
 * its own: NCCL; rank threads on one GPU: kernels and copies; all else (processes on one GPU, some
 * ranks on one and some on another): staged through host memory, which makes the caller wait for
 * the stream. The order of sums is the same everywhere, with one exception: over several nodes NCCL
 * itself adds fp32, fp64, and bf16 beyond XP_COMM_MAX_ORDERED ranks, in an order that depends on
 * the machine's wiring but not on the run; its bf16 sums are rounded at every hop.
 *
 * Do not reserve or free GPU memory while another rank's collective may be waiting for this one:
 * where ranks are threads, the driver may make one wait for the other.
 *
 * A failure that is found while the GPU waits for a peer ends that wait: the stream goes on with
 * wrong data, and xp_comm_async_error() tells. Ask it after xp_stream_sync() and before results are
 * used; the next call on a communicator of the same world fails, too.
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
 * Ranks that are threads of this process. The world outlives its communicators. A failure (abort,
 * timeout, calls that do not match) is the world's: all its communicators return the first root
 * cause.
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

/**
 * Pretend that rank r runs on node nodes[r] (any numbers): to try multi-node code on one machine.
 * Ranks of different nodes then share no memory as far as the communicators can tell. Before the
 * first xp_thread_world_comm().
 * @param nodes  [n_ranks], copied
 */
XP_API XP_NODISCARD xp_status xp_thread_world_set_nodes(xp_thread_world *world, const int *nodes);

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

XP_API void xp_comm_destroy(xp_comm *comm);
XP_API int xp_comm_rank(const xp_comm *comm);
XP_API int xp_comm_size(const xp_comm *comm);
/** True when all ranks run on one node and can address each other's windows (xp_comm_window_create
 * works). */
XP_API bool xp_comm_shares_memory(const xp_comm *comm);
/** The rank's node (0-based, by first appearance) and how many nodes the communicator spans. */
XP_API int xp_comm_node(const xp_comm *comm, int rank);
XP_API int xp_comm_n_nodes(const xp_comm *comm);

/** Collective. Ranks with equal `color` form a communicator, ordered by their rank here. color < 0:
 * takes part, gets NULL. */
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
/** Tell all ranks that this one cannot go on; waiting peers return XP_ECOMM with `reason` at once.
 * With xp_last_error() as the reason, a failure that all ranks agreed on (a checkpoint's) stays
 * that of the rank where it happened. Any thread. */
XP_API void xp_comm_abort(xp_comm *comm, const char *reason);
/** XP_OK, or the sticky failure of this communicator (the last error says which rank, phase, why).
 */
XP_API xp_status xp_comm_async_error(const xp_comm *comm);

/**
 * What this rank should tell the user about a failed run; call it once, before the communicator is
 * destroyed and the process ends. Where ranks are processes, every rank prints one line, and the
 * rank that found the failure prints the root cause last: here it waits, at most for the timeout,
 * until the others have ended.
 * @param status  of the run; its text is the last error
 * @return status, with the text to print as the last error
 */
XP_API xp_status xp_comm_final_error(xp_comm *comm, xp_status status);

/** recv[i] = op over ranks of send[i]; `send` may equal `recv`. fp32, bf16 (summed in fp32, one
 * cast), fp64, i32, i64. */
XP_API XP_NODISCARD xp_status xp_comm_all_reduce(xp_comm *comm, const void *send, void *recv,
                                                 int64_t n, xp_dtype dtype, xp_reduce_op op,
                                                 xp_stream *stream);
/** Sum over ranks of send[size * n_each]; rank r gets elements [r * n_each, (r + 1) * n_each). recv
 * may be send + rank * n_each. */
XP_API XP_NODISCARD xp_status xp_comm_reduce_scatter(xp_comm *comm, const void *send, void *recv,
                                                     int64_t n_each, xp_dtype dtype,
                                                     xp_stream *stream);
/** recv[size * n_each] = the ranks' send[n_each] in rank order; send may be recv + rank * n_each.
 */
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
/** n_bytes_each to every rank; recv in rank order. */
XP_API XP_NODISCARD xp_status xp_comm_all_to_all(xp_comm *comm, const void *send, void *recv,
                                                 int64_t n_bytes_each, xp_stream *stream);
XP_API XP_NODISCARD xp_status xp_comm_broadcast(xp_comm *comm, void *data, int64_t n_bytes,
                                                int root, xp_stream *stream);
XP_API XP_NODISCARD xp_status xp_comm_barrier(xp_comm *comm, xp_stream *stream);

/**
 * Memory of every rank that every rank can address: the peer-pointer table of the p2p transport.
 * Collective. Contents start as zeros. On a GPU the pointers are for kernels and copies on
 * `device`; ranks on different GPUs get peer access to each other's, processes open each other's
 * memory (CUDA IPC). XP_ENOTSUP or XP_EDEVICE when the GPUs cannot reach each other or the system
 * forbids it: the error says what to use instead, and the world has failed.
 */
typedef struct xp_window xp_window;
XP_API XP_NODISCARD xp_status xp_comm_window_create(xp_comm *comm, xp_device *device,
                                                    size_t n_bytes, const char *tag,
                                                    xp_window **window);
/** Collective; before the communicator and the device go, and when what this rank has queued on the
 * window is done. After a failure it waits a moment for ranks that still come. */
XP_API void xp_comm_window_destroy(xp_window *window);
/** Rank r's memory as this rank addresses it. */
XP_API void *xp_window_peer(const xp_window *window, int rank);

#ifdef __cplusplus
}
#endif
#endif
