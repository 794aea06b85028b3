/* A .bin file of token ids, for the shell drivers. */
#include <stdio.h>
#include <stdlib.h>
#include "common/tokens.h"

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: make_tokens FILE N VOCAB\n");
        return 2;
    }
    long n = strtol(argv[2], NULL, 10);
    unsigned vocab = (unsigned)strtoul(argv[3], NULL, 10);
    return tokens_write(argv[1], n, vocab) ? 0 : 1;
}
