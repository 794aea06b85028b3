/**
 * GEMMs are cut into tiles that the rank's own threads multiply, so OpenBLAS must not start threads
 * for each of them. Its number of threads is the process's, and the program may use OpenBLAS as
 * well: it is 1 only while a GEMM of this library runs.
 */
#ifndef XP_DEVICE_CPU_BLAS_THREADS_H
#define XP_DEVICE_CPU_BLAS_THREADS_H

/** Until the matching end() OpenBLAS multiplies on the calling thread. Nests, also across threads. */
void xp_blas_one_thread_begin(void);
/** After the last end() its number of threads is what it was before the first begin(). */
void xp_blas_one_thread_end(void);

#endif
