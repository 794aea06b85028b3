#include "ops/cpu/blas.h"

#include <cblas.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "core/file.h"
#include "core/rng.h"
#include "device/cpu/cpu_device.h"

/* OpenBLAS's threads look for work this long before they sleep (2^26 cycles, its default). */
static const struct timespec threads_asleep = {.tv_nsec = 40 * 1000 * 1000};

struct xp_cpu_blas_timer {
    int n;
    float *a, *b, *c; /* [n, n] */
};

const char *xp_cpu_blas_config(void) {
    return openblas_get_config();
}

const char *xp_cpu_blas_kernel(void) {
    return openblas_get_corename();
}

const char *xp_cpu_blas_better_kernel(void) {
    static const char *const plain[] = {"Prescott", "Core2", "Nehalem", "Penryn", "Dunnington"};
    const unsigned caps = xp_cpu_machine_caps();
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++)
        if (strcmp(xp_cpu_blas_kernel(), plain[i]) == 0)
            return caps & XP_CPU_AVX512 ? "SkylakeX" : caps & XP_CPU_AVX2 ? "Haswell" : NULL;
    return NULL;
}

xp_status xp_cpu_blas_timer_create(int n, xp_cpu_blas_timer **timer) {
    xp_cpu_blas_timer *t = calloc(1, sizeof *t);
    const size_t elements = (size_t)n * (size_t)n;
    if (!t)
        return xp_error(XP_ENOMEM, "no memory for a timer");
    t->n = n;
    t->a = malloc(elements * sizeof *t->a);
    t->b = malloc(elements * sizeof *t->b);
    t->c = malloc(elements * sizeof *t->c);
    if (!t->a || !t->b || !t->c) {
        xp_cpu_blas_timer_destroy(t);
        return xp_error(XP_ENOMEM, "no memory for three %d x %d matrices", n, n);
    }
    xp_rng_fill_normal(1, 1, 0, (int64_t)elements, 1.0F, t->a);
    xp_rng_fill_normal(1, 2, 0, (int64_t)elements, 1.0F, t->b);
    *timer = t;
    return XP_OK;
}

void xp_cpu_blas_timer_destroy(xp_cpu_blas_timer *timer) {
    if (!timer)
        return;
    free(timer->a);
    free(timer->b);
    free(timer->c);
    free(timer);
}

static void multiply(const xp_cpu_blas_timer *t) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, t->n, t->n, t->n, 1.0F, t->a, t->n, t->b,
                t->n, 0.0F, t->c, t->n);
}

double xp_cpu_blas_timer_run(xp_cpu_blas_timer *timer, int n_threads, int repeats) {
    const int before = openblas_get_num_threads();
    openblas_set_num_threads(n_threads);
    multiply(timer);
    const double began = xp_time_s();
    for (int i = 0; i < repeats; i++)
        multiply(timer);
    const double seconds = (xp_time_s() - began) / repeats;
    openblas_set_num_threads(before);
    nanosleep(&threads_asleep, NULL);
    return seconds;
}
