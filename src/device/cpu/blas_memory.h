/**
 * OpenBLAS takes a buffer of 128 MiB of address space for each thread that multiplies, when it
 * first does; when there is none (ulimit -v) it tries for ever. So the buffers are taken when a
 * device is made, where an error can be told.
 */
#ifndef XP_DEVICE_CPU_BLAS_MEMORY_H
#define XP_DEVICE_CPU_BLAS_MEMORY_H

#include "expar/status.h"

/** Room for n_threads more threads of this process. XP_ENOMEM: nothing was taken. */
XP_NODISCARD xp_status xp_blas_memory_take(int n_threads);
/** These threads are gone; OpenBLAS keeps its buffers for the next. */
void xp_blas_memory_give_back(int n_threads);

#endif
