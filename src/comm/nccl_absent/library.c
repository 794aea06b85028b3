/* Built without NCCL's headers. */
#include <stdio.h>
#include "comm/nccl/calls.h"

const void *xp_nccl_open(char *text, size_t n_bytes) {
    snprintf(text, n_bytes,
             "this build has no NCCL: several GPUs need it; install libnccl-dev "
             "(2.28 or newer) and build again");
    return NULL;
}

const void *xp_nccl_open_loaded(char *text, size_t n_bytes) {
    return xp_nccl_open(text, n_bytes);
}
