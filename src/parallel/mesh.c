#include "parallel/mesh.h"
#include "comm/provider.h"

#include <string.h>

xp_status xp_mesh_layout(const xp_config *config, int n_ranks, int rank, xp_mesh *mesh) {
    memset(mesh, 0, sizeof *mesh);
    int64_t replicate = config->parallelism.data_parallel_replicate_degree;
    int64_t shard = config->parallelism.data_parallel_shard_degree;
    int64_t ep = config->parallelism.expert_parallel_degree;
    if (n_ranks < 1 || rank < 0 || rank >= n_ranks)
        return xp_error(XP_EINVAL, "rank %d of %d ranks does not exist", rank, n_ranks);
    if (replicate < 1)
        return xp_error(XP_ECONFIG,
                        "parallelism.data_parallel_replicate_degree is %lld; it must be at least 1",
                        (long long)replicate);
    if (ep < 1)
        return xp_error(XP_ECONFIG,
                        "parallelism.expert_parallel_degree is %lld; it must be at least 1",
                        (long long)ep);
    if (shard == -1) {
        if (n_ranks % replicate != 0)
            return xp_error(XP_ECONFIG,
                            "parallelism.data_parallel_replicate_degree %lld does not divide the "
                            "%d ranks: choose a divisor of %d, or start another number of ranks",
                            (long long)replicate, n_ranks, n_ranks);
        shard = n_ranks / replicate;
    }
    if (shard < 1 || replicate * shard != n_ranks)
        return xp_error(XP_ECONFIG,
                        "data_parallel_replicate_degree %lld x data_parallel_shard_degree %lld is "
                        "not the number of ranks, %d: set parallelism.data_parallel_shard_degree "
                        "to -1 (the rest), or start %lld ranks (NGPU)",
                        (long long)replicate, (long long)shard, n_ranks,
                        (long long)(replicate * shard));
    if (shard % ep != 0 && n_ranks == 1)
        return xp_error(
            XP_ECONFIG,
            "parallelism.expert_parallel_degree is %lld, but the run has one rank: start "
            "%lld with NGPU=%lld in the environment (or mpirun -n %lld), or set the degree "
            "to 1",
            (long long)ep, (long long)ep, (long long)ep, (long long)ep);
    if (shard % ep != 0)
        return xp_error(XP_ECONFIG,
                        "parallelism.expert_parallel_degree %lld does not divide the shard degree "
                        "%lld (%d ranks, %lld replicas): choose a divisor of %lld, or start a "
                        "multiple of %lld ranks (NGPU=%lld)",
                        (long long)ep, (long long)shard, n_ranks, (long long)replicate,
                        (long long)shard, (long long)ep, (long long)(ep * replicate));
    mesh->n_ranks = n_ranks;
    mesh->rank = rank;
    mesh->n_replicate = (int)replicate;
    mesh->n_shard = (int)shard;
    mesh->ep_size = (int)ep;
    mesh->n_expert_shard = (int)(shard / ep);
    mesh->replica = rank / mesh->n_shard;
    mesh->shard_rank = rank % mesh->n_shard;
    mesh->ep_rank = mesh->shard_rank % mesh->ep_size;
    mesh->expert_shard_rank = mesh->shard_rank / mesh->ep_size;
    return XP_OK;
}

int xp_mesh_ep_nodes(const xp_mesh *mesh, int n_nodes) {
    const int of_node = n_nodes > 0 && n_nodes < mesh->n_ranks ? mesh->n_ranks / n_nodes : 1,
              first = mesh->replica * mesh->n_shard + mesh->expert_shard_rank * mesh->ep_size;
    return n_nodes > 1 ? (first + mesh->ep_size - 1) / of_node - first / of_node + 1 : 1;
}

/* Every rank splits for every dimension that has more than one rank, in the same order. */
static xp_status split(xp_comm *world, int n, int color, xp_comm **sub) {
    return n > 1 ? xp_comm_split(world, color, sub) : XP_OK;
}

xp_status xp_mesh_create(xp_comm *world, const xp_config *config, xp_mesh *mesh) {
    int n_ranks = world ? xp_comm_size(world) : 1;
    xp_mesh m;
    XP_TRY(xp_mesh_layout(config, n_ranks, world ? xp_comm_rank(world) : 0, &m));
    m.separate_processes = world && !xp_comm_same_process(world);
    m.world = world;
    xp_status status = XP_OK;
    int ep_group = m.replica * m.n_expert_shard + m.expert_shard_rank;
    int experts = m.replica * m.ep_size + m.ep_rank;
    XP_TRY_GOTO(status, split(world, m.n_shard, m.replica, &m.shard), fail_comms);
    XP_TRY_GOTO(status, split(world, m.n_replicate, m.shard_rank, &m.replicate), fail_comms);
    XP_TRY_GOTO(status, split(world, m.ep_size, ep_group, &m.ep), fail_comms);
    XP_TRY_GOTO(status, split(world, m.n_expert_shard, experts, &m.expert_shard), fail_comms);
    XP_TRY_GOTO(status, split(world, m.n_replicate, m.shard_rank, &m.expert_replicate), fail_comms);
    *mesh = m;
    return XP_OK;
fail_comms:
    xp_mesh_destroy(&m);
    return status;
}

void xp_mesh_destroy(xp_mesh *mesh) {
    xp_comm_destroy(mesh->expert_replicate);
    xp_comm_destroy(mesh->expert_shard);
    xp_comm_destroy(mesh->ep);
    xp_comm_destroy(mesh->replicate);
    xp_comm_destroy(mesh->shard);
    memset(mesh, 0, sizeof *mesh);
}
