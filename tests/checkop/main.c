#include "device/gpu_environment.h"
#include "checkop.h"

int main(int argc, char **argv) {
    xp_gpu_environment_set();
    return ck_main(argc, argv);
}
