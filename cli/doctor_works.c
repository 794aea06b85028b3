#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "disk_rate.h"
#include "doctor_child.h"
#include "self_test.h"

#define GIB ((double)(1 << 30))

static void report_test(doctor *d, xp_status status, const char *name, const char *text,
                        const char *advice) {
    if (status == XP_OK)
        doctor_report(d, FOUND, name, NULL, "%s", text);
    else
        doctor_report(d, BROKEN, name, advice, "%s", xp_last_error());
}

/* ---- GPUs -------------------------------------------------------------------------------- */

static const char full_gpu[] = "see nvidia-smi: another program may hold the memory of a GPU";

/* A finding of a child, or why it has not come so far. */
static void report_child(doctor *d, const doctor_child *child, const char *name,
                         const char *advice) {
    const doctor_child_line *line = doctor_child_find(child, name);
    if (line)
        doctor_report(d, line->state, name, advice, "%s", line->text);
    else
        doctor_report(d, BROKEN, name, advice, "%s", child->last);
}

static void report_gpus(doctor *d, const doctor_tries *tries) {
    static const char attention_advice[] =
        "install another cuDNN 9 (apt-get install libcudnn9-cuda-13); --debug.device_caps cudnn "
        "trains without it";
    static const char ops_advice[] =
        "one GPU alone: see dmesg (Xid) and nvidia-smi -q -d ECC; every GPU: another driver or "
        "cuBLAS (LD_LIBRARY_PATH), or build again";
    if (!tries->on_gpus)
        return;
    const doctor_child_line *ops = doctor_child_find(&tries->gpus, DOCTOR_GPU_OPS);
    const bool is_full = ops && ops->state == MISSING;
    report_child(d, &tries->gpus, DOCTOR_GPU_OPS, is_full ? full_gpu : ops_advice);
    if (ops && !is_full)
        report_child(d, &tries->gpus, DOCTOR_GPU_ATTENTION, attention_advice);
}

/* ---- processes --------------------------------------------------------------------------- */

static void report_ranks_gpus(doctor *d, const doctor_tries *tries) {
    char sum_advice[200];
    snprintf(sum_advice, sizeof sum_advice,
             "NCCL_DEBUG=INFO mpirun -n %d expar doctor; with NCCL_P2P_DISABLE=1 it goes past the "
             "links; in a container --ipc=host",
             tries->n_ranks);
    const doctor_child_line *sum = doctor_child_find(&tries->ranks, DOCTOR_GPUS_SUM);
    report_child(d, &tries->ranks, DOCTOR_GPUS_SUM, sum_advice);
    if (sum && sum->state == FOUND)
        report_child(d, &tries->ranks, DOCTOR_GPUS_EP,
                     "see nvidia-smi topo -p2p r and nvlink -s; in a container --ipc=host "
                     "--pid=host; parallelism.expert_parallel_comm_backend = \"standard\" goes "
                     "over NCCL");
}

static void report_processes(doctor *d, const doctor_tries *tries) {
    static const char name[] = "processes (mpirun)";
    char advice[256];
    const doctor_finding otherwise = d->n_ranks > 0 || d->n_gpus > 1 ? BROKEN : MISSING;
    switch (tries->mpirun) {
    case NOT_WANTED:
        return;
    case NO_PROVIDER:
        if (otherwise == BROKEN)
            doctor_report(d, BROKEN, name, "see the line about the MPI provider above",
                          "this build has no MPI, and a rank with a GPU of its own is a process");
        return;
    case NO_MPIRUN:
        doctor_report(d, otherwise, name,
                      "apt-get install openmpi-bin, or put its folder on PATH; ranks as threads "
                      "(NGPU=n) work without it on the CPU",
                      "there is no mpirun");
        return;
    case TRIED:
        break;
    }
    const doctor_child_line *sum = doctor_child_find(&tries->ranks, DOCTOR_PROCESSES);
    snprintf(advice, sizeof advice,
             "run it by hand: mpirun -n %d expar doctor; on the CPU ranks as threads (NGPU=n) work "
             "without it",
             tries->n_ranks);
    const bool agree = sum && sum->state == FOUND;
    const doctor_child_line *last =
        tries->with_gpus ? doctor_child_find(&tries->ranks, DOCTOR_GPUS_EP) : sum;
    /* nothing is wrong, and yet they end badly */
    const bool ends_badly = last && last->state == FOUND && !tries->ranks.ended_well;
    doctor_report(d, agree && !ends_badly ? FOUND : otherwise, name, advice, "%s",
                  sum && !ends_badly ? sum->text : tries->ranks.last);
    if (agree && tries->with_gpus)
        report_ranks_gpus(d, tries);
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

void doctor_works(doctor *d, const doctor_tries *tries) {
    static const char bug[] = "this is a fault of expar or of the build: build again, run "
                              "./run_tests.sh, and report it";
    char text[256] = "";
    xp_status status = xp_self_test_ops(text, sizeof text);
    report_test(d, status, "ops", text, bug);
    status = xp_self_test_all_reduce(text, sizeof text);
    report_test(d, status, "all-reduce (threads)", text, bug);
    status = xp_self_test_ep(text, sizeof text);
    report_test(d, status, "expert exchange", text, bug);
    report_gpus(d, tries);
    report_processes(d, tries);
    report_folder(d);
}
