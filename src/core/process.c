#include "core/process.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool xp_process_is_stopped(int pid) {
    char path[64], line[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    size_t n = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    line[n] = '\0';
    /* "pid (name) state ...": the name may hold anything, so look behind its last bracket. */
    const char *end = strrchr(line, ')');
    return end && end[1] == ' ' && (end[2] == 'T' || end[2] == 't');
}

int xp_process_n_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}
