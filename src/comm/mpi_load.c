/* Finds the MPI provider, a shared object of its own, so that one binary runs with and without MPI
 * installed. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "comm/provider.h"

#define LIBRARY "libexpar_mpi.so"

bool xp_mpi_launched(void) {
    /* Open MPI, PMIx launchers (prte, srun --mpi=pmix), then srun's own PMI. A single rank needs no
     * MPI. */
    const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const char *value = getenv(sizes[i]);
        if (value && atoi(value) > 1)
            return true;
    }
    return getenv("OMPI_COMM_WORLD_SIZE") == NULL && getenv("PMIX_RANK") != NULL;
}

/* Cut the file name off; false when the path has no folder. */
static bool folder_of(char *path) {
    char *slash = strrchr(path, '/');
    if (!slash)
        return false;
    *slash = '\0';
    return true;
}

/* Candidates in order: beside libexpar (or the executable that contains it), beside the executable,
 * ../lib of it. */
static void *open_library(char *tried, size_t n_tried) {
    char here[4096] = "", exe[4096] = "";
    Dl_info info;
    if (dladdr((void *)(uintptr_t)&xp_mpi_launched, &info) != 0 && info.dli_fname)
        snprintf(here, sizeof here, "%s", info.dli_fname);
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = '\0';
    const char *folders[2] = {folder_of(here) ? here : NULL, folder_of(exe) ? exe : NULL};
    static const char *const below[] = {"", "/../lib"};
    for (int i = 0; i < 2; i++) {
        for (int k = 0; folders[i] && k < 2; k++) {
            char path[4200];
            snprintf(path, sizeof path, "%s%s/" LIBRARY, folders[i], below[k]);
            if (access(path, R_OK) != 0)
                continue;
            void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
            if (library)
                return library;
            snprintf(tried, n_tried, "%s", dlerror());
            return NULL;
        }
    }
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_GLOBAL);
    if (!library)
        snprintf(tried, n_tried, "%s", dlerror());
    return library;
}

xp_status xp_mpi_world_comm(double init_timeout_s, double timeout_s, xp_comm **comm) {
    if (!comm || !(init_timeout_s > 0) || !(timeout_s > 0))
        return xp_error(
            XP_EINVAL,
            "xp_mpi_world_comm: comm must not be NULL and both timeouts must be positive");
    char why[512] = "not found";
    /* Never closed: MPI leaves threads and exit handlers behind. */
    void *library = open_library(why, sizeof why);
    if (!library)
        return xp_error(XP_ENOTSUP,
                        "no MPI: %s; install Open MPI (libopenmpi-dev, openmpi-bin) and build "
                        "again, or run the "
                        "ranks as threads (NGPU=n)",
                        why);
    void *symbol = dlsym(library, XP_MPI_ENTRY);
    if (!symbol)
        return xp_error(XP_ENOTSUP, "%s has no %s: it belongs to another version; build again",
                        LIBRARY, XP_MPI_ENTRY);
    xp_mpi_entry_fn entry;
    memcpy(&entry, &symbol,
           sizeof entry); /* ISO C has no cast from an object to a function pointer */
    return entry(init_timeout_s, timeout_s, comm);
}
