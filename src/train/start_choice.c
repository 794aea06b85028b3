#include "train/start_choice.h"

#include <stdlib.h>
#include <string.h>
#include "device/plugin.h"
#include "expar/comm.h"
#include "parallel/run.h"

static xp_status choose_n_ranks(const xp_config *c, const xp_start_facts *facts, int *n_ranks) {
    const int ep = (int)c->parallelism.expert_parallel_degree;
    const int per_node = c->job.ngpu > 0 ? (int)c->job.ngpu : facts->n_gpus > 0 ? facts->n_gpus : 1;
    *n_ranks = per_node * facts->n_nodes;
    if (c->job.ngpu > 0 || ep <= *n_ranks)
        return XP_OK;
    if (facts->n_gpus > 0)
        return xp_error(XP_ECONFIG,
                        "parallelism.expert_parallel_degree %d needs %d ranks, and there %s %d "
                        "GPU%s: set NGPU=%d to let ranks share a GPU, or a smaller degree",
                        ep, ep, *n_ranks == 1 ? "is" : "are", *n_ranks, *n_ranks == 1 ? "" : "s",
                        ep);
    return xp_error(XP_ECONFIG,
                    "parallelism.expert_parallel_degree %d needs %d ranks, and without GPUs there "
                    "is one: set NGPU=%d (ranks share the cores), or the degree to 1",
                    ep, ep, ep);
}

xp_status xp_start_choose_from(const xp_config *c, const xp_start_facts *facts, xp_start *start) {
    const bool threads = strcmp(c->job.ranks, "threads") == 0;
    const bool processes = strcmp(c->job.ranks, "processes") == 0;
    *start = (xp_start){.kind = XP_START_RANK, .n_nodes = facts->n_nodes};
    if (facts->launched)
        return facts->on_nodes ? xp_error(XP_ECONFIG, "--hostfile, --host and --nodes start ranks "
                                                      "themselves: leave out mpirun or srun")
                               : XP_OK;
    XP_TRY(choose_n_ranks(c, facts, &start->n_ranks));
    if (threads && facts->on_nodes)
        return xp_error(XP_ECONFIG, "job.ranks = \"threads\" is for one machine: leave it out with "
                                    "--hostfile, --host and --nodes");
    const bool own_gpus = facts->n_gpus > 0 && start->n_ranks <= facts->n_gpus;
    const bool separate = facts->on_nodes || processes || (!threads && own_gpus);
    start->kind = separate && start->n_ranks > 1 ? XP_START_PROCESSES : XP_START_THREADS;
    return XP_OK;
}

/* Processes of a launcher that expar does not know would each train the whole model alone, in one
 * folder. */
static xp_status refuse_foreign_launcher(void) {
    static const char *const names[] = {"WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "MPI_LOCALNRANKS"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]), *rank = getenv("RANK");
        if (value && atoi(value) > 1)
            return xp_error(
                XP_ECONFIG,
                "%s=%s%s%s in the environment: another launcher (torchrun?) has started "
                "this process as one of several, and expar cannot join them; start it "
                "once with NGPU=n, or with mpirun or srun, or unset %s",
                names[i], value, rank ? " RANK=" : "", rank ? rank : "", names[i]);
    }
    return XP_OK;
}

xp_status xp_start_choose(const xp_config *config, int n_nodes, bool on_nodes, xp_start *start) {
    const xp_cuda_backend *cuda;
    xp_start_facts facts = {
        .launched = xp_mpi_launched(), .n_nodes = n_nodes, .on_nodes = on_nodes};
    if (!facts.launched)
        XP_TRY(refuse_foreign_launcher());
    if (!facts.launched && xp_run_device_kind(config) == XP_DEVICE_CUDA) {
        XP_TRY(xp_cuda_backend_get(&cuda));
        XP_TRY(cuda->device_count(&facts.n_gpus));
    }
    return xp_start_choose_from(config, &facts, start);
}

xp_status xp_start_check(const xp_config *config, const xp_start *start) {
    xp_mesh layout;
    int64_t n_microbatches = 0, global_batch = 0;
    XP_TRY(xp_mesh_layout(config, start->n_ranks, 0, &layout));
    return xp_run_batch_sizes(config, start->n_ranks, &n_microbatches, &global_batch);
}
