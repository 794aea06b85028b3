/**
 * The learning rate as a function of the step: linear warm-up, constant, decay (TorchTitan's
 * warmup-stable-decay).
 */
#ifndef XP_TRAIN_SCHEDULE_H
#define XP_TRAIN_SCHEDULE_H

#include "config/config.h"

typedef enum xp_decay { XP_DECAY_LINEAR = 0, XP_DECAY_SQRT, XP_DECAY_COSINE } xp_decay;

typedef struct xp_schedule {
    int64_t warmup_steps, stable_steps, decay_steps; /* stable + decay + warmup = total + 1 */
    xp_decay decay;
    double min_factor;
    bool warmup_cut, decay_cut; /* what was asked for did not fit into the steps */
} xp_schedule;

/** With decay_ratio < 0 everything after the warm-up decays. XP_ECONFIG names a wrong decay_type.
 */
XP_NODISCARD xp_status xp_schedule_from_config(const xp_config *config, xp_schedule *schedule);
/** Steps that the schedule was made for. */
int64_t xp_schedule_total(const xp_schedule *schedule);
/** Factor of optimizer.lr at 0-based step s; steps past the schedule's end keep its last value. */
double xp_schedule_factor(const xp_schedule *schedule, int64_t s);

#endif
