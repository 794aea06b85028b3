#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "core/file.h"
#include "device/plugin.h"
#include "disk_rate.h"
#include "doctor.h"
#include "self_test.h"

#define LAUNCH_S 30 /* mpirun, until all ranks have answered */
#define GIB      ((double)(1 << 30))

static void report_test(doctor *d, xp_status status, const char *name, const char *text,
                        const char *advice) {
    if (status == XP_OK)
        doctor_report(d, FOUND, name, NULL, "%s", text);
    else
        doctor_report(d, BROKEN, name, advice, "%s", xp_last_error());
}

/* ---- processes --------------------------------------------------------------------------- */

/* Runs this program as so many ranks, which make a sum. The error that they print, else their last line. */
static bool launch(int n_ranks, const char *exe, char *last, size_t n_last) {
    char command[4096], line[512];
    bool is_error = false;
    snprintf(command, sizeof command,
             "timeout -k 2 %d mpirun %s --oversubscribe -n %d '%s' doctor 2>&1 < /dev/null",
             LAUNCH_S, geteuid() == 0 ? "--allow-run-as-root" : "", n_ranks, exe);
    snprintf(last, n_last, "no answer within %d s", LAUNCH_S);
    fflush(stdout);
    FILE *pipe = popen(command, "r");
    while (pipe && fgets(line, sizeof line, pipe)) {
        line[strcspn(line, "\n")] = '\0';
        if (!is_error && line[strspn(line, " -")])
            snprintf(last, n_last, "%s", line);
        is_error = is_error || strncmp(line, "error:", 6) == 0;
    }
    const int how = pipe ? pclose(pipe) : -1;
    return how != -1 && WIFEXITED(how) && WEXITSTATUS(how) == 0;
}

static void report_processes(doctor *d) {
    static const char name[] = "processes (mpirun)";
    char exe[2048] = "", last[512], why[512], advice[256];
    const int n_ranks = d->n_ranks > 0 ? (int)d->n_ranks : d->n_gpus > 2 ? d->n_gpus : 2;
    const doctor_finding otherwise = d->n_ranks > 0 || d->n_gpus > 1 ? BROKEN : MISSING;
    if (!xp_plugin_open("libexpar_mpi.so", why, sizeof why)) {
        if (otherwise == BROKEN)
            doctor_report(d, BROKEN, name, "see the line about the MPI provider above",
                          "this build has no MPI, and a rank with a GPU of its own is a process");
        return;
    }
    const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0 || system("command -v mpirun > /dev/null 2>&1") != 0) {
        doctor_report(d, otherwise, name,
                      "apt-get install openmpi-bin, or put its folder on PATH; ranks as threads "
                      "(NGPU=n) work without it on the CPU",
                      "there is no mpirun");
        return;
    }
    snprintf(advice, sizeof advice,
             "run it by hand: mpirun -n %d expar doctor; on the CPU ranks as threads (NGPU=n) work "
             "without it",
             n_ranks);
    const bool ok = launch(n_ranks, exe, last, sizeof last);
    doctor_report(d, ok ? FOUND : otherwise, name, advice, "%s", last);
}

/* ---- the dump folder --------------------------------------------------------------------- */

/* What is there at the path itself, or above it: `expar train` makes the rest. NULL: no memory. */
static char *nearest_folder(const char *folder) {
    char *path = strdup(folder);
    bool is_there = false;
    while (path && xp_path_exists(path, &is_there) == XP_OK && !is_there) {
        char *slash = strrchr(path, '/');
        if (!slash)
            snprintf(path, strlen(path) + 1, "%s", path[0] ? "." : "");
        else
            slash[slash == path] = '\0';
        if (!slash)
            break;
    }
    xp_error_clear();
    return path;
}

static void report_disk(doctor *d, const char *folder) {
    static const char advice[] = "free some of it, or set --job.dump_folder to another disk";
    xp_disk_rate rate;
    if (xp_measure_disk(folder, &rate) != XP_OK) {
        doctor_report(d, BROKEN, "disk", advice, "%s", xp_last_error());
        return;
    }
    doctor_report(
        d, FOUND, "disk", NULL,
        "%.0f MB/s written and synced (%.0f MB tried), %.1f GiB free; 10 GB of checkpoint "
        "take about %.0f s",
        rate.bytes_per_s / 1e6, (double)rate.n_bytes / 1e6, rate.free_bytes / GIB,
        10e9 / rate.bytes_per_s);
}

static void report_folder(doctor *d) {
    char text[256] = "";
    char *folder = nearest_folder(d->folder);
    if (!folder) {
        report_test(d, xp_error(XP_ENOMEM, "no memory for a path"), "dump folder", text, NULL);
        return;
    }
    const xp_status status = xp_self_test_folder(folder, text, sizeof text);
    if (status == XP_OK)
        doctor_report(d, FOUND, "dump folder", NULL, "%s in %s%s%s%s", text, folder,
                      strcmp(folder, d->folder) == 0 ? "" : " (",
                      strcmp(folder, d->folder) == 0 ? "" : d->folder,
                      strcmp(folder, d->folder) == 0 ? "" : " is made by the run)");
    else
        doctor_report(d, BROKEN, "dump folder",
                      "set --job.dump_folder to a folder that you may write to, or change the "
                      "owner of this one",
                      "%s", xp_last_error());
    if (status == XP_OK)
        report_disk(d, folder);
    free(folder);
}

void doctor_works(doctor *d) {
    static const char bug[] = "this is a fault of expar or of the build: build again, run "
                              "./run_tests.sh, and report it";
    char text[256] = "";
    xp_status status = xp_self_test_ops(text, sizeof text);
    report_test(d, status, "ops", text, bug);
    status = xp_self_test_all_reduce(text, sizeof text);
    report_test(d, status, "all-reduce (threads)", text, bug);
    status = xp_self_test_ep(text, sizeof text);
    report_test(d, status, "expert exchange", text, bug);
    if (!d->skip_mpirun)
        report_processes(d);
    report_folder(d);
}
