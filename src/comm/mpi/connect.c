/* Connects the ranks: MPI_Init, who runs where, the liveness table of each node. On
 * the progress thread's thread. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "comm/mpi/connect.h"
#include "comm/mpi/failure.h"

/** What each rank tells all others at the start. */
typedef struct process_info {
    int64_t pids_inode; /* of the process numbers it can see; containers may hide those of others */
    int32_t leader;     /* lowest rank that shares memory with it, by MPI's account */
    int32_t pid;
} process_info;

#define MPI_TRY(call)                                                                              \
    do {                                                                                           \
        int code_ = (call);                                                                        \
        if (code_ != MPI_SUCCESS)                                                                  \
            return xp_mpi_error(#call, code_);                                                     \
    } while (0)

/* Open MPI opens parts of itself that look for its symbols among the global ones. */
static void make_symbols_global(void) {
    Dl_info info;
    if (dladdr((void *)(uintptr_t)&MPI_Init_thread, &info) != 0 && info.dli_fname)
        dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

static int64_t inode_of_pids(void) {
    struct stat info;
    return stat("/proc/self/ns/pid", &info) == 0 ? (int64_t)info.st_ino : 0;
}

/* Two ranks are on one node when MPI says that they share memory and each sees the other's process:
 * the liveness table and the windows need the latter. */
static bool same_node(const process_info *a, const process_info *b) {
    return a->leader == b->leader && a->pids_inode == b->pids_inode;
}

static xp_status exchange_info(xp_mpi_world *world, process_info *all) {
    process_info mine = {.pids_inode = inode_of_pids(), .pid = (int32_t)getpid()};
    MPI_Comm node;
    MPI_TRY(
        MPI_Comm_split_type(world->mpi, MPI_COMM_TYPE_SHARED, world->rank, MPI_INFO_NULL, &node));
    mine.leader = world->rank;
    MPI_TRY(MPI_Bcast(&mine.leader, 1, MPI_INT, 0, node));
    MPI_TRY(MPI_Comm_free(&node));
    MPI_TRY(MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, world->mpi));
    return XP_OK;
}

/* Numbers by first appearance. @return the first rank of this rank's node */
static int number_nodes(xp_mpi_world *world, const process_info *all, int *n_here) {
    int leader = world->rank;
    for (int i = 0; i < world->size; i++) {
        int first = 0;
        while (!same_node(&all[first], &all[i]))
            first++;
        world->nodes[i] = first == i ? world->n_nodes++ : world->nodes[first];
        if (!same_node(&all[i], &all[world->rank]))
            continue;
        leader = i < leader ? i : leader;
        world->index += i < world->rank;
        ++*n_here;
    }
    return leader;
}

/* A rank that cannot take part says so before anyone waits for it. */
static xp_status agree(xp_mpi_world *world, xp_status status) {
    int mine = status == XP_OK ? 1 : 0, all = 0;
    MPI_TRY(MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, world->mpi));
    if (status == XP_OK && !all)
        return xp_error(XP_ECOMM, "another rank could not set up its shared memory");
    return status;
}

/* What a failure needs: then there may be no memory. */
static xp_status prepare_forwarding(xp_mpi_world *world) {
    XP_TRY(xp_forward_map_create(world->nodes, world->size, &world->map));
    const size_t n = (size_t)world->map.max_targets + 1;
    world->forward_targets = calloc(n, sizeof *world->forward_targets);
    world->forward_requests = calloc(n, sizeof *world->forward_requests);
    return world->forward_targets && world->forward_requests
               ? XP_OK
               : xp_error(XP_ENOMEM, "no memory for %d ranks", world->size);
}

static xp_status make_liveness(xp_mpi_world *world, const process_info *all) {
    int n_here = 0;
    int leader = number_nodes(world, all, &n_here);
    xp_status status = XP_OK;
    if (leader == world->rank)
        status = xp_liveness_create(n_here, &world->liveness);
    const xp_status forwarding = prepare_forwarding(world);
    int fd = world->liveness.fd;
    int *fds = malloc((size_t)world->size * sizeof *fds);
    if (!fds)
        return xp_error(XP_ENOMEM, "no memory for %d ranks", world->size);
    int code = MPI_Allgather(&fd, 1, MPI_INT, fds, 1, MPI_INT, world->mpi);
    int leaders_fd = fds[leader];
    free(fds);
    if (code != MPI_SUCCESS)
        return xp_mpi_error("MPI_Allgather", code);
    if (leader != world->rank && leaders_fd >= 0)
        status = xp_liveness_open(n_here, all[leader].pid, leaders_fd, &world->liveness);
    XP_TRY(agree(world, status != XP_OK ? status : forwarding));
    xp_liveness_join(&world->liveness, world->index, world->rank);
    MPI_TRY(MPI_Barrier(world->mpi));
    xp_liveness_open_pidfds(&world->liveness);
    return XP_OK;
}

static xp_status find_max_tag(xp_mpi_world *world) {
    int *max_tag = NULL, found = 0;
    MPI_TRY(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &max_tag, &found));
    world->max_tag = found ? *max_tag : 32767;
    return XP_OK;
}

xp_status xp_mpi_connect(xp_mpi_world *world) {
    int provided = 0;
    make_symbols_global();
    MPI_TRY(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided));
    MPI_TRY(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    MPI_TRY(MPI_Comm_dup(MPI_COMM_WORLD, &world->mpi));
    MPI_TRY(MPI_Comm_set_errhandler(world->mpi, MPI_ERRORS_RETURN));
    MPI_TRY(MPI_Comm_rank(world->mpi, &world->rank));
    MPI_TRY(MPI_Comm_size(world->mpi, &world->size));
    XP_TRY(find_max_tag(world));
    world->nodes = calloc((size_t)world->size, sizeof *world->nodes);
    process_info *all = calloc((size_t)world->size, sizeof *all);
    if (!world->nodes || !all) {
        free(all);
        return xp_error(XP_ENOMEM, "no memory for %d ranks", world->size);
    }
    xp_status status = exchange_info(world, all);
    if (status == XP_OK)
        status = make_liveness(world, all);
    free(all);
    XP_TRY(status);
    MPI_TRY(MPI_Irecv(&world->failure_received, sizeof world->failure_received, MPI_BYTE,
                      MPI_ANY_SOURCE, XP_MPI_TAG_FAILURE, world->mpi, &world->failure_request));
    return XP_OK;
}
