#include "comm/liveness.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "comm/shared_memory.h"
#include "core/file.h"
#include "core/process.h"

static size_t table_bytes(int n_slots) {
    return sizeof(xp_liveness_memory) + (size_t)n_slots * sizeof(xp_liveness_slot);
}

static xp_status make_pidfds(int n_slots, xp_liveness *table) {
    table->n_slots = n_slots;
    table->pidfds = malloc((size_t)n_slots * sizeof *table->pidfds);
    if (!table->pidfds)
        return xp_error(XP_ENOMEM, "no memory for the %d processes of this node", n_slots);
    for (int i = 0; i < n_slots; i++)
        table->pidfds[i] = -1;
    return XP_OK;
}

xp_status xp_liveness_create(int n_slots, xp_liveness *table) {
    void *memory = NULL;
    *table = (xp_liveness){.fd = -1};
    XP_TRY(xp_shared_create(table_bytes(n_slots), "expar-liveness", &table->fd, &memory));
    table->memory = memory;
    for (int i = 0; i < n_slots; i++)
        atomic_store(&table->memory->slots[i].waits_for, -1);
    return make_pidfds(n_slots, table);
}

xp_status xp_liveness_open(int n_slots, int pid, int fd, xp_liveness *table) {
    void *memory = NULL;
    *table = (xp_liveness){.fd = -1};
    XP_TRY(xp_shared_open(table_bytes(n_slots), pid, fd, &memory));
    table->memory = memory;
    return make_pidfds(n_slots, table);
}

void xp_liveness_join(xp_liveness *table, int index, int rank) {
    table->mine = &table->memory->slots[index];
    atomic_store(&table->mine->rank, rank);
    atomic_store(&table->mine->pid, (int32_t)getpid());
}

void xp_liveness_open_pidfds(xp_liveness *table) {
    for (int i = 0; i < table->n_slots; i++) {
        const xp_liveness_slot *slot = &table->memory->slots[i];
        if (slot != table->mine)
            table->pidfds[i] = (int)syscall(SYS_pidfd_open, atomic_load(&slot->pid), 0);
    }
}

void xp_liveness_close(xp_liveness *table) {
    for (int i = 0; i < table->n_slots && table->pidfds; i++)
        if (table->pidfds[i] >= 0)
            close(table->pidfds[i]);
    free(table->pidfds);
    if (table->memory)
        munmap(table->memory, table_bytes(table->n_slots));
    if (table->fd >= 0)
        close(table->fd);
    *table = (xp_liveness){.fd = -1};
}

/* In words, so that a reader in another process sees old or new bytes but never races. */
void xp_liveness_set_activity(xp_liveness *table, const char *activity) {
    uint64_t words[XP_FAILURE_PHASE / 8] = {0};
    size_t n = strlen(activity);
    memcpy(words, activity, n < sizeof words ? n : sizeof words - 1);
    for (size_t i = 0; i < sizeof words / 8; i++)
        atomic_store_explicit(&table->mine->activity[i], words[i], memory_order_relaxed);
}

void xp_liveness_get_activity(const xp_liveness_slot *slot, char text[XP_FAILURE_PHASE]) {
    uint64_t words[XP_FAILURE_PHASE / 8];
    for (size_t i = 0; i < sizeof words / 8; i++)
        words[i] = atomic_load_explicit(&slot->activity[i], memory_order_relaxed);
    memcpy(text, words, XP_FAILURE_PHASE);
    text[XP_FAILURE_PHASE - 1] = '\0';
}

const xp_liveness_slot *xp_liveness_find(const xp_liveness *table, int rank) {
    for (int i = 0; i < table->n_slots; i++)
        if (atomic_load(&table->memory->slots[i].rank) == rank)
            return &table->memory->slots[i];
    return NULL;
}

bool xp_liveness_fail(xp_liveness *table, const xp_failure *failure) {
    uint32_t expected = XP_LIVENESS_NOT_FAILED;
    if (!atomic_compare_exchange_strong(&table->memory->failed, &expected, XP_LIVENESS_WRITING))
        return false;
    table->memory->failure = *failure;
    atomic_store(&table->memory->failed, XP_LIVENESS_FAILED);
    return true;
}

bool xp_liveness_has_failed(const xp_liveness *table) {
    return atomic_load(&table->memory->failed) == XP_LIVENESS_FAILED;
}

void xp_liveness_get_failure(const xp_liveness *table, xp_failure *failure) {
    *failure = table->memory->failure;
}

void xp_liveness_settle(xp_liveness *table, xp_failure *failure) {
    if (xp_liveness_fail(table, failure))
        return;
    double deadline = xp_time_s() + 0.1; /* a winner that dies while it writes: do not wait */
    while (!xp_liveness_has_failed(table) && xp_time_s() < deadline)
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    if (xp_liveness_has_failed(table))
        xp_liveness_get_failure(table, failure);
}

/* Zombies count as ended: a launcher may be slow to collect its children. */
static bool has_ended(const xp_liveness *table, int index) {
    struct pollfd watch = {.fd = table->pidfds[index], .events = POLLIN};
    if (watch.fd >= 0)
        return poll(&watch, 1, 0) > 0;
    return kill(atomic_load(&table->memory->slots[index].pid), 0) != 0 && errno == ESRCH;
}

const xp_liveness_slot *xp_liveness_find_dead(const xp_liveness *table) {
    for (int i = 0; i < table->n_slots; i++) {
        const xp_liveness_slot *slot = &table->memory->slots[i];
        if (slot != table->mine && has_ended(table, i) && !atomic_load(&slot->finalized))
            return slot;
    }
    return NULL;
}

bool xp_liveness_is_stopped(const xp_liveness_slot *slot) {
    return xp_process_is_stopped(atomic_load(&slot->pid));
}

bool xp_liveness_is_waiting(const xp_liveness_slot *slot) {
    return (atomic_load(&slot->n_waits) > 0 || atomic_load(&slot->waits_for) >= 0) &&
           !xp_liveness_is_stopped(slot);
}

xp_wait_state xp_liveness_wait_state(const xp_liveness *table, int rank) {
    const xp_liveness_slot *slot = xp_liveness_find(table, rank);
    if (!slot)
        return XP_WAIT_UNKNOWN;
    return xp_liveness_is_waiting(slot) ? XP_WAIT_WAITING : XP_WAIT_BUSY;
}

int xp_liveness_find_culprit(const xp_liveness *table, int rank) {
    for (int i = 0; i < table->n_slots; i++) {
        const xp_liveness_slot *slot = &table->memory->slots[i];
        if (slot != table->mine && xp_liveness_is_stopped(slot))
            return atomic_load(&slot->rank);
    }
    int at = rank;
    for (int n_hops = 0; n_hops < table->n_slots; n_hops++) {
        const xp_liveness_slot *slot = xp_liveness_find(table, at);
        if (slot == table->mine)
            return rank; /* ranks that wait for each other: say whom this one waits for */
        int next = slot ? atomic_load(&slot->waits_for) : -1;
        if (next < 0)
            break;
        at = next;
    }
    return at;
}

void xp_liveness_wait_for_exits(const xp_liveness *table, int except, double seconds) {
    double deadline = xp_time_s() + seconds;
    for (;;) {
        bool alone = true;
        for (int i = 0; i < table->n_slots && alone; i++) {
            const xp_liveness_slot *slot = &table->memory->slots[i];
            alone = slot == table->mine || atomic_load(&slot->rank) == except ||
                    has_ended(table, i) || xp_liveness_is_stopped(slot);
        }
        if (alone || xp_time_s() > deadline)
            return;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}

void xp_liveness_activity_of(const xp_liveness *table, int rank, char text[XP_FAILURE_PHASE]) {
    const xp_liveness_slot *slot = xp_liveness_find(table, rank);
    text[0] = '\0';
    xp_liveness_get_activity(slot ? slot : table->mine, text);
}

void xp_liveness_describe_death(const xp_liveness_slot *slot, const char *host,
                                char text[XP_FAILURE_TEXT]) {
    char activity[XP_FAILURE_PHASE];
    xp_liveness_get_activity(slot, activity);
    snprintf(text, XP_FAILURE_TEXT,
             "rank %d is gone, last in %s: its process %d on %s was killed or crashed (dmesg tells "
             "when the system killed it because memory was short)",
             atomic_load(&slot->rank), activity[0] ? activity : "nothing yet",
             atomic_load(&slot->pid), host);
}

int xp_liveness_explain_timeout(const xp_liveness *table, int rank, const char *text,
                                char whole[XP_FAILURE_TEXT]) {
    int culprit = xp_liveness_find_culprit(table, rank);
    const xp_liveness_slot *slot = xp_liveness_find(table, culprit);
    char end[64] = "", state[64] = "";
    if (culprit != rank)
        snprintf(end, sizeof end, "; in the end all wait for rank %d", culprit);
    if (slot && xp_liveness_is_stopped(slot))
        snprintf(state, sizeof state, "; its process %d is stopped", atomic_load(&slot->pid));
    snprintf(whole, XP_FAILURE_TEXT, "%s%s%s", text, end, state);
    return culprit;
}
