#include "device/gpu_environment.h"

#include <stdlib.h>

void xp_gpu_environment_set(void) {
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
}
