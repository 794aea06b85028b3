/** Bodies about faults, streams and memory; see cases.c for the list. */
#ifndef TESTS_EP_FAULTS_H
#define TESTS_EP_FAULTS_H

#include "harness.h"

/** One rank's group, plan and tensors; in setup.c. */
typedef struct ep_setup {
    ep_problem p;
    xp_ep_group *group;
    xp_ep_plan *plan;
    int32_t *ids;
    float *weights;
    char *x, *recv, *y;
    xp_tensor xt, rt, yt;
} ep_setup;

bool ep_make_setup_for(ep_env *env, ep_setup *s, const ep_problem *p);
bool ep_make_setup(ep_env *env, ep_setup *s, ep_routing routing);
void ep_free_setup(ep_env *env, ep_setup *s);

bool ep_wrong_routing(ep_env *env);
bool ep_unlike_configs(ep_env *env);
bool ep_wrong_tensors(ep_env *env);
bool ep_rounds_in_order(ep_env *env);
bool ep_late_for_plan(ep_env *env);
bool ep_late_for_dispatch(ep_env *env);
bool ep_late_for_combine(ep_env *env);
bool ep_late_for_receive(ep_env *env);
bool ep_gives_up(ep_env *env);
bool ep_gives_up_after_sending(ep_env *env);
bool ep_halves_in_order(ep_env *env);
bool ep_sent_and_left(ep_env *env);
bool ep_abort_while_reading(ep_env *env);
bool ep_thousand_iterations(ep_env *env);
bool ep_epochs_start_over(ep_env *env);
bool ep_two_slots(ep_env *env);
bool ep_worker_stream(ep_env *env);
bool ep_bytes(ep_env *env);
bool ep_null_device(ep_env *env);

#endif
