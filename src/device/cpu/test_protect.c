#include "device/cpu/test_protect.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RANGE_BYTES ((size_t)1 << 36) /* of addresses; pages are taken when they are written */
#define PAGE_BYTES  ((size_t)4096)
#define POISON      0xFF

/* The process's one range. A signal handler can reach nothing but a global. */
static struct {
    pthread_mutex_t lock;
    char *base;
    size_t used;
    int n_live; /* allocations */
    int n_open; /* pieces of work that run now */
    struct sigaction before;
} range = {.lock = PTHREAD_MUTEX_INITIALIZER};

bool xp_test_protect_holds(const void *data) {
    const char *at = data;
    return range.base != NULL && at >= range.base && at < range.base + RANGE_BYTES;
}

static void explain(int signal, siginfo_t *info, void *context) {
    static const char text[] =
        "\nhost code touched device memory outside of queued work: on a GPU this is a crash\n";
    (void)context;
    if (xp_test_protect_holds(info->si_addr) && write(STDERR_FILENO, text, sizeof text - 1) < 0)
        _exit(1);
    /* The access runs again, now with what was installed before. */
    sigaction(signal, &range.before, NULL);
}

static xp_status reserve_range(void) {
    if (range.base != NULL)
        return XP_OK;
    void *base =
        mmap(NULL, RANGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return xp_error(XP_ENOMEM, "protected memory: no address range");
    range.base = base;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = explain;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &range.before);
    return XP_OK;
}

static void protect(char *data, size_t n_bytes, bool open) {
    if (n_bytes > 0 && mprotect(data, n_bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
        _exit(1); /* half a protection proves nothing */
}

static size_t whole_pages(size_t n_bytes) {
    return (n_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

xp_status xp_test_protect_alloc(size_t n_bytes, void **data) {
    size_t taken = whole_pages(n_bytes);
    pthread_mutex_lock(&range.lock);
    xp_status status = reserve_range();
    if (status == XP_OK && taken > RANGE_BYTES - range.used)
        status = xp_error(XP_ENOMEM, "protected memory: the address range is used up");
    if (status == XP_OK) {
        char *at = range.base + range.used;
        range.used += taken;
        range.n_live++;
        protect(at, taken, true);
        memset(at, POISON, taken);
        if (range.n_open == 0)
            protect(at, taken, false);
        *data = at;
    }
    pthread_mutex_unlock(&range.lock);
    return status;
}

void xp_test_protect_free(void *data) {
    (void)data; /* allocations follow each other; only the last one's end says that all may go */
    pthread_mutex_lock(&range.lock);
    if (--range.n_live == 0) {
        protect(range.base, range.used, false);
        madvise(range.base, range.used, MADV_DONTNEED);
        range.used = 0;
    }
    pthread_mutex_unlock(&range.lock);
}

void xp_test_protect_open(void) {
    pthread_mutex_lock(&range.lock);
    if (range.n_open++ == 0)
        protect(range.base, range.used, true);
    pthread_mutex_unlock(&range.lock);
}

void xp_test_protect_close(void) {
    pthread_mutex_lock(&range.lock);
    if (--range.n_open == 0)
        protect(range.base, range.used, false);
    pthread_mutex_unlock(&range.lock);
}
