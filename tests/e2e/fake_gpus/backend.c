/*
 * A CUDA backend of a machine with $FAKE_GPUS GPUs, all of which are out of order: who opens which
 * GPU is written into the folder $FAKE_GPU_LOG, a file GPU-PROCESS-THREAD; once all $FAKE_RANKS
 * ranks have done so, the device fails. For tests of how ranks start; found by LD_LIBRARY_PATH
 * where the real backend was not built.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "device/plugin.h"

static xp_status count(int *n_devices) {
    const char *text = getenv("FAKE_GPUS");
    *n_devices = text ? atoi(text) : 0;
    return *n_devices > 0 ? XP_OK : xp_error(XP_ENOTSUP, "FAKE_GPUS is not set");
}

static int count_files(const char *folder) {
    DIR *all = opendir(folder);
    int n = 0;
    for (const struct dirent *entry; all && (entry = readdir(all)) != NULL;)
        n += entry->d_name[0] != '.';
    if (all)
        closedir(all);
    return n;
}

static xp_status create(const xp_device_args *args, xp_device **device) {
    char path[1024];
    const char *folder = getenv("FAKE_GPU_LOG"), *ranks = getenv("FAKE_RANKS");
    if (!folder || !ranks)
        return xp_error(XP_EINVAL, "FAKE_GPU_LOG and FAKE_RANKS are not set");
    snprintf(path, sizeof path, "%s/%d-%d-%d", folder, args->index, (int)getpid(), (int)gettid());
    FILE *file = fopen(path, "w");
    if (file)
        fclose(file);
    for (int i = 0; i < 1000 && count_files(folder) < atoi(ranks); i++)
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    *device = NULL;
    return xp_error(XP_ENOMEM, "cuda:%d is a fake and cannot train", args->index);
}

static xp_status describe(int index, char *text, size_t n_bytes) {
    snprintf(text, n_bytes, "Fake GPU %d, 1 GiB", index);
    return XP_OK;
}

XP_API const xp_cuda_backend *xp_cuda_backend_entry(void);

const xp_cuda_backend *xp_cuda_backend_entry(void) {
    static const xp_cuda_backend backend = {.abi_version = XP_CUDA_ABI_VERSION,
                                            .device_count = count,
                                            .device_create = create,
                                            .describe = describe};
    return &backend;
}
