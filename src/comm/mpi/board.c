#include "comm/mpi/board.h"

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
#include "core/file.h"
#include "core/process.h"

static size_t board_bytes(int n_slots) {
    return sizeof(xp_board_memory) + (size_t)n_slots * sizeof(xp_board_slot);
}

static xp_status make_watches(int n_slots, xp_board *board) {
    board->n_slots = n_slots;
    board->watches = malloc((size_t)n_slots * sizeof *board->watches);
    if (!board->watches)
        return xp_error(XP_ENOMEM, "no memory for the %d processes of this node", n_slots);
    for (int i = 0; i < n_slots; i++)
        board->watches[i] = -1;
    return XP_OK;
}

xp_status xp_board_create(int n_slots, xp_board *board) {
    void *memory = NULL;
    *board = (xp_board){.fd = -1};
    XP_TRY(xp_shared_create(board_bytes(n_slots), "expar-board", &board->fd, &memory));
    board->memory = memory;
    for (int i = 0; i < n_slots; i++)
        atomic_store(&board->memory->slots[i].waits_for, -1);
    return make_watches(n_slots, board);
}

xp_status xp_board_open(int n_slots, int pid, int fd, xp_board *board) {
    void *memory = NULL;
    *board = (xp_board){.fd = -1};
    XP_TRY(xp_shared_open(board_bytes(n_slots), pid, fd, &memory));
    board->memory = memory;
    return make_watches(n_slots, board);
}

void xp_board_join(xp_board *board, int index, int rank) {
    board->mine = &board->memory->slots[index];
    atomic_store(&board->mine->rank, rank);
    atomic_store(&board->mine->pid, (int32_t)getpid());
}

void xp_board_watch(xp_board *board) {
    for (int i = 0; i < board->n_slots; i++) {
        const xp_board_slot *slot = &board->memory->slots[i];
        if (slot != board->mine)
            board->watches[i] = (int)syscall(SYS_pidfd_open, atomic_load(&slot->pid), 0);
    }
}

void xp_board_close(xp_board *board) {
    for (int i = 0; i < board->n_slots && board->watches; i++)
        if (board->watches[i] >= 0)
            close(board->watches[i]);
    free(board->watches);
    if (board->memory)
        munmap(board->memory, board_bytes(board->n_slots));
    if (board->fd >= 0)
        close(board->fd);
    *board = (xp_board){.fd = -1};
}

/* In words, so that a reader in another process sees old or new bytes but never races. */
void xp_board_set_activity(xp_board *board, const char *activity) {
    uint64_t words[XP_FAILURE_PHASE / 8] = {0};
    size_t n = strlen(activity);
    memcpy(words, activity, n < sizeof words ? n : sizeof words - 1);
    for (size_t i = 0; i < sizeof words / 8; i++)
        atomic_store_explicit(&board->mine->activity[i], words[i], memory_order_relaxed);
}

void xp_board_get_activity(const xp_board_slot *slot, char text[XP_FAILURE_PHASE]) {
    uint64_t words[XP_FAILURE_PHASE / 8];
    for (size_t i = 0; i < sizeof words / 8; i++)
        words[i] = atomic_load_explicit(&slot->activity[i], memory_order_relaxed);
    memcpy(text, words, XP_FAILURE_PHASE);
    text[XP_FAILURE_PHASE - 1] = '\0';
}

const xp_board_slot *xp_board_find(const xp_board *board, int rank) {
    for (int i = 0; i < board->n_slots; i++)
        if (atomic_load(&board->memory->slots[i].rank) == rank)
            return &board->memory->slots[i];
    return NULL;
}

bool xp_board_fail(xp_board *board, const xp_failure *failure) {
    uint32_t expected = XP_BOARD_NOT_FAILED;
    if (!atomic_compare_exchange_strong(&board->memory->failed, &expected, XP_BOARD_WRITING))
        return false;
    board->memory->failure = *failure;
    atomic_store(&board->memory->failed, XP_BOARD_FAILED);
    return true;
}

bool xp_board_has_failed(const xp_board *board) {
    return atomic_load(&board->memory->failed) == XP_BOARD_FAILED;
}

void xp_board_get_failure(const xp_board *board, xp_failure *failure) {
    *failure = board->memory->failure;
}

/* Zombies count as ended: a launcher may be slow to collect its children. */
static bool has_ended(const xp_board *board, int index) {
    struct pollfd watch = {.fd = board->watches[index], .events = POLLIN};
    if (watch.fd >= 0)
        return poll(&watch, 1, 0) > 0;
    return kill(atomic_load(&board->memory->slots[index].pid), 0) != 0 && errno == ESRCH;
}

const xp_board_slot *xp_board_find_dead(const xp_board *board) {
    for (int i = 0; i < board->n_slots; i++) {
        const xp_board_slot *slot = &board->memory->slots[i];
        if (slot != board->mine && has_ended(board, i) && !atomic_load(&slot->parted))
            return slot;
    }
    return NULL;
}

bool xp_board_is_stopped(const xp_board_slot *slot) {
    return xp_process_is_stopped(atomic_load(&slot->pid));
}

bool xp_board_is_waiting(const xp_board_slot *slot) {
    return (atomic_load(&slot->n_waits) > 0 || atomic_load(&slot->waits_for) >= 0) &&
           !xp_board_is_stopped(slot);
}

int xp_board_find_culprit(const xp_board *board, int rank) {
    for (int i = 0; i < board->n_slots; i++) {
        const xp_board_slot *slot = &board->memory->slots[i];
        if (slot != board->mine && xp_board_is_stopped(slot))
            return atomic_load(&slot->rank);
    }
    int at = rank;
    for (int n_hops = 0; n_hops < board->n_slots; n_hops++) {
        const xp_board_slot *slot = xp_board_find(board, at);
        if (slot == board->mine)
            return rank; /* ranks that wait for each other: say whom this one waits for */
        int next = slot ? atomic_load(&slot->waits_for) : -1;
        if (next < 0)
            break;
        at = next;
    }
    return at;
}

void xp_board_outlast(const xp_board *board, int except, double seconds) {
    double deadline = xp_time_s() + seconds;
    for (;;) {
        bool alone = true;
        for (int i = 0; i < board->n_slots && alone; i++) {
            const xp_board_slot *slot = &board->memory->slots[i];
            alone = slot == board->mine || atomic_load(&slot->rank) == except ||
                    has_ended(board, i) || xp_board_is_stopped(slot);
        }
        if (alone || xp_time_s() > deadline)
            return;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}
