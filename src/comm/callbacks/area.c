#include "comm/callbacks/area.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "comm/callbacks/failure.h"
#include "comm/shared_memory.h"
#include "core/file.h"
#include "core/text.h"

/* How often a waiting rank looks for a failure or a peer that has left: nobody rings for those. */
#define LOOK_S 0.02
/* Who waits so long says for whom, for others that look for the end of a chain of waits. */
#define SHOW_WAIT_S 0.02
#define GRACE_S     4.0
#define END_S       1.0

/* ---- memory ------------------------------------------------------------------------------- */

static size_t slots_bytes(int n) {
    return (sizeof(xp_node_memory) + (size_t)n * sizeof(xp_node_slot) + 4095) / 4096 * 4096;
}

static size_t area_bytes(const xp_callback_comm *comm) {
    const int n = comm->area.n;
    const size_t buffers = comm->base.one_node ? (size_t)(n + 1) * XP_NODE_BUFFER_BYTES : 0;
    return slots_bytes(n) + buffers;
}

static void take_memory(xp_callback_comm *comm, void *memory) {
    xp_node_area *area = &comm->area;
    area->memory = memory;
    area->n_bytes = area_bytes(comm);
    area->buffers = comm->base.one_node ? (char *)memory + slots_bytes(area->n) : NULL;
}

xp_status xp_node_area_members(xp_callback_comm *comm) {
    xp_node_area *area = &comm->area;
    area->ranks = calloc((size_t)comm->base.size, sizeof *area->ranks);
    if (!area->ranks)
        return xp_error(XP_ENOMEM, "no memory for a communicator of %d ranks", comm->base.size);
    for (int r = 0; r < comm->base.size; r++) {
        if (comm->nodes[r] != comm->nodes[comm->base.rank])
            continue;
        area->index += r < comm->base.rank;
        area->ranks[area->n++] = r;
    }
    return XP_OK;
}

xp_status xp_node_area_offer(xp_callback_comm *comm, xp_node_offer *offer) {
    *offer = (xp_node_offer){.pid = (int32_t)getpid(), .fd = -1};
    if (comm->area.index > 0)
        return XP_OK;
    void *memory = NULL;
    int fd = -1;
    XP_TRY(xp_shared_create(area_bytes(comm), "expar-node", &fd, &memory));
    take_memory(comm, memory);
    offer->fd = fd;
    return XP_OK;
}

xp_status xp_node_area_open(xp_callback_comm *comm, const xp_node_offer *offer) {
    if (comm->area.index == 0)
        return XP_OK;
    void *memory = NULL;
    XP_TRY(xp_shared_open(area_bytes(comm), offer->pid, offer->fd, &memory));
    take_memory(comm, memory);
    return XP_OK;
}

void xp_node_area_close(xp_node_area *area) {
    if (area->memory)
        munmap(area->memory, area->n_bytes);
    free(area->ranks);
    *area = (xp_node_area){0};
}

char *xp_node_buffer(const xp_node_area *area, int i) {
    return area->buffers + i * XP_NODE_BUFFER_BYTES;
}

/* ---- barrier ------------------------------------------------------------------------------ */

static bool has_arrived(const xp_callback_comm *comm, int i) {
    const uint32_t at = atomic_load(&comm->area.memory->slots[i].arrived);
    return (int32_t)(at - comm->area.epoch) >= 0;
}

static bool all_arrived(const xp_callback_comm *comm) {
    for (int i = 0; i < comm->area.n; i++)
        if (!has_arrived(comm, i))
            return false;
    return true;
}

static bool arrived_or_failed(void *context) {
    const xp_callback_comm *comm = context;
    return all_arrived(comm) || atomic_load(&comm->world->failed);
}

static const xp_liveness_slot *liveness_of(const xp_callback_comm *comm, int i) {
    return xp_liveness_find(&comm->world->liveness, comm->ranks[comm->area.ranks[i]]);
}

/* The first that has not come; one that is in no wait itself before the others. -1: all are here */
static int find_missing(const xp_callback_comm *comm, bool *at_fault) {
    int first = -1;
    *at_fault = false;
    for (int i = 0; i < comm->area.n && !*at_fault; i++) {
        if (has_arrived(comm, i))
            continue;
        const xp_liveness_slot *slot = liveness_of(comm, i);
        *at_fault = slot && !xp_liveness_is_waiting(slot);
        first = first < 0 || *at_fault ? i : first;
    }
    return first;
}

static void report_timeout(xp_callback_comm *comm, const xp_comm_call *call, int missing,
                           bool at_fault) {
    char activity[XP_FAILURE_PHASE] = "", text[XP_FAILURE_TEXT];
    const int rank = comm->ranks[comm->area.ranks[missing]];
    const xp_liveness_slot *slot = liveness_of(comm, missing);
    if (slot)
        xp_liveness_get_activity(slot, activity);
    snprintf(text, sizeof text, "rank %d waited %g s in %s%s%s%s for rank %d (last in %s%s)",
             comm->world->rank, comm->base.timeout_s, xp_comm_kind_name(call->kind),
             call->phase ? " (" : "", call->phase ? call->phase : "", call->phase ? ")" : "", rank,
             activity[0] ? activity : "nothing yet", at_fault ? "" : "; it waits itself");
    xp_callback_fail_timeout(comm->world, rank, text);
}

/* A rank that has destroyed its communicators comes to no barrier any more. */
static bool report_left(xp_callback_comm *comm, const xp_comm_call *call) {
    for (int i = 0; i < comm->area.n; i++) {
        const xp_liveness_slot *slot = liveness_of(comm, i);
        if (has_arrived(comm, i) || !slot || !atomic_load(&slot->finalized))
            continue;
        char text[XP_FAILURE_TEXT];
        const int rank = comm->ranks[comm->area.ranks[i]];
        snprintf(text, sizeof text,
                 "rank %d waits in %s for rank %d, which has destroyed its communicators",
                 comm->world->rank, xp_comm_kind_name(call->kind), rank);
        xp_callback_fail(comm->world, XP_FAILURE_LOST, rank, text);
        return true;
    }
    return false;
}

static void show_wait(xp_callback_comm *comm, int missing) {
    const int rank = missing < 0 ? -1 : comm->ranks[comm->area.ranks[missing]];
    atomic_store_explicit(&comm->world->liveness.mine->waits_for, rank, memory_order_relaxed);
}

/* When time is up but every missing rank waits for others itself, those get a while longer to name
 * the rank at fault: they began later. */
static void wait_for_all(xp_callback_comm *comm, const xp_comm_call *call) {
    const double began = xp_time_s(), timeout_s = comm->base.timeout_s;
    const double grace_s = timeout_s < GRACE_S ? timeout_s : GRACE_S;
    xp_futex_event *event = &comm->area.memory->event;
    while (!xp_futex_event_wait(event, arrived_or_failed, comm, xp_time_s() + LOOK_S, LOOK_S)) {
        bool at_fault;
        const int missing = find_missing(comm, &at_fault);
        const double waited = xp_time_s() - began;
        if (missing < 0)
            break;
        if (waited > SHOW_WAIT_S)
            show_wait(comm, missing);
        if (report_left(comm, call))
            break;
        if (waited > timeout_s && (at_fault || waited > timeout_s + grace_s)) {
            report_timeout(comm, call, missing, at_fault);
            break;
        }
    }
    show_wait(comm, -1);
}

xp_status xp_node_barrier(xp_callback_comm *comm, const xp_comm_call *call) {
    xp_node_area *area = &comm->area;
    XP_TRY(xp_callback_world_status(comm->world));
    if (area->n < 2)
        return XP_OK;
    area->epoch++;
    atomic_store(&area->memory->slots[area->index].arrived, area->epoch);
    if (atomic_fetch_add(&area->memory->n_arrived, 1) + 1 == area->epoch * (uint32_t)area->n)
        xp_futex_event_signal(&area->memory->event);
    if (!arrived_or_failed(comm)) {
        atomic_fetch_add(&comm->world->liveness.mine->n_waits, 1);
        wait_for_all(comm, call);
        atomic_fetch_sub(&comm->world->liveness.mine->n_waits, 1);
    }
    return all_arrived(comm) ? XP_OK : xp_callback_world_status(comm->world);
}

/* ---- final barriers ----------------------------------------------------------------------- */

typedef struct end_wait {
    const xp_callback_comm *comm;
    int64_t id;
} end_wait;

static bool has_ended(const xp_callback_comm *comm, int i, int64_t id) {
    const xp_node_slot *slot = &comm->area.memory->slots[i];
    for (int k = 0; k < XP_NODE_ENDS; k++)
        if (atomic_load(&slot->ends[k]) == id + 1)
            return true;
    const xp_liveness_slot *process = liveness_of(comm, i);
    return process && atomic_load(&process->finalized);
}

static bool all_ended(void *context) {
    const end_wait *wait = context;
    for (int i = 0; i < wait->comm->area.n; i++)
        if (!has_ended(wait->comm, i, wait->id))
            return false;
    return true;
}

/* In a failed world a rank may never come: long enough for a copy under way, no longer. */
bool xp_node_final_barrier(xp_callback_comm *comm, int64_t id) {
    xp_node_area *area = &comm->area;
    if (area->n < 2)
        return true;
    xp_node_slot *mine = &area->memory->slots[area->index];
    const uint32_t at = atomic_fetch_add(&mine->n_ends, 1);
    atomic_store(&mine->ends[at % XP_NODE_ENDS], id + 1);
    xp_futex_event_signal(&area->memory->event);
    end_wait wait = {.comm = comm, .id = id};
    const double began = xp_time_s(), timeout_s = comm->base.timeout_s;
    const double failed_s = timeout_s < END_S ? timeout_s : END_S;
    while (!xp_futex_event_wait(&area->memory->event, all_ended, &wait, xp_time_s() + LOOK_S,
                                LOOK_S)) {
        const double waited = xp_time_s() - began;
        if (waited > timeout_s || (waited > failed_s && atomic_load(&comm->world->failed)))
            return false;
    }
    return true;
}
