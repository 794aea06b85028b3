#include "ops/cpu/pool_scratch.h"

xp_status xp_cpu_reserve_scratch(xp_stream *stream, size_t n_bytes) {
    for (int worker = 0; worker < xp_pool_n_threads(xp_cpu_stream_pool(stream)); worker++)
        if (xp_cpu_stream_scratch(stream, worker, n_bytes) == NULL)
            return xp_cpu_scratch_error(n_bytes);
    return XP_OK;
}
