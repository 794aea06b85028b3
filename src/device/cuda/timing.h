/** xp_cuda_backend.time_each. */
#ifndef XP_DEVICE_CUDA_TIMING_H
#define XP_DEVICE_CUDA_TIMING_H

#include "device/plugin.h"

xp_status xp_cuda_time_each(xp_stream *stream, const xp_timed_calls *calls, double *seconds);

#endif
