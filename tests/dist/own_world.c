#include "world.h"

xp_status test_world_create(double timeout_s, xp_comm **world) {
    return xp_mpi_world_comm(60, timeout_s, world);
}

void test_world_destroy(xp_comm *world) {
    xp_comm_destroy(world);
}
