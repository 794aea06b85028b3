/**
 * Libraries that this backend opens when it first needs them: it loads without them, and lives in
 * a process that has loaded its own. The state of a library belongs to the device.
 */
#ifndef XP_OPS_CUDA_LIBRARIES_H
#define XP_OPS_CUDA_LIBRARIES_H

#include <stdbool.h>
#include "device/cuda/cuda_device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum xp_cuda_library { XP_CUBLASLT = 0, XP_CUDNN, XP_CUDA_N_LIBRARIES } xp_cuda_library;

/**
 * The library's handle for dlsym(), opened once a process. A library of another major version does
 * not count.
 * @param[out] why  when NULL is returned: what is missing and what to do; static storage
 */
void *xp_cuda_library_open(xp_cuda_library library, const char **why);

/** One line for people about library `index`, false past the last; see xp_cuda_backend. */
bool xp_cuda_library_describe(int index, bool *usable, char *text, size_t n_bytes);

/** A device's state of one library: made by the module that uses it, destroyed with the device. */
typedef struct xp_cuda_library_state {
    void *state;
    void (*destroy)(void *state);
} xp_cuda_library_state;

/**
 * The device's slot for a library, empty at first. Devices belong to one rank, and ops are issued
 * by one thread at a time: filling a slot needs no lock.
 * @return NULL when memory is out (the last error says so)
 */
xp_cuda_library_state *xp_cuda_library_slot(xp_cuda_device *device, xp_cuda_library library);

#ifdef __cplusplus
}
#endif
#endif
