#include "expar/version.h"

const char *xp_version(void) {
    return XP_VERSION;
}

int xp_version_number(void) {
    return XP_VERSION_NUMBER;
}
