/** Settings of CUDA that only a program may make: they hold for the whole process. */
#ifndef XP_DEVICE_GPU_ENVIRONMENT_H
#define XP_DEVICE_GPU_ENVIRONMENT_H

/**
 * For programs of expar's own, before the first use of a GPU: ranks that share one need hardware
 * queues of their own (CUDA_DEVICE_MAX_CONNECTIONS), and a kernel that is loaded late can wait for
 * one that waits for a peer (CUDA_MODULE_LOADING). What the environment says already stays.
 */
void xp_gpu_environment_set(void);

#endif
