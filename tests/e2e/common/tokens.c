#include "tokens.h"

#include <stdint.h>
#include <stdio.h>
#include "core/rng.h"

bool tokens_write(const char *path, long n, unsigned vocab) {
    FILE *file = fopen(path, "wbe");
    if (!file)
        return false;
    bool fine = true;
    uint64_t id = 0;
    for (long i = 0; i < n; i++) {
        id = xp_rng_below(1, id, xp_rng_below(2, 0, (uint64_t)i, 4), vocab);
        unsigned char bytes[4] = {(unsigned char)id, (unsigned char)(id >> 8),
                                  (unsigned char)(id >> 16), (unsigned char)(id >> 24)};
        fine = fwrite(bytes, 1, sizeof bytes, file) == sizeof bytes && fine;
    }
    return fclose(file) == 0 && fine;
}
