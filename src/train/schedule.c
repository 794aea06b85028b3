#include "train/schedule.h"

#include <math.h>
#include <string.h>

static xp_status decay_from_name(const char *name, xp_decay *decay) {
    static const char *const names[] = {"linear", "sqrt", "cosine"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            *decay = (xp_decay)i;
            return XP_OK;
        }
    }
    return xp_error(XP_ECONFIG, "lr_scheduler.decay_type is \"%s\"; there are linear, sqrt, cosine",
                    name);
}

xp_status xp_schedule_from_config(const xp_config *config, xp_schedule *schedule) {
    xp_schedule s = {.min_factor = config->lr_scheduler.min_lr_factor};
    const char *type = config->lr_scheduler.decay_type;
    XP_TRY(decay_from_name(type ? type : "linear", &s.decay));
    int64_t total = config->lr_scheduler.total_steps;
    if (total <= 0)
        total = config->training.steps;
    s.warmup_steps = config->lr_scheduler.warmup_steps;
    s.warmup_cut = s.warmup_steps > total;
    if (s.warmup_cut)
        s.warmup_steps = total;
    s.decay_steps = total - s.warmup_steps;
    if (config->lr_scheduler.decay_ratio >= 0) {
        /* rint() rounds halves to even, as Python's round() does. */
        int64_t asked = (int64_t)rint((double)total * config->lr_scheduler.decay_ratio);
        s.decay_cut = asked > s.decay_steps;
        if (!s.decay_cut)
            s.decay_steps = asked;
    }
    /* One virtual step more, so that the last real step's rate is not 0. */
    s.stable_steps = total + 1 - s.warmup_steps - s.decay_steps;
    *schedule = s;
    return XP_OK;
}

int64_t xp_schedule_total(const xp_schedule *schedule) {
    return schedule->warmup_steps + schedule->stable_steps + schedule->decay_steps - 1;
}

double xp_schedule_factor(const xp_schedule *schedule, int64_t s) {
    if (s < schedule->warmup_steps)
        return (double)(s + 1) / (double)schedule->warmup_steps;
    int64_t flat_until = schedule->warmup_steps + schedule->stable_steps;
    if (s < flat_until || schedule->decay_steps == 0)
        return 1;
    double progress = (double)(s + 1 - flat_until) / (double)schedule->decay_steps;
    if (progress > 1)
        progress = 1;
    double factor = 1 - progress;
    if (schedule->decay == XP_DECAY_SQRT)
        factor = 1 - sqrt(progress);
    else if (schedule->decay == XP_DECAY_COSINE)
        factor = 0.5 * (1 + cos(M_PI * progress));
    return schedule->min_factor + (1 - schedule->min_factor) * factor;
}
