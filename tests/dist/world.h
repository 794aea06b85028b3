/** The ranks of a program under mpirun: connected by the library (own_world.c), or by the program,
 * which has its own MPI (guest_world.c). */
#ifndef TESTS_DIST_WORLD_H
#define TESTS_DIST_WORLD_H

#include "expar/comm.h"

/** @param timeout_s  of every wait, as far as the library sets it */
xp_status test_world_create(double timeout_s, xp_comm **world);
/** And MPI ends with it. NULL is accepted. */
void test_world_destroy(xp_comm *world);

#endif
