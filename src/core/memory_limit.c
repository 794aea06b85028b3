#include "core/memory_limit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A limit file's number; 0 where it has none ("max") or is not there. */
static int64_t read_number(const char *folder, const char *name) {
    char path[4400], text[64] = "";
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    if (!fgets(text, sizeof text, file))
        text[0] = '\0';
    fclose(file);
    return strtoll(text, NULL, 10);
}

/* The group and all above it, up to the mount: every limit holds. */
static void take_limits(const char *mount, char *group, const char *name, xp_memory_limit *limit) {
    for (;;) {
        char folder[4300];
        snprintf(folder, sizeof folder, "%s%s", mount, group);
        const int64_t n_bytes = read_number(folder, name);
        if (n_bytes > 0 && (limit->n_bytes == 0 || n_bytes < limit->n_bytes))
            *limit = (xp_memory_limit){.n_bytes = n_bytes, .is_of_group = true};
        char *slash = strrchr(group, '/');
        if (!slash)
            return;
        *slash = '\0';
    }
}

static bool names_memory(const char *controllers) {
    for (const char *at = controllers; (at = strstr(at, "memory")) != NULL; at += 6)
        if ((at == controllers || at[-1] == ',') && (at[6] == '\0' || at[6] == ','))
            return true;
    return false;
}

xp_memory_limit xp_memory_limit_read(const char *cgroups, const char *mount, int64_t machine) {
    xp_memory_limit limit = {.n_bytes = machine};
    char line[4096], memory_mount[4096];
    FILE *file = fopen(cgroups, "re");
    snprintf(memory_mount, sizeof memory_mount, "%s/memory", mount);
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'),
             *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = '\0';
        if (controllers[1] == '\0')
            take_limits(mount, group, "memory.max", &limit);
        else if (names_memory(controllers + 1))
            take_limits(memory_mount, group, "memory.limit_in_bytes", &limit);
    }
    if (file)
        fclose(file);
    return limit;
}

xp_memory_limit xp_memory_limit_get(void) {
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    const int64_t machine = pages > 0 && page > 0 ? (int64_t)pages * page : 0;
    return xp_memory_limit_read("/proc/self/cgroup", "/sys/fs/cgroup", machine);
}
