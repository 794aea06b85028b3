/* Finds the MPI provider, a shared object of its own, so that one binary runs with and without MPI
 * installed. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include "comm/provider.h"
#include "comm/rendezvous.h"
#include "device/plugin.h"

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

/* Never closed: MPI leaves threads and exit handlers behind. */
static xp_status find_entry(const char *name, const char *advice, void **entry) {
    char why[512] = "not found";
    void *library = xp_plugin_open(LIBRARY, why, sizeof why);
    if (!library)
        return xp_error(XP_ENOTSUP,
                        "no MPI: %s; install Open MPI (libopenmpi-dev, openmpi-bin) and build "
                        "again%s",
                        why, advice);
    *entry = dlsym(library, name);
    if (!*entry)
        return xp_error(XP_ENOTSUP, "%s has no %s: it belongs to another version; build again",
                        LIBRARY, name);
    return XP_OK;
}

xp_status xp_mpi_world_create(const xp_mpi_args *args, xp_comm **comm) {
    if (!args || !comm || !(args->init_timeout_s > 0) || !(args->timeout_s > 0))
        return xp_error(XP_EINVAL, "xp_mpi_world_create: args and comm must not be NULL and both "
                                   "timeouts must be positive");
    void *entry = NULL;
    XP_TRY(find_entry(XP_MPI_ENTRY, ", or run the ranks as threads (NGPU=n)", &entry));
    return ((xp_mpi_entry_fn)(uintptr_t)entry)(args, comm);
}

/* The MPI that libexpar_mpi was built with; another one in the process must not get company. */
static bool is_mpi_loaded(void) {
    void *mpi = dlopen(XP_MPI_SONAME, RTLD_LAZY | RTLD_NOLOAD);
    if (mpi)
        dlclose(mpi);
    return mpi != NULL;
}

xp_status xp_comm_from_mpi(const void *mpi_comm, xp_comm **comm) {
    if (!mpi_comm || !comm)
        return xp_error(XP_EINVAL, "xp_comm_from_mpi: mpi_comm and comm must not be NULL");
    if (!is_mpi_loaded())
        return xp_error(XP_ENOTSUP,
                        "xp_comm_from_mpi: this process does not use the MPI that expar was built "
                        "with (%s); use that one, or make the communicator with "
                        "xp_comm_from_callbacks()",
                        XP_MPI_SONAME[0] ? XP_MPI_SONAME : "none");
    void *entry = NULL;
    XP_TRY(find_entry(XP_MPI_GUEST_ENTRY, "", &entry));
    return ((xp_mpi_guest_fn)(uintptr_t)entry)(mpi_comm, comm);
}

xp_status xp_mpi_world_comm(double init_timeout_s, double timeout_s, xp_comm **comm) {
    return xp_mpi_world_create(
        &(xp_mpi_args){.init_timeout_s = init_timeout_s, .timeout_s = timeout_s}, comm);
}

void xp_mpi_world_abort(const char *rendezvous_folder, const char *reason) {
    if (!xp_mpi_launched())
        return;
    char text[1024]; /* what is tried now may fail as well */
    snprintf(text, sizeof text, "%s", reason ? reason : xp_last_error());
    xp_rendezvous_absent(rendezvous_folder, text);
    xp_error(XP_ECOMM, "%s", text);
}
