/** One routed (token, expert) pair on its way, on CPUs and on GPUs; for C and for kernels. */
#ifndef XP_EP_COMMON_ASSIGNMENT_H
#define XP_EP_COMMON_ASSIGNMENT_H

#include <stdint.h>

/** One assignment as its source describes it to the expert's rank. A rank's assignments come in
 * (source, token, expert) order. */
typedef struct xp_ep_assignment {
    uint32_t expert; /* local expert; XP_EP_FIRST_ASSIGNMENT marks the first assignment of a row */
    float weight;
} xp_ep_assignment;
#define XP_EP_FIRST_ASSIGNMENT 0x80000000U

/** The same on GPUs, where the source has worked out what the expert's rank does with it. */
typedef struct xp_ep_gpu_assignment {
    int32_t row; /* its recv row there, over all rounds */
    uint32_t to; /* its assignment row there; in a plan of several rounds: its local expert.
                    XP_EP_FIRST_ASSIGNMENT marks the first assignment of a row */
    float weight;
    int32_t unused; /* one access of 16 bytes */
} xp_ep_gpu_assignment;

typedef enum xp_ep_routing_error {
    XP_EP_ROUTING_OK = 0,
    XP_EP_ROUTING_DUPLICATE,
    XP_EP_ROUTING_RANGE,
    XP_EP_ROUTING_TOO_MANY, /* value: tokens */
    XP_EP_ROUTING_NULL,
} xp_ep_routing_error;

#endif
