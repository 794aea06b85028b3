/*
 * A communicator over the caller's MPI. MPI stays the caller's: it is never initialised or finalised
 * here, and every call is made on the thread that calls the library, on a duplicate of the caller's
 * communicator. Waits poll, so that they end at their time limit and when a rank of the node is lost.
 */
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "comm/callbacks/transport.h"
#include "comm/mpi/failure.h"
#include "core/file.h"

#define TIMEOUT_S 100.0
/* A wait spins, then leaves the core to others, then sleeps between looks. */
#define SPIN_S  30e-6
#define YIELD_S 2e-3
#define SLEEP_S 100e-6

typedef struct guest {
    MPI_Comm mpi;
    int rank, size;
    double timeout_s;
    xp_comm *comm; /* whose failure ends a wait; NULL while it is made */
    /* What MPI reads and writes: after a wait that ended too early it may still do so, and the
     * buffers stay. */
    char *out, *in;
    size_t out_bytes, in_bytes;
    int *counts[4]; /* [size] */
    bool pending;
} guest;

static int fail(const char *what, int code) {
    xp_mpi_error(what, code);
    return code != 0 ? code : -1;
}

static void look_again(double waited) {
    if (waited > YIELD_S)
        nanosleep(&(struct timespec){.tv_nsec = (long)(SLEEP_S * 1e9)}, NULL);
    else if (waited > SPIN_S)
        sched_yield();
}

/* Until the request is done. After a failure it is left to MPI, with the buffers. */
static int finish(guest *g, const char *what, MPI_Request *request) {
    const double began = xp_time_s();
    for (;;) {
        int done = 0;
        const int code = MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS)
            return fail(what, code);
        if (done)
            return 0;
        const double waited = xp_time_s() - began;
        g->pending = true;
        if (g->comm && xp_comm_async_error(g->comm) != XP_OK)
            return -1;
        if (waited > g->timeout_s) {
            xp_error(XP_ECOMM, "%s did not end within %g s: a rank does not come", what,
                     g->timeout_s);
            return -1;
        }
        g->pending = false;
        look_again(waited);
    }
}

static bool grow(char **data, size_t *n_bytes, size_t wanted) {
    if (*n_bytes >= wanted)
        return true;
    free(*data);
    *n_bytes = 0;
    *data = malloc(wanted);
    if (!*data) {
        xp_error(XP_ENOMEM, "no memory (%zu bytes) for a call of MPI", wanted);
        return false;
    }
    *n_bytes = wanted;
    return true;
}

static int all_gather(void *context, const void *send, void *recv, size_t n_bytes) {
    guest *g = context;
    MPI_Request request = MPI_REQUEST_NULL;
    const size_t all_bytes = n_bytes * (size_t)g->size;
    if (!grow(&g->out, &g->out_bytes, n_bytes) || !grow(&g->in, &g->in_bytes, all_bytes))
        return -1;
    memcpy(g->out, send, n_bytes);
    const int code = MPI_Iallgather(g->out, (int)n_bytes, MPI_BYTE, g->in, (int)n_bytes, MPI_BYTE,
                                    g->mpi, &request);
    if (code != MPI_SUCCESS)
        return fail("MPI_Iallgather", code);
    const int status = finish(g, "MPI_Iallgather", &request);
    if (status == 0)
        memcpy(recv, g->in, all_bytes);
    return status;
}

static int barrier(void *context) {
    guest *g = context;
    MPI_Request request = MPI_REQUEST_NULL;
    const int code = MPI_Ibarrier(g->mpi, &request);
    return code == MPI_SUCCESS ? finish(g, "MPI_Ibarrier", &request) : fail("MPI_Ibarrier", code);
}

/* Counts and places without gaps. @return all bytes */
static size_t pack(const int64_t *bytes, int n, int *counts, int *places) {
    int at = 0;
    for (int r = 0; r < n; r++) {
        counts[r] = (int)bytes[r];
        places[r] = at;
        at += counts[r];
    }
    return (size_t)at;
}

static int all_to_allv(void *context, const void *send, const int64_t *send_bytes,
                       const int64_t *send_offsets, void *recv, const int64_t *recv_bytes,
                       const int64_t *recv_offsets) {
    guest *g = context;
    MPI_Request request = MPI_REQUEST_NULL;
    const size_t out = pack(send_bytes, g->size, g->counts[0], g->counts[1]);
    const size_t in = pack(recv_bytes, g->size, g->counts[2], g->counts[3]);
    if (!grow(&g->out, &g->out_bytes, out + 1) || !grow(&g->in, &g->in_bytes, in + 1))
        return -1;
    for (int r = 0; r < g->size; r++)
        memcpy(g->out + g->counts[1][r], (const char *)send + send_offsets[r],
               (size_t)g->counts[0][r]);
    const int code = MPI_Ialltoallv(g->out, g->counts[0], g->counts[1], MPI_BYTE, g->in,
                                    g->counts[2], g->counts[3], MPI_BYTE, g->mpi, &request);
    if (code != MPI_SUCCESS)
        return fail("MPI_Ialltoallv", code);
    const int status = finish(g, "MPI_Ialltoallv", &request);
    for (int r = 0; r < g->size && status == 0; r++)
        memcpy((char *)recv + recv_offsets[r], g->in + g->counts[3][r], (size_t)g->counts[2][r]);
    return status;
}

static void bind(void *context, xp_comm *comm) {
    ((guest *)context)->comm = comm;
}

/* MPI frees a communicator together with all its ranks: not after a failure, when some are gone, and
 * not after the caller has finalised MPI. */
static void destroy(void *context, bool healthy) {
    guest *g = context;
    int finalized = 1;
    if (MPI_Finalized(&finalized) == MPI_SUCCESS && !finalized && healthy &&
        g->mpi != MPI_COMM_NULL)
        MPI_Comm_free(&g->mpi);
    if (g->pending)
        return;
    for (int i = 0; i < 4; i++)
        free(g->counts[i]);
    free(g->out);
    free(g->in);
    free(g);
}

static xp_status make_guest(MPI_Comm mpi, const guest *like, guest **made) {
    guest *g = calloc(1, sizeof *g);
    if (!g)
        return xp_error(XP_ENOMEM, "no memory for a communicator");
    g->mpi = mpi;
    g->timeout_s = like ? like->timeout_s : TIMEOUT_S;
    g->comm = like ? like->comm : NULL;
    int code = MPI_Comm_rank(mpi, &g->rank);
    if (code == MPI_SUCCESS)
        code = MPI_Comm_size(mpi, &g->size);
    if (code != MPI_SUCCESS) {
        free(g);
        return xp_mpi_error("MPI_Comm_rank", code);
    }
    bool all = true;
    for (int i = 0; i < 4; i++) {
        g->counts[i] = calloc((size_t)(unsigned)g->size, sizeof *g->counts[i]);
        all = all && g->counts[i];
    }
    *made = g;
    return all ? XP_OK : xp_error(XP_ENOMEM, "no memory for %d ranks", g->size);
}

static xp_status split(void *context, int color, xp_callback_transport *sub);

static xp_callback_transport transport_of(guest *g) {
    return (xp_callback_transport){.rank = g->rank,
                                   .size = g->size,
                                   .context = g,
                                   .all_gather = all_gather,
                                   .barrier = barrier,
                                   .all_to_allv = all_to_allv,
                                   .split = split,
                                   .bind = bind,
                                   .destroy = destroy};
}

/* All ranks of the node have come to the split and none has failed. */
static xp_status split(void *context, int color, xp_callback_transport *sub) {
    guest *g = context, *made = NULL;
    MPI_Comm mpi = MPI_COMM_NULL;
    const int code = MPI_Comm_split(g->mpi, color < 0 ? MPI_UNDEFINED : color, g->rank, &mpi);
    if (code != MPI_SUCCESS)
        return xp_mpi_error("MPI_Comm_split", code);
    if (mpi == MPI_COMM_NULL)
        return XP_OK;
    const xp_status status = make_guest(mpi, g, &made);
    if (made)
        *sub = transport_of(made);
    return status;
}

/* Errors of the duplicate are returned; the caller's communicator keeps its own error handler. */
static xp_status duplicate(MPI_Comm theirs, MPI_Comm *ours) {
    guest waits = {.timeout_s = TIMEOUT_S};
    MPI_Request request = MPI_REQUEST_NULL;
    int code = MPI_Comm_idup(theirs, ours, &request);
    if (code != MPI_SUCCESS)
        return xp_mpi_error("MPI_Comm_idup", code);
    if (finish(&waits, "MPI_Comm_idup", &request) != 0)
        return XP_ECOMM;
    code = MPI_Comm_set_errhandler(*ours, MPI_ERRORS_RETURN);
    return code == MPI_SUCCESS ? XP_OK : xp_mpi_error("MPI_Comm_set_errhandler", code);
}

/** See XP_MPI_GUEST_ENTRY. */
XP_API xp_status xp_mpi_guest(const void *mpi_comm, xp_comm **comm);

xp_status xp_mpi_guest(const void *mpi_comm, xp_comm **comm) {
    int initialized = 0, finalized = 0;
    MPI_Initialized(&initialized);
    MPI_Finalized(&finalized);
    if (!initialized || finalized)
        return xp_error(XP_EINVAL, "xp_comm_from_mpi: MPI is not initialized; the program calls "
                                   "MPI_Init first, and MPI_Finalize after xp_comm_destroy()");
    const MPI_Comm theirs = *(const MPI_Comm *)mpi_comm;
    if (theirs == MPI_COMM_NULL)
        return xp_error(XP_EINVAL, "xp_comm_from_mpi: the communicator is MPI_COMM_NULL");
    MPI_Comm ours = MPI_COMM_NULL;
    guest *g = NULL;
    XP_TRY(duplicate(theirs, &ours));
    const xp_status status = make_guest(ours, NULL, &g);
    if (status != XP_OK) {
        if (g)
            destroy(g, false);
        return status;
    }
    const xp_callback_args args = {.transport = transport_of(g), .timeout_s = TIMEOUT_S};
    return xp_callback_world_create(&args, comm);
}
