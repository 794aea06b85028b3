/** The ranks of a program under mpirun: connected by the library (own_world.c), or by the program,
 * which has its own MPI (guest_world.c). */
#ifndef TESTS_DIST_WORLD_H
#define TESTS_DIST_WORLD_H

#include "expar/comm.h"

/** @param init_timeout_s, timeout_s  of the start and of every wait, as far as the library sets them */
xp_status test_world_create(double init_timeout_s, double timeout_s, xp_comm **world);
/** And MPI ends with it. NULL is accepted. */
void test_world_destroy(xp_comm *world);

#endif
