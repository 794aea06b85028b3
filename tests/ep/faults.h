/** Bodies about faults, streams and memory; see cases.c for the list. */
#ifndef TESTS_EP_FAULTS_H
#define TESTS_EP_FAULTS_H

#include "harness.h"

bool ep_wrong_routing(ep_env *env);
bool ep_wrong_tensors(ep_env *env);
bool ep_rounds_in_order(ep_env *env);
bool ep_late_for_plan(ep_env *env);
bool ep_late_for_dispatch(ep_env *env);
bool ep_late_for_combine(ep_env *env);
bool ep_gives_up(ep_env *env);
bool ep_abort_while_reading(ep_env *env);
bool ep_thousand_iterations(ep_env *env);
bool ep_epochs_start_over(ep_env *env);
bool ep_two_slots(ep_env *env);
bool ep_worker_stream(ep_env *env);
bool ep_bytes(ep_env *env);
bool ep_null_device(ep_env *env);

#endif
