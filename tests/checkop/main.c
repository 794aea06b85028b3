#include "checkop.h"

int main(int argc, char **argv) {
    return ck_main(argc, argv);
}
