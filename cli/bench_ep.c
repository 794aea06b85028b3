#include "bench.h"
#include "cli.h"
int bench_ep(int argc, char **argv) {
    return argc > 0 && argv ? XP_EXIT_USAGE : XP_EXIT_FAILED;
}
