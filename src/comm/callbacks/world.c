/* The world: who runs where, the node's shared memory, and the first communicator. */
#include "comm/callbacks/world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "comm/callbacks/collectives.h"
#include "comm/callbacks/failure.h"
#include "core/file.h"

#define LAYOUT 1 /* of what ranks tell each other and share */

/** What each rank tells all others at the start. */
typedef struct process_info {
    uint64_t node; /* the same for processes that see each other */
    int32_t pid, rank, layout;
    int32_t simulated_node;
} process_info;

/** And once the first rank of a node has its memory. */
typedef struct world_offer {
    xp_node_offer liveness, area;
    int32_t status;
} world_offer;

static uint64_t add_hash(uint64_t hash, const char *text) {
    for (; *text; text++)
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3U;
    return (hash ^ 0xff) * 0x100000001b3U;
}

/* One boot of one machine, and process numbers that mean the same: containers may hide those of
 * others. */
static uint64_t node_key(const char *host) {
    struct stat pids;
    char boot[64] = "";
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file) {
        if (!fgets(boot, sizeof boot, file))
            boot[0] = '\0';
        fclose(file);
    }
    const uint64_t key = add_hash(add_hash(0xcbf29ce484222325U, host), boot);
    return stat("/proc/self/ns/pid", &pids) == 0 ? key ^ (uint64_t)pids.st_ino : key;
}

static bool same_node(const process_info *a, const process_info *b) {
    return a->node == b->node && a->simulated_node == b->simulated_node;
}

/* ---- the transport, before there is a communicator ----------------------------------------- */

static xp_status gather(const xp_callback_world *world, const void *mine, void *all,
                        size_t n_bytes) {
    const xp_callback_transport *t = &world->transport;
    if (world->size == 1) {
        memcpy(all, mine, n_bytes);
        return XP_OK;
    }
    xp_error_clear();
    const int code = t->all_gather(t->context, mine, all, n_bytes);
    if (code == 0)
        return XP_OK;
    const char *why = xp_last_error();
    char text[600];
    snprintf(text, sizeof text, "%s%s", why[0] ? ": " : "", why);
    return xp_error(XP_ECOMM, "making a communicator: the caller's all_gather returned %d%s", code,
                    text);
}

static xp_status barrier(const xp_callback_world *world) {
    const xp_callback_transport *t = &world->transport;
    if (!t->barrier || world->size == 1) {
        const char mine = 1;
        char *all = malloc((size_t)world->size);
        if (!all)
            return xp_error(XP_ENOMEM, "no memory for %d ranks", world->size);
        const xp_status status = gather(world, &mine, all, 1);
        free(all);
        return status;
    }
    const int code = t->barrier(t->context);
    return code == 0 ? XP_OK
                     : xp_error(XP_ECOMM, "making a communicator: the caller's barrier returned %d",
                                code);
}

/* ---- making a world ------------------------------------------------------------------------ */

/* A rank that cannot take part says so before anyone waits for it. */
static xp_status agree(const xp_callback_world *world, const world_offer *all, xp_status status) {
    for (int r = 0; r < world->size && status == XP_OK; r++)
        if (all[r].status != XP_OK)
            return xp_error(XP_ECOMM, "rank %d could not set up its shared memory", r);
    return status;
}

static xp_status check_info(const xp_callback_world *world, const process_info *all) {
    for (int r = 0; r < world->size; r++) {
        if (all[r].rank != r)
            return xp_error(XP_EINVAL,
                            "the caller's all_gather is not in rank order: place %d holds what "
                            "rank %d has sent",
                            r, (int)all[r].rank);
        if (all[r].layout != LAYOUT)
            return xp_error(XP_ECOMM, "rank %d runs another version of expar than rank %d", r,
                            world->rank);
    }
    return XP_OK;
}

/* Numbers of nodes by first appearance. @return the first rank of this rank's node */
static int number_nodes(xp_callback_world *world, const process_info *all, int *n_here,
                        int *index) {
    int leader = world->rank;
    world->one_process = true;
    for (int i = 0; i < world->size; i++) {
        int first = 0;
        while (!same_node(&all[first], &all[i]))
            first++;
        world->nodes[i] = first == i ? world->n_nodes++ : world->nodes[first];
        if (!same_node(&all[i], &all[world->rank])) {
            world->one_process = false;
            continue;
        }
        world->one_process = world->one_process && all[i].pid == all[world->rank].pid;
        leader = i < leader ? i : leader;
        *index += i < world->rank;
        ++*n_here;
    }
    return leader;
}

static xp_status offer(xp_callback_comm *comm, int n_here, bool leads, world_offer *mine) {
    xp_callback_world *world = comm->world;
    mine->liveness = (xp_node_offer){.pid = (int32_t)getpid(), .fd = -1};
    if (leads) {
        XP_TRY(xp_liveness_create(n_here, &world->liveness));
        mine->liveness.fd = world->liveness.fd;
    }
    return xp_node_area_offer(comm, &mine->area);
}

static xp_status share(xp_callback_comm *comm, int leader, int n_here, int index,
                       world_offer *all) {
    xp_callback_world *world = comm->world;
    world_offer mine = {.area = {.fd = -1}, .liveness = {.fd = -1}};
    xp_status status = offer(comm, n_here, leader == world->rank, &mine);
    mine.status = status;
    xp_status sent = gather(world, &mine, all, sizeof mine);
    if (sent == XP_OK)
        sent = agree(world, all, status);
    const xp_node_offer liveness = all[leader].liveness, area = all[leader].area;
    if (sent == XP_OK && leader != world->rank)
        status = xp_liveness_open(n_here, liveness.pid, liveness.fd, &world->liveness);
    if (sent == XP_OK && status == XP_OK)
        status = xp_node_area_open(comm, &area);
    mine.status = status;
    if (sent == XP_OK)
        sent = gather(world, &mine, all, sizeof mine); /* nobody closes before all have opened */
    if (sent == XP_OK)
        sent = agree(world, all, status);
    if (mine.area.fd >= 0)
        close(mine.area.fd);
    XP_TRY(sent);
    xp_liveness_join(&world->liveness, index, world->rank);
    XP_TRY(barrier(world));
    xp_liveness_open_pidfds(&world->liveness);
    return XP_OK;
}

static xp_status connect_ranks(xp_callback_world *world, const process_info *infos,
                               xp_callback_comm **comm) {
    int n_here = 0, index = 0;
    const size_t size = (unsigned)world->size;
    int *ranks = calloc(size, sizeof *ranks);
    world_offer *all = calloc(size, sizeof *all);
    const int leader = number_nodes(world, infos, &n_here, &index);
    xp_status status =
        ranks && all ? XP_OK : xp_error(XP_ENOMEM, "no memory for %d ranks", world->size);
    for (int r = 0; r < world->size && ranks; r++)
        ranks[r] = r;
    if (status == XP_OK)
        status = xp_callback_comm_create(world, ranks, world->size, world->rank, comm);
    if (status == XP_OK)
        status = share(*comm, leader, n_here, index, all);
    free(ranks);
    free(all);
    return status;
}

static xp_status start(xp_callback_world *world, const int *simulated, xp_callback_comm **comm) {
    process_info mine = {.node = node_key(world->host),
                         .pid = (int32_t)getpid(),
                         .rank = world->rank,
                         .layout = LAYOUT,
                         .simulated_node = simulated ? simulated[world->rank] : 0};
    process_info *all = calloc((size_t)world->size, sizeof *all);
    world->nodes = calloc((size_t)world->size, sizeof *world->nodes);
    xp_status status =
        all && world->nodes ? XP_OK : xp_error(XP_ENOMEM, "no memory for %d ranks", world->size);
    if (status == XP_OK)
        status = gather(world, &mine, all, sizeof mine);
    if (status == XP_OK)
        status = check_info(world, all);
    if (status == XP_OK)
        status = connect_ranks(world, all, comm);
    if (status == XP_OK && (*comm)->area.n > 1)
        status = xp_callback_watch_start(world);
    free(all);
    return status;
}

xp_status xp_callback_world_create(const xp_callback_args *args, xp_comm **comm) {
    xp_callback_comm *all = NULL;
    xp_callback_world *world = calloc(1, sizeof *world);
    if (!world) {
        if (args->transport.destroy)
            args->transport.destroy(args->transport.context, true);
        return xp_error(XP_ENOMEM, "no memory for a communicator of %d ranks",
                        args->transport.size);
    }
    *world = (xp_callback_world){.rank = args->transport.rank,
                                 .size = args->transport.size,
                                 .timeout_s = args->timeout_s,
                                 .transport = args->transport,
                                 .liveness = {.fd = -1}};
    pthread_mutex_init(&world->lock, NULL);
    xp_failure_hooks_init(&world->hooks);
    gethostname(world->host, sizeof world->host - 1);
    const xp_status status = start(world, args->simulated_nodes, &all);
    if (status != XP_OK) {
        char why[1024];
        snprintf(why, sizeof why, "%s", xp_last_error());
        if (all)
            xp_callback_comm_free(all);
        else
            xp_callback_world_free(world);
        return xp_error(status, "%s", why);
    }
    if (world->transport.bind)
        world->transport.bind(world->transport.context, &all->base);
    *comm = &all->base;
    return XP_OK;
}

/* ---- the public table ---------------------------------------------------------------------- */

xp_status xp_comm_from_callbacks(const xp_comm_callbacks *callbacks, xp_comm **comm) {
    if (!callbacks || !comm)
        return xp_error(XP_EINVAL, "xp_comm_from_callbacks: callbacks and comm must not be NULL");
    if (callbacks->size < 1 || callbacks->rank < 0 || callbacks->rank >= callbacks->size)
        return xp_error(XP_EINVAL, "xp_comm_from_callbacks: rank %d of %d ranks", callbacks->rank,
                        callbacks->size);
    if (callbacks->size > 1 && !callbacks->all_gather)
        return xp_error(XP_EINVAL,
                        "xp_comm_from_callbacks: %d ranks need a callback all_gather to find each "
                        "other",
                        callbacks->size);
    if (!(callbacks->timeout_s >= 0))
        return xp_error(XP_EINVAL, "xp_comm_from_callbacks: a timeout of %g s; 0 means %g",
                        callbacks->timeout_s, XP_CALLBACK_TIMEOUT_S);
    const xp_callback_args args = {.transport = {.rank = callbacks->rank,
                                                 .size = callbacks->size,
                                                 .context = callbacks->context,
                                                 .all_gather = callbacks->all_gather,
                                                 .barrier = callbacks->barrier,
                                                 .all_to_allv = callbacks->all_to_allv},
                                   .timeout_s = callbacks->timeout_s > 0 ? callbacks->timeout_s
                                                                         : XP_CALLBACK_TIMEOUT_S};
    return xp_callback_world_create(&args, comm);
}
