/* A communicator over the caller's NCCL, on the fake: what is called of it, that bytes arrive, and
 * that the caller keeps it whatever happens. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "comm/nccl/guest.h"
#include "comm/provider.h"
#include "fake_nccl.h"
#include "ranks.h"

static const int two_nodes[] = {0, 1, 0, 1};

/* What the program has before it comes to the library: its NCCL communicator and its device. */
static void *caller_init(rank_job *job, xp_device **device) {
    const xp_device_args args = {.n_threads = 1};
    xp_nccl_id id = {{0}};
    void *nccl = NULL;
    fake_enter(job->rank);
    RANK_CHECK(job, xp_device_create(&args, device) == XP_OK);
    if (job->rank == 0)
        RANK_CHECK(job, fake_nccl.get_unique_id(&id) == XP_NCCL_OK);
    RANK_CHECK(job, xp_comm_broadcast(job->comm, &id, sizeof id, 0, NULL) == XP_OK);
    RANK_CHECK(job, fake_nccl.comm_init(*device, job->n_ranks, &id, job->rank, 0, &nccl) ==
                        XP_NCCL_BUSY);
    while (fake_nccl.comm_state(nccl) == XP_NCCL_BUSY) {
    }
    return nccl;
}

static void caller_end(rank_job *job, xp_device *device, void *nccl) {
    RANK_CHECK(job, xp_device_bytes(device, NULL) == 0);
    RANK_CHECK(job, fake_count(job->rank, FAKE_ABORT) == 0);
    RANK_CHECK(job, fake_count(job->rank, FAKE_FINALIZE) == 0);
    RANK_CHECK(job, fake_count(job->rank, FAKE_DESTROY) == 0);
    fake_nccl.comm_destroy(nccl);
    xp_device_destroy(device);
}

static xp_nccl_guest_args guest_args(xp_device *device, void *nccl, const int *nodes,
                                     double timeout_s) {
    return (xp_nccl_guest_args){.calls = &fake_nccl,
                                .nccl = nccl,
                                .device = device,
                                .timeout_s = timeout_s,
                                .simulated_nodes = nodes};
}

#define N_LONG 50000 /* of int64: several times what one all-gather carries */

static void check_collectives(rank_job *job, xp_comm *comm) {
    int64_t *all = malloc((size_t)job->n_ranks * N_LONG * sizeof *all), *mine = all;
    RANK_CHECK(job, xp_comm_rank(comm) == job->rank && xp_comm_size(comm) == job->n_ranks);
    mine = all + (int64_t)job->rank * N_LONG;
    for (int64_t i = 0; i < N_LONG; i++)
        mine[i] = job->rank * 1000003 + i;
    RANK_CHECK(job, xp_comm_all_gather(comm, mine, all, N_LONG, XP_I64, NULL) == XP_OK);
    for (int r = 0; r < job->n_ranks; r++)
        for (int64_t i = 0; i < N_LONG; i += 97)
            RANK_CHECK(job, all[r * (int64_t)N_LONG + i] == r * 1000003 + i);
    int64_t sum = job->rank;
    RANK_CHECK(job, xp_comm_all_reduce(comm, &sum, &sum, 1, XP_I64, XP_SUM, NULL) == XP_OK);
    RANK_CHECK(job, sum == job->n_ranks * (job->n_ranks - 1) / 2);
    free(all);
}

/* On one node NCCL is needed while the communicator is made, between nodes for every call. */
static void run(rank_job *job, const int *nodes) {
    xp_device *device = NULL;
    xp_comm *comm = NULL;
    void *nccl = caller_init(job, &device);
    const xp_nccl_guest_args args = guest_args(device, nccl, nodes, 60);
    RANK_CHECK(job, xp_nccl_guest_create(&args, &comm) == XP_OK);
    const int n_before = fake_count(job->rank, FAKE_ALL_GATHER);
    RANK_CHECK(job, n_before > 0);
    check_collectives(job, comm);
    const int n_calls = fake_count(job->rank, FAKE_ALL_GATHER) - n_before;
    RANK_CHECK(job, nodes ? n_calls > (int)(N_LONG * sizeof(int64_t) / XP_NCCL_GUEST_BYTES)
                          : n_calls == 0);
    xp_comm_destroy(comm);
    caller_end(job, device, nccl);
}

static void one_node_body(rank_job *job) {
    run(job, NULL);
}

static void two_nodes_body(rank_job *job) {
    run(job, two_nodes);
}

static void test_collectives(void **state) {
    (void)state;
    fake_reset();
    expect_all(4, one_node_body);
    fake_reset();
    expect_all(4, two_nodes_body);
    assert_int_equal(fake_n_left(), 0);
}

static void wrong_device_body(rank_job *job) {
    xp_device *device = NULL;
    xp_comm *comm = NULL;
    void *nccl = caller_init(job, &device);
    const xp_nccl_guest_args args = guest_args(device, nccl, NULL, 60);
    RANK_CHECK(job, xp_nccl_guest_create(&args, &comm) == XP_EINVAL);
    RANK_CHECK(job, strstr(xp_last_error(), "is not of cpu") != NULL);
    RANK_CHECK(job, xp_comm_from_nccl(nccl, device, &comm) == XP_EINVAL); /* a CPU */
    RANK_CHECK(job, xp_comm_from_nccl(NULL, device, &comm) == XP_EINVAL);
    caller_end(job, device, nccl);
}

static void test_wrong_device(void **state) {
    (void)state;
    fake_reset();
    fake_set_on_device(false);
    expect_all(2, wrong_device_body);
}

/* NCCL takes no more calls: the wait ends at its limit, and the communicator stays the caller's. */
static void late_body(rank_job *job) {
    xp_device *device = NULL;
    xp_comm *comm = NULL;
    void *nccl = caller_init(job, &device);
    const xp_nccl_guest_args args = guest_args(device, nccl, two_nodes, 0.3);
    RANK_CHECK(job, xp_nccl_guest_create(&args, &comm) == XP_OK);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    fake_set_mode(FAKE_NEVER_TAKEN);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    RANK_CHECK(job, xp_comm_barrier(comm, NULL) == XP_ECOMM);
    RANK_CHECK(job, strstr(xp_last_error(), "all_gather") != NULL);
    xp_comm_destroy(comm);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    caller_end(job, device, nccl);
}

static void test_late(void **state) {
    (void)state;
    fake_reset();
    expect_all(2, late_body);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_wrong_device),
        cmocka_unit_test(test_late),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
