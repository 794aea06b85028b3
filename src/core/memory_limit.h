/** How much memory the processes of this program may take together. */
#ifndef XP_CORE_MEMORY_LIMIT_H
#define XP_CORE_MEMORY_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct xp_memory_limit {
    int64_t n_bytes;  /* 0: not known */
    bool is_of_group; /* a control group's limit, below the machine's memory */
} xp_memory_limit;

/** The least of the machine's memory and the limits of this process's control groups and their parents. */
xp_memory_limit xp_memory_limit_get(void);

/**
 * The same from these places, for tests.
 * @param cgroups  "/proc/self/cgroup"
 * @param mount    "/sys/fs/cgroup"
 * @param machine  bytes
 */
xp_memory_limit xp_memory_limit_read(const char *cgroups, const char *mount, int64_t machine);

#endif
