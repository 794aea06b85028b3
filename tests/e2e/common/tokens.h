/** Token ids that a small model can learn. */
#ifndef XP_TESTS_E2E_TOKENS_H
#define XP_TESTS_E2E_TOKENS_H

#include <stdbool.h>

/** A .bin file of `n` ids below `vocab`: four likely followers for each id. */
bool tokens_write(const char *path, long n, unsigned vocab);

#endif
