#include "device/cpu/blas_memory.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>

extern int openblas_get_num_threads(void);

#define BUFFER_BYTES ((size_t)129 << 20) /* OpenBLAS's BUFFER_SIZE on x86-64 is 128 MiB */
#define MAX_BUFFERS  64                  /* well below its table's length */

/* OpenBLAS has one table of buffers in a process, so their number is the process's too. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int n_users;   /* threads that may multiply at the same time */
static int n_buffers; /* that OpenBLAS has been made to take */
static int n_own;     /* of OpenBLAS's own threads, which take theirs when they start: after a fork
                         that may be now; 0: not known yet */

static bool has_room(void) {
    void *probe = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return probe != MAP_FAILED && munmap(probe, BUFFER_BYTES) == 0;
}

/* Hold as many buffers at once as are wanted, which makes OpenBLAS map them, and let them go. */
static xp_status grow(int wanted) {
    void *(*take)(int) = (void *(*)(int))(uintptr_t)dlsym(RTLD_DEFAULT, "blas_memory_alloc");
    void (*release)(void *) = (void (*)(void *))(uintptr_t)dlsym(RTLD_DEFAULT, "blas_memory_free");
    void *held[MAX_BUFFERS];
    int n = 0;
    if (!take || !release) /* another BLAS */
        return XP_OK;
    while (n < wanted && has_room())
        held[n++] = take(0);
    for (int i = 0; i < n; i++)
        release(held[i]);
    n_buffers = n > n_buffers ? n : n_buffers;
    if (n < wanted)
        return xp_error(
            XP_ENOMEM,
            "out of memory: no 128 MiB of address space for the GEMM's "
            "buffer %d of %d (one a thread); raise the limit (ulimit -v) or use fewer ranks "
            "or threads",
            n + 1, wanted);
    return XP_OK;
}

xp_status xp_blas_memory_take(int n_threads) {
    xp_status status = XP_OK;
    pthread_mutex_lock(&lock);
    if (n_own == 0)
        n_own = openblas_get_num_threads();
    int wanted = n_users + n_threads + n_own - 1;
    wanted = wanted < MAX_BUFFERS ? wanted : MAX_BUFFERS;
    if (wanted > n_buffers)
        status = grow(wanted);
    if (status == XP_OK)
        n_users += n_threads;
    pthread_mutex_unlock(&lock);
    return status;
}

void xp_blas_memory_give_back(int n_threads) {
    pthread_mutex_lock(&lock);
    n_users -= n_threads;
    pthread_mutex_unlock(&lock);
}
