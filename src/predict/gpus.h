/** What GPUs can do at best: for the planner, and for what mfu divides by. */
#ifndef XP_PREDICT_GPUS_H
#define XP_PREDICT_GPUS_H

#include <stdbool.h>

typedef struct xp_gpu {
    const char *name;  /* "h200": what users type */
    const char *model; /* part of the GPU model name that the driver reports, as in "NVIDIA H200" */
    double memory_gib; /* that its driver reports */
    double bf16_tflops; /* dense, data sheet */
    double memory_tbps; /* TB/s, data sheet */
    double link_gbps;   /* to the other GPUs of a node, GB/s one way, data sheet */
    bool measured;      /* expar's kernels were timed on it */
} xp_gpu;

/** The i-th of the table, NULL past the last. */
const xp_gpu *xp_gpu_at(int i);
/** By name, in any case; NULL when it is not in the table. */
const xp_gpu *xp_gpu_named(const char *name);
/** By GPU model name as the driver reports it ("NVIDIA H200"); NULL when it is not in the table. */
const xp_gpu *xp_gpu_of_model(const char *model);

#endif
