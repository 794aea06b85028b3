/** Ranks that the test has connected itself: communicators from a callback table. */
#ifndef TESTS_EP_GUESTS_H
#define TESTS_EP_GUESTS_H

#include "harness.h"

/** One rank's part in one case, as the runner does it. */
typedef void (*ep_rank_fn)(ep_env *env, const ep_case *c);

/** Processes, forked and connected by sockets. @param envs  [n_ranks] filled in but for comm; what
 * they failed with comes back */
bool ep_run_processes(ep_env *envs, int n_ranks, const ep_case *c, ep_rank_fn run);

/** A callback communicator over one of rank threads, which it owns.
 * @param nodes  [n_ranks] simulated, NULL: none */
xp_status ep_guest_of_threads(xp_comm *threads, double timeout_s, const int *nodes, xp_comm **comm);

#endif
