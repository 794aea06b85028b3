/* The messages of one exchange. On the progress thread only. */
#include <stdio.h>
#include <string.h>
#include "comm/mpi/exchange.h"
#include "comm/mpi/failure.h"
#include "core/file.h"
#include "core/text.h"

static int peer_of(const xp_mpi_exchange *x, int i) {
    return (x->comm->base.rank + 1 + i) % x->comm->base.size;
}

static MPI_Request *request_at(xp_mpi_exchange *x, int message, int peer) {
    return &x->requests[message * x->comm->base.size + peer];
}

/* Messages of one pair and tag arrive in the order in which they were sent, so a first message and
 * the data behind it need one tag only. */
static xp_status send(xp_mpi_exchange *x, int message, int peer, const void *data, int64_t n) {
    const xp_mpi_comm *comm = x->comm;
    int code = MPI_Isend(data, (int)n, MPI_BYTE, comm->ranks[peer], comm->tag, comm->world->mpi,
                         request_at(x, message, peer));
    if (code != MPI_SUCCESS)
        return xp_mpi_error("MPI_Isend", code);
    x->n_open++;
    return XP_OK;
}

static xp_status receive(xp_mpi_exchange *x, int message, int peer, void *data, int64_t n) {
    const xp_mpi_comm *comm = x->comm;
    int code = MPI_Irecv(data, (int)n, MPI_BYTE, comm->ranks[peer], comm->tag, comm->world->mpi,
                         request_at(x, message, peer));
    if (code != MPI_SUCCESS)
        return xp_mpi_error("MPI_Irecv", code);
    x->n_open++;
    return XP_OK;
}

static int64_t piece(int64_t left) {
    return left < XP_MPI_PIECE ? left : XP_MPI_PIECE;
}

static xp_status send_more(xp_mpi_exchange *x, int peer) {
    xp_mpi_peer *p = &x->peers[peer];
    int64_t n = piece(p->send_bytes - p->sent);
    if (n == 0)
        return XP_OK;
    p->sent += n;
    return send(x, XP_MPI_DATA_OUT, peer, p->send + (p->sent - n), n);
}

static xp_status receive_more(xp_mpi_exchange *x, int peer) {
    xp_mpi_peer *p = &x->peers[peer];
    int64_t n = piece(p->recv_bytes - p->received);
    if (n == 0)
        return XP_OK;
    p->received += n;
    return receive(x, XP_MPI_DATA_IN, peer, p->recv + (p->received - n), n);
}

xp_status xp_mpi_exchange_post(xp_mpi_exchange *x) {
    int size = x->comm->base.size;
    x->n_open = 0;
    x->moved_s = xp_time_s();
    for (int i = 0; i < XP_MPI_N_MESSAGES * size; i++)
        x->requests[i] = MPI_REQUEST_NULL;
    for (int i = 0; i < size - 1; i++) {
        int peer = peer_of(x, i);
        XP_TRY(receive(x, XP_MPI_HEAD_IN, peer, &x->in[peer], sizeof x->in[peer]));
    }
    for (int i = 0; i < size - 1; i++) {
        int peer = peer_of(x, i);
        xp_mpi_peer *p = &x->peers[peer];
        p->sent = p->received = 0;
        p->arrived = false;
        x->out[peer].head = x->head;
        x->out[peer].head.n_bytes = p->send_bytes;
        int64_t n_with = p->send_bytes <= XP_MPI_INLINE ? p->send_bytes : 0;
        if (n_with > 0)
            memcpy(x->out[peer].data, p->send, (size_t)n_with);
        p->sent = n_with;
        XP_TRY(
            send(x, XP_MPI_HEAD_OUT, peer, &x->out[peer], (int64_t)sizeof(xp_mpi_head) + n_with));
        XP_TRY(send_more(x, peer));
    }
    return XP_OK;
}

static void describe(char text[160], const xp_mpi_head *head) {
    snprintf(text, 160, "%s of %lld x %s (%s)", xp_comm_kind_name((xp_comm_kind)head->kind),
             (long long)head->n, xp_dtype_name((xp_dtype)head->dtype),
             head->phase[0] ? head->phase : "no phase");
}

/* Calls that do not match are an error here, not garbage in a tensor. */
static bool matches(xp_mpi_exchange *x, int peer) {
    const xp_mpi_comm *comm = x->comm;
    const xp_mpi_head *mine = &x->head, *theirs = &x->in[peer].head;
    int me = comm->world->rank, other = comm->ranks[peer];
    char text[600], a[160], b[160];
    if (mine->kind != theirs->kind || mine->n != theirs->n || mine->dtype != theirs->dtype ||
        mine->op != theirs->op || mine->root != theirs->root || mine->step != theirs->step ||
        mine->n_call != theirs->n_call) {
        describe(a, mine);
        describe(b, theirs);
        snprintf(text, sizeof text,
                 "ranks do not make the same call: rank %d %s, rank %d %s (calls %llu and %llu)",
                 me, a, other, b, (unsigned long long)mine->n_call,
                 (unsigned long long)theirs->n_call);
        xp_mpi_fail(comm->world, XP_FAILURE_MISMATCH, -1, text);
        return false;
    }
    if (theirs->n_bytes == x->peers[peer].recv_bytes)
        return true;
    snprintf(text, sizeof text, "%s (%s): rank %d sends %lld bytes to rank %d, which expects %lld",
             xp_comm_kind_name((xp_comm_kind)mine->kind), x->phase ? x->phase : "no phase", other,
             (long long)theirs->n_bytes, me, (long long)x->peers[peer].recv_bytes);
    xp_mpi_fail(comm->world, XP_FAILURE_MISMATCH, -1, text);
    return false;
}

static xp_status take_head(xp_mpi_exchange *x, int peer) {
    xp_mpi_peer *p = &x->peers[peer];
    if (!matches(x, peer))
        return xp_mpi_world_status(x->comm->world);
    p->arrived = true;
    if (p->recv_bytes > XP_MPI_INLINE)
        return receive_more(x, peer);
    if (p->recv_bytes > 0)
        memcpy(p->recv, x->in[peer].data, (size_t)p->recv_bytes);
    p->received = p->recv_bytes;
    return XP_OK;
}

static xp_status take(xp_mpi_exchange *x, int index) {
    int peer = index % x->comm->base.size;
    x->n_open--;
    switch (index / x->comm->base.size) {
    case XP_MPI_HEAD_IN:
        return take_head(x, peer);
    case XP_MPI_DATA_OUT:
        return send_more(x, peer);
    case XP_MPI_DATA_IN:
        return receive_more(x, peer);
    default:
        return XP_OK;
    }
}

xp_status xp_mpi_exchange_poll(xp_mpi_exchange *x, bool *moved) {
    int n = 0;
    if (x->n_open == 0)
        return XP_OK;
    int code = MPI_Testsome(XP_MPI_N_MESSAGES * x->comm->base.size, x->requests, &n, x->indices,
                            x->statuses);
    if (code != MPI_SUCCESS)
        return xp_mpi_error("a message between ranks", code);
    if (n == MPI_UNDEFINED || n == 0)
        return XP_OK;
    *moved = true;
    x->moved_s = xp_time_s();
    for (int i = 0; i < n; i++)
        XP_TRY(take(x, x->indices[i]));
    return XP_OK;
}

/* What a peer sends from now on must not land in memory that its owner is about to free. Sends
 * cannot be called back; nobody makes progress on them after a failure. */
void xp_mpi_exchange_cancel(xp_mpi_exchange *x) {
    int size = x->comm->base.size;
    for (int peer = 0; peer < size; peer++) {
        const int incoming[] = {XP_MPI_HEAD_IN, XP_MPI_DATA_IN};
        for (int i = 0; i < 2; i++) {
            MPI_Request *request = request_at(x, incoming[i], peer);
            if (*request != MPI_REQUEST_NULL)
                MPI_Cancel(request);
        }
    }
}

static bool is_missing(const xp_mpi_exchange *x, int peer) {
    const xp_mpi_peer *p = &x->peers[peer];
    int size = x->comm->base.size;
    return peer != x->comm->base.rank &&
           (!p->arrived || x->requests[XP_MPI_DATA_IN * size + peer] != MPI_REQUEST_NULL ||
            x->requests[XP_MPI_DATA_OUT * size + peer] != MPI_REQUEST_NULL);
}

bool xp_mpi_exchange_is_flowing(const xp_mpi_exchange *x) {
    int size = x->comm->base.size;
    for (int peer = 0; peer < size; peer++)
        if (x->peers[peer].arrived && is_missing(x, peer))
            return true;
    return false;
}

int xp_mpi_exchange_waits_for(const xp_mpi_exchange *x) {
    for (int i = 0; i < x->comm->base.size - 1; i++) {
        int peer = peer_of(x, i);
        if (is_missing(x, peer))
            return x->comm->ranks[peer];
    }
    return -1;
}

/* What is known of a rank that does not come. */
static void add_missing(const xp_mpi_exchange *x, int peer, xp_text *who) {
    const xp_mpi_comm *comm = x->comm;
    const xp_liveness_slot *slot = xp_liveness_find(&comm->world->liveness, comm->ranks[peer]);
    xp_text_printf(who, "rank %d (", comm->ranks[peer]);
    if (x->peers[peer].arrived)
        xp_text_puts(who, "its data came to a stop");
    else
        xp_text_printf(who, "not at call %llu of this communicator",
                       (unsigned long long)x->head.n_call);
    if (slot) {
        char activity[XP_FAILURE_PHASE];
        xp_liveness_get_activity(slot, activity);
        xp_text_printf(who, "; last in %s", activity[0] ? activity : "nothing yet");
        if (xp_liveness_is_stopped(slot))
            xp_text_printf(who, "; its process %d is stopped", atomic_load(&slot->pid));
    } else {
        xp_text_puts(who, ", on another node");
    }
    xp_text_puts(who, ")");
}

void xp_mpi_exchange_report(xp_mpi_exchange *x) {
    const xp_mpi_comm *comm = x->comm;
    xp_text who = {0};
    int n_missing = 0;
    for (int i = 0; i < comm->base.size; i++) {
        if (!is_missing(x, i))
            continue;
        if (n_missing++ < 8) {
            xp_text_puts(&who, n_missing > 1 ? ", " : "");
            add_missing(x, i, &who);
        }
    }
    if (n_missing > 8)
        xp_text_printf(&who, " and %d more", n_missing - 8);
    int direct = xp_mpi_exchange_waits_for(x);
    int culprit = xp_liveness_find_culprit(&comm->world->liveness, direct);
    char text[XP_FAILURE_TEXT];
    const char *kind = xp_comm_kind_name((xp_comm_kind)x->head.kind);
    int n = snprintf(text, sizeof text, "rank %d waited %g s in %s%s%s%s for %s", comm->world->rank,
                     comm->base.timeout_s, kind, x->phase ? " (" : "", x->phase ? x->phase : "",
                     x->phase ? ")" : "", who.data ? who.data : "ranks that came too late");
    xp_text_free(&who);
    const xp_liveness_slot *slot = xp_liveness_find(&comm->world->liveness, culprit);
    if (culprit != direct && n > 0 && (size_t)n < sizeof text)
        snprintf(text + n, sizeof text - (size_t)n, "; in the end all wait for rank %d%s", culprit,
                 slot && xp_liveness_is_stopped(slot) ? ", whose process is stopped" : "");
    xp_mpi_fail(comm->world, XP_FAILURE_TIMEOUT, culprit, text);
}
