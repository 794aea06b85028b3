#include "device/cpu/blas_threads.h"

#include <pthread.h>

/* Only when this library is an OpenBLAS. */
extern void openblas_set_num_threads(int n_threads);
extern int openblas_get_num_threads(void);

/* The number belongs to the process, and so does who has changed it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int n_users, n_before;

void xp_blas_one_thread_begin(void) {
    pthread_mutex_lock(&lock);
    if (n_users++ == 0) {
        n_before = openblas_get_num_threads();
        openblas_set_num_threads(1);
    }
    pthread_mutex_unlock(&lock);
}

void xp_blas_one_thread_end(void) {
    pthread_mutex_lock(&lock);
    if (--n_users == 0)
        openblas_set_num_threads(n_before);
    pthread_mutex_unlock(&lock);
}
