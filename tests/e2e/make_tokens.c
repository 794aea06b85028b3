/* A .bin file of token ids that a small model can learn: four likely followers for each id. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "core/rng.h"

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: make_tokens FILE N VOCAB\n");
        return 2;
    }
    FILE *file = fopen(argv[1], "wb");
    if (!file)
        return 1;
    long n = strtol(argv[2], NULL, 10);
    uint64_t vocab = strtoull(argv[3], NULL, 10);
    uint64_t id = 0;
    for (long i = 0; i < n; i++) {
        id = xp_rng_below(1, id, xp_rng_below(2, 0, (uint64_t)i, 4), vocab);
        unsigned char bytes[4] = {(unsigned char)id, (unsigned char)(id >> 8),
                                  (unsigned char)(id >> 16), 0};
        if (fwrite(bytes, 1, sizeof bytes, file) != sizeof bytes)
            return 1;
    }
    return fclose(file) == 0 ? 0 : 1;
}
