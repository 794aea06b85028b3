#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include "core/file.h"
#include "doctor.h"
#include "expar/status.h"
#include "train/trainer.h"
#include "tune/hardware.h"

#define MIB         ((double)(1 << 20))
#define GIB         ((double)(1 << 30))
#define SHM_MIB     64 /* of MPI and NCCL: for the machine, and for each GPU */
#define LEAST_FILES 1024

/* The value after "key   : " in /proc/meminfo, GiB. */
static double read_gib(const char *key) {
    char line[256];
    double kib = 0;
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0 && strchr(line, ':'))
            kib = atof(strchr(line, ':') + 1);
    if (file)
        fclose(file);
    return kib / (1024 * 1024);
}

static int count_numa_nodes(void) {
    int n = 0;
    char path[64];
    bool is_there = true;
    while (is_there && n < 1024) {
        snprintf(path, sizeof path, "/sys/devices/system/node/node%d", n);
        if (xp_path_exists(path, &is_there) != XP_OK)
            is_there = false;
        n += is_there;
    }
    xp_error_clear();
    return n > 0 ? n : 1;
}

static void report_memory(doctor *d) {
    char limit[64] = "";
    double bytes = 0;
    FILE *file = fopen("/sys/fs/cgroup/memory.max", "re");
    if (file && fscanf(file, "%lf", &bytes) == 1)
        snprintf(limit, sizeof limit, ", this container may use %.1f GiB", bytes / GIB);
    if (file)
        fclose(file);
    doctor_report(d, FOUND, "memory", NULL, "%.1f GiB, %.1f GiB free%s", read_gib("MemTotal"),
                  read_gib("MemAvailable"), limit);
}

/* MPI's and NCCL's processes exchange through it; expar's own windows do not need it. */
static void report_shared_memory(doctor *d) {
    struct statvfs s;
    char advice[256];
    const double needed = SHM_MIB * (1.0 + d->n_gpus);
    if (statvfs("/dev/shm", &s) != 0) {
        doctor_report(d, d->n_gpus > 1 ? BROKEN : MISSING, "/dev/shm",
                      "mount -t tmpfs tmpfs /dev/shm", "there is none: ranks as processes need it");
        return;
    }
    const double free_mib = (double)s.f_bavail * (double)s.f_frsize / MIB;
    const double size_mib = (double)s.f_blocks * (double)s.f_frsize / MIB;
    snprintf(advice, sizeof advice,
             "in a container: docker run --shm-size=2g (or --ipc=host); else mount -o "
             "remount,size=2g /dev/shm, or remove what lies there");
    if (free_mib >= needed)
        doctor_report(d, FOUND, "/dev/shm", NULL, "%.1f GiB, %.1f GiB free", size_mib / 1024,
                      free_mib / 1024);
    else
        doctor_report(d, d->n_gpus > 1 ? BROKEN : MISSING, "/dev/shm", advice,
                      "too small for ranks as processes: %.0f MiB, %.0f MiB free; MPI and NCCL "
                      "want %.0f",
                      size_mib, free_mib, needed);
}

static const char *limit_text(int resource, double unit, const char *name, char text[48]) {
    struct rlimit limit;
    if (getrlimit(resource, &limit) != 0)
        return "unknown";
    if (limit.rlim_cur == RLIM_INFINITY)
        return "unlimited";
    snprintf(text, 48, "%.0f%s", (double)limit.rlim_cur / unit, name);
    return text;
}

static double soft_limit(int resource) {
    struct rlimit limit;
    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return 1e18;
    return (double)limit.rlim_cur;
}

static void report_limits(doctor *d) {
    char lock[48], files[48], space[48];
    const bool few_files = soft_limit(RLIMIT_NOFILE) < LEAST_FILES;
    const bool small_space = soft_limit(RLIMIT_AS) < 1e18;
    const bool broken = small_space && d->n_gpus > 0;
    const char *advice = small_space ? "ulimit -v unlimited: GPUs reserve large address ranges"
                                     : "ulimit -n 65536: ranks hold files, sockets and libraries "
                                       "open";
    doctor_report(
        d,
        broken                     ? BROKEN
        : few_files || small_space ? MISSING
                                   : FOUND,
        "limits", advice, "open files (-n) %s, address space (-v) %s, locked memory (-l) %s",
        limit_text(RLIMIT_NOFILE, 1, "", files), limit_text(RLIMIT_AS, MIB, " MiB", space),
        limit_text(RLIMIT_MEMLOCK, MIB, " MiB", lock));
}

void doctor_machine(doctor *d) {
    char model[256];
    const int n_nodes = count_numa_nodes();
    xp_cpu_model_name(model, sizeof model);
    doctor_report(d, FOUND, "cores", NULL, "%d for this process (%s), %d NUMA node%s",
                  xp_train_n_cores(), model, n_nodes, n_nodes == 1 ? "" : "s");
    report_memory(d);
    report_shared_memory(d);
    report_limits(d);
}
