/** The BLAS underneath: what it is, and how fast it is alone. For `expar doctor` and the benches.
 */
#ifndef XP_OPS_CPU_BLAS_H
#define XP_OPS_CPU_BLAS_H

#include "expar/status.h"

/** "OpenBLAS 0.3.21 ..., kernel SkylakeX". Static storage of the library. */
const char *xp_cpu_blas_config(void);
const char *xp_cpu_blas_kernel(void);
/**
 * OpenBLAS takes its plainest kernels, four times slower, on a CPU that it does not know because it is newer.
 * @return the value for the environment variable OPENBLAS_CORETYPE with which it starts with kernels that fit this
 * CPU; NULL: those that it has are right, or none fit better
 */
const char *xp_cpu_blas_better_kernel(void);

/** Square fp32 matrices, multiplied by cblas_sgemm with BLAS's own threads. */
typedef struct xp_cpu_blas_timer xp_cpu_blas_timer;
/** @param n  side of the matrices; random contents */
XP_NODISCARD xp_status xp_cpu_blas_timer_create(int n, xp_cpu_blas_timer **timer);
void xp_cpu_blas_timer_destroy(xp_cpu_blas_timer *timer);
/**
 * Seconds of one GEMM, mean of `repeats` in a row after one that warms up. BLAS has n_threads
 * threads meanwhile and one again afterwards; so no device of this process may compute at the same
 * time.
 */
double xp_cpu_blas_timer_run(xp_cpu_blas_timer *timer, int n_threads, int repeats);

#endif
