/* Where ranks stand: sizes, places, and what degrees that do not fit say. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include "parallel/mesh.h"

static xp_config degrees(int64_t replicate, int64_t shard, int64_t ep) {
    xp_config config;
    memset(&config, 0, sizeof config);
    config.parallelism.data_parallel_replicate_degree = replicate;
    config.parallelism.data_parallel_shard_degree = shard;
    config.parallelism.expert_parallel_degree = ep;
    return config;
}

static void one_rank(void **state) {
    (void)state;
    xp_config config = degrees(1, -1, 1);
    xp_mesh mesh;
    assert_int_equal(xp_mesh_create(NULL, &config, &mesh), XP_OK);
    assert_int_equal(mesh.n_ranks, 1);
    assert_int_equal(mesh.n_shard, 1);
    assert_int_equal(mesh.n_expert_shard, 1);
    assert_null(mesh.shard);
    assert_null(mesh.ep);
    xp_mesh_destroy(&mesh);
}

static void places(void **state) {
    (void)state;
    xp_config config = degrees(2, 4, 2);
    for (int rank = 0; rank < 8; rank++) {
        xp_mesh mesh;
        assert_int_equal(xp_mesh_layout(&config, 8, rank, &mesh), XP_OK);
        assert_int_equal(mesh.replica, rank / 4);
        assert_int_equal(mesh.shard_rank, rank % 4);
        assert_int_equal(mesh.ep_rank, rank % 2);
        assert_int_equal(mesh.expert_shard_rank, rank % 4 / 2);
        assert_int_equal(mesh.n_expert_shard, 2);
    }
}

static void rest_is_sharded(void **state) {
    (void)state;
    xp_config config = degrees(2, -1, 3);
    xp_mesh mesh;
    assert_int_equal(xp_mesh_layout(&config, 12, 11, &mesh), XP_OK);
    assert_int_equal(mesh.n_shard, 6);
    assert_int_equal(mesh.n_expert_shard, 2);
}

static void refuses(int64_t replicate, int64_t shard, int64_t ep, int n, const char *text) {
    xp_config config = degrees(replicate, shard, ep);
    xp_mesh mesh;
    assert_int_equal(xp_mesh_layout(&config, n, 0, &mesh), XP_ECONFIG);
    if (!strstr(xp_last_error(), text))
        fail_msg("\"%s\" is not in \"%s\"", text, xp_last_error());
}

static void wrong_degrees(void **state) {
    (void)state;
    refuses(1, -1, 8, 2, "expert_parallel_degree 8 does not divide the shard degree 2");
    refuses(3, -1, 1, 8, "data_parallel_replicate_degree 3 does not divide the 8 ranks");
    refuses(2, 2, 1, 8, "start 4 ranks");
    refuses(0, -1, 1, 8, "data_parallel_replicate_degree is 0");
    refuses(1, -1, 0, 8, "expert_parallel_degree is 0");
    refuses(2, 4, 8, 8, "expert_parallel_degree 8 does not divide the shard degree 4");
}

/* Communicators: every rank adds 10^rank in each of its groups; the sums tell who was in it. */
typedef struct member {
    xp_thread_world *world;
    const xp_config *config;
    int rank;
    xp_status status;
    int64_t shard, replicate, ep, expert_shard;
} member;

static xp_status add_up(xp_comm *comm, int rank, int64_t *sum) {
    int64_t own = 1;
    for (int i = 0; i < rank; i++)
        own *= 10;
    *sum = own;
    return comm ? xp_comm_all_reduce(comm, sum, sum, 1, XP_I64, XP_SUM, NULL) : XP_OK;
}

static xp_status visit(member *m) {
    xp_comm *comm = NULL;
    xp_mesh mesh;
    XP_TRY(xp_thread_world_comm(m->world, m->rank, &comm));
    xp_status status = xp_mesh_create(comm, m->config, &mesh);
    if (status == XP_OK) {
        status = add_up(mesh.shard, m->rank, &m->shard);
        if (status == XP_OK)
            status = add_up(mesh.replicate, m->rank, &m->replicate);
        if (status == XP_OK)
            status = add_up(mesh.ep, m->rank, &m->ep);
        if (status == XP_OK)
            status = add_up(mesh.expert_shard, m->rank, &m->expert_shard);
        xp_mesh_destroy(&mesh);
    }
    xp_comm_destroy(comm);
    return status;
}

static void *member_main(void *context) {
    member *m = context;
    m->status = visit(m);
    return NULL;
}

static void communicators(void **state) {
    (void)state;
    xp_config config = degrees(2, 4, 2);
    xp_thread_world *world = NULL;
    member members[8];
    pthread_t threads[8];
    assert_int_equal(xp_thread_world_create(8, 30, &world), XP_OK);
    for (int r = 0; r < 8; r++) {
        members[r] = (member){.world = world, .config = &config, .rank = r};
        assert_int_equal(pthread_create(&threads[r], NULL, member_main, &members[r]), 0);
    }
    for (int r = 0; r < 8; r++)
        pthread_join(threads[r], NULL);
    for (int r = 0; r < 8; r++)
        assert_int_equal(members[r].status, XP_OK);
    assert_int_equal(members[1].shard, 1111);
    assert_int_equal(members[6].shard, 11110000);
    assert_int_equal(members[1].replicate, 100010);
    assert_int_equal(members[3].ep, 1100);
    assert_int_equal(members[4].ep, 110000);
    assert_int_equal(members[0].expert_shard, 101);
    assert_int_equal(members[7].expert_shard, 10100000);
    xp_thread_world_destroy(world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank),        cmocka_unit_test(places),
        cmocka_unit_test(rest_is_sharded), cmocka_unit_test(wrong_degrees),
        cmocka_unit_test(communicators),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
