/*
 * The hierarchical transport as a GPU uses it, on a CPU: lists in host memory and copied for the
 * kernels, exchanges on the stream, row kernels from a table of the device's. What is exchanged with
 * whom in which order is recorded; kernels must see device memory only; results must be those of the
 * CPU backend bit for bit.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "../comm/ranks.h"
#include "comm/provider.h"
#include "device/device_internal.h"
#include "ep/common/cpu/kernels.h"
#include "ep/common/cpu/metadata.h"
#include "ep/hierarchical/hierarchical.h"

enum { MAX_TOKENS = 60, DIM = 6, TOP_K = 3, EXPERTS_EACH = 2 };

/* ---- records ------------------------------------------------------------------------------ */

typedef struct record {
    const xp_comm *world, *intra_node, *inter_node;
    const xp_comm_provider *provider;
    xp_comm_provider spy;
    char calls[512];
    const xp_ep_plan *plan;
    size_t plan_bytes, forwarding_bytes;
    int n_strange; /* arrays that are no device memory */
} record;

static _Thread_local record *mine;

static void note(const xp_comm *comm, xp_comm_kind kind) {
    const size_t n = strlen(mine->calls);
    snprintf(mine->calls + n, sizeof mine->calls - n, "%s%s %s", n > 0 ? ", " : "",
             comm == mine->intra_node   ? "intra-node"
             : comm == mine->inter_node ? "inter-node"
                                        : "world",
             xp_comm_kind_name(kind));
}

static xp_status spy_run(xp_comm *comm, const xp_comm_call *call) {
    note(comm, call->kind);
    return mine->provider->run(comm, call);
}

static void spy_on(record *r, const xp_ep_group *group) {
    hier_slot *slot = ((const hier_state *)group->transport_state)->slots;
    xp_comm *all[] = {slot->metadata.comm, slot->intra_node, slot->inter_node};
    *r = (record){.intra_node = slot->intra_node,
                  .inter_node = slot->inter_node,
                  .provider = slot->intra_node->provider};
    r->spy = *r->provider;
    r->spy.run = spy_run;
    for (int i = 0; i < 3; i++)
        all[i]->provider = &r->spy;
    mine = r;
}

static bool saw(record *r, const char *calls) {
    const bool same = strcmp(r->calls, calls) == 0;
    if (!same)
        print_message("made: %s\nexpected: %s\n", r->calls, calls);
    r->calls[0] = '\0';
    return same;
}

static void expect_device(const int32_t *array) {
    const char *at = (const char *)array, *plan = mine->plan->memory,
               *forwarding = mine->plan->forwarding->memory;
    mine->n_strange += (at < plan || at >= plan + mine->plan_bytes) &&
                       (at < forwarding || at >= forwarding + mine->forwarding_bytes);
}

/* ---- kernels ------------------------------------------------------------------------------ */

static xp_status copy_rows(void *stream, const xp_ep_copy_args *args) {
    if (args->src_index)
        expect_device(args->src_index);
    xp_ep_cpu_copy_rows(stream, args);
    return XP_OK;
}

static xp_status reduce_rows(void *stream, const xp_ep_reduce_args *args) {
    expect_device(args->first);
    expect_device(args->pos);
    xp_ep_cpu_reduce_rows(stream, args);
    return XP_OK;
}

static xp_status sum_rows(void *stream, const xp_ep_sum_args *args) {
    expect_device(args->token_first);
    expect_device(args->token_row);
    expect_device(args->row_base);
    if (args->seen) {
        expect_device(args->fresh);
        expect_device(args->seen);
    }
    xp_ep_cpu_sum_rows(stream, args);
    return XP_OK;
}

static const xp_ep_row_kernels kernels = {.copy_rows = copy_rows,
                                          .reduce_rows = reduce_rows,
                                          .sum_rows = sum_rows,
                                          .weights = xp_ep_cpu_metadata_weights,
                                          .on_stream = true};

/* ---- one rank ----------------------------------------------------------------------------- */

typedef struct side {
    xp_ep_group *group;
    xp_ep_plan *plan;
    float *recv, *out, d_topk_weight[MAX_TOKENS * TOP_K];
} side;

typedef struct problem {
    xp_device *device;
    xp_stream *stream;
    bool several_rounds;
    int64_t n_tokens, assignment_capacity;
    int32_t ids[MAX_TOKENS * TOP_K];
    float weights[MAX_TOKENS * TOP_K], x[MAX_TOKENS * DIM];
    float *y, *d_weight;
    side own, gpu; /* the CPU backend; as on a GPU */
} problem;

static float noise(uint32_t a, uint32_t b) {
    uint32_t h = a * 2654435761U ^ b * 40503U;
    h = (h ^ h >> 13) * 0x5bd1e995U;
    return (float)(h >> 8) / 16777216.0F - 0.5F;
}

static void fill(problem *p, int rank, int n_experts) {
    p->n_tokens = rank == 2 ? 0 : MAX_TOKENS - rank;
    for (int t = 0; t < MAX_TOKENS; t++)
        for (int k = 0; k < TOP_K; k++) {
            const int first = t * 5 + rank * 3 + t / 7;
            p->ids[t * TOP_K + k] =
                (t + k) % 9 == 0 ? -1 : (first + k * (n_experts / TOP_K)) % n_experts;
            p->weights[t * TOP_K + k] = noise((uint32_t)t, (uint32_t)k);
        }
    for (int i = 0; i < MAX_TOKENS * DIM; i++)
        p->x[i] = noise((uint32_t)rank + 100, (uint32_t)i);
}

static xp_status make_side(problem *p, side *s, xp_comm *comm, double factor, bool on_gpu) {
    const xp_ep_config config = {.max_tokens = MAX_TOKENS,
                                 .dim = DIM,
                                 .top_k = TOP_K,
                                 .n_experts = EXPERTS_EACH * xp_comm_size(comm),
                                 .dtype = XP_F32,
                                 .capacity_factor = factor,
                                 .transport = XP_EP_HIERARCHICAL};
    XP_TRY(xp_ep_group_create(comm, p->device, &config, &s->group));
    s->group->config.on_gpu = on_gpu; /* of the plans to come */
    XP_TRY(xp_ep_plan_create(s->group, &s->plan));
    p->assignment_capacity = s->group->shape.assignment_capacity;
    s->recv = calloc((size_t)p->assignment_capacity * DIM, sizeof(float));
    s->out = calloc((size_t)MAX_TOKENS * DIM, sizeof(float));
    memset(s->d_topk_weight, 0, sizeof s->d_topk_weight);
    return XP_OK;
}

static void free_side(side *s) {
    xp_ep_plan_destroy(s->plan);
    xp_ep_group_destroy(s->group);
    free(s->recv);
    free(s->out);
}

/* What xp_ep_cuda's build leaves to do: fetched arrays, and nothing else to read. */
static xp_status rebuild(const problem *p) {
    xp_ep_plan *plan = p->gpu.plan;
    xp_ep_forwarding *forwarding = plan->forwarding;
    const xp_ep_shape *s = &plan->group->shape;
    const size_t ints = sizeof(int32_t), n_ranks = (size_t)s->n_ranks;
    memset(forwarding->memory, 0x7f, mine->forwarding_bytes);
    memset(forwarding->send_token, 0x7f, (size_t)s->max_send_rows * ints);
    memset(forwarding->send_round, 0x7f, (size_t)(s->max_rounds + 1) * n_ranks * ints);
    memset(forwarding->lists.fan_out, 0x7f, (size_t)s->max_tokens * ints);
    memcpy(forwarding->send_token, plan->send_token, (size_t)plan->send_row_base[n_ranks] * ints);
    if (plan->n_rounds > 1) {
        memcpy(forwarding->send_round, plan->send_round,
               (size_t)(plan->n_rounds + 1) * n_ranks * ints);
        memcpy(forwarding->round_row, plan->round_row, (size_t)(plan->n_rounds + 1) * ints);
    }
    const xp_ep_call call = {
        .group = plan->group, .plan = plan, .stream = p->stream, .phase = "plan"};
    return xp_ep_forwarding_build_fetched(&call, plan->rank_counts);
}

static void check_round(rank_job *job, problem *p, int64_t round) {
    const int64_t cap = p->own.group->shape.recv_capacity;
    const xp_ep_call call = {.group = p->gpu.group,
                             .plan = p->gpu.plan,
                             .stream = p->stream,
                             .round = round,
                             .phase = "dispatch"};
    const xp_tensor x = xp_tensor_2d(p->x, XP_F32, p->n_tokens, DIM),
                    y = xp_tensor_2d(p->y, XP_F32, p->assignment_capacity, DIM);
    xp_tensor recv = xp_tensor_2d(p->own.recv, XP_F32, cap, DIM),
              out = xp_tensor_2d(p->own.out, XP_F32, p->n_tokens, DIM);
    RANK_CHECK(job,
               xp_ep_dispatch(p->own.group, p->own.plan, round, &x, &recv, p->stream) == XP_OK);
    RANK_CHECK(job, xp_ep_hier_dispatch(&call, &kernels, p->stream, p->x, p->gpu.recv) == XP_OK);
    RANK_CHECK(job, saw(mine, "inter-node all-to-allv, intra-node all-to-allv"));
    RANK_CHECK(job, memcmp(p->own.recv, p->gpu.recv, (size_t)(cap * DIM) * sizeof(float)) == 0);
    for (int64_t i = 0; i < p->assignment_capacity * DIM; i++)
        p->y[i] = noise((uint32_t)(job->rank + 7 * round), (uint32_t)i);
    for (int64_t i = 0; i < p->assignment_capacity; i++)
        p->d_weight[i] = noise((uint32_t)(job->rank + 11 * round), (uint32_t)i);
    RANK_CHECK(job, xp_ep_dispatch_backward(p->own.group, p->own.plan, round, &y, p->d_weight, &out,
                                            p->own.d_topk_weight, p->stream) == XP_OK);
    const xp_ep_combine_args args = {p->y, p->d_weight, p->gpu.out, p->gpu.d_topk_weight};
    RANK_CHECK(job, xp_ep_hier_combine(&call, &kernels, p->stream, &args) == XP_OK);
    RANK_CHECK(job, saw(mine, "intra-node all-to-allv, inter-node all-to-allv, world all-to-allv"));
    RANK_CHECK(job,
               memcmp(p->own.out, p->gpu.out, (size_t)(p->n_tokens * DIM) * sizeof(float)) == 0);
    RANK_CHECK(
        job, memcmp(p->own.d_topk_weight, p->gpu.d_topk_weight, sizeof p->own.d_topk_weight) == 0);
}

static void check_problem(rank_job *job, problem *p, record *r) {
    xp_ep_plan *plan = p->gpu.plan;
    spy_on(r, p->gpu.group);
    r->plan = plan;
    r->plan_bytes = xp_ep_plan_bytes(&p->gpu.group->shape, &p->gpu.group->config);
    r->forwarding_bytes = xp_ep_forwarding_bytes(&p->gpu.group->shape, &p->gpu.group->config);
    p->y = calloc((size_t)p->assignment_capacity * DIM, sizeof(float));
    p->d_weight = calloc((size_t)p->assignment_capacity, sizeof(float));
    RANK_CHECK(job, xp_ep_plan_build(p->own.group, p->ids, p->weights, p->n_tokens, p->stream,
                                     p->own.plan) == XP_OK);
    RANK_CHECK(job, xp_ep_plan_build(p->gpu.group, p->ids, p->weights, p->n_tokens, p->stream,
                                     plan) == XP_OK);
    /* Counts and assignments of so few tokens travel together. */
    RANK_CHECK(job, saw(r, "world all-to-allv, inter-node all-to-all, inter-node all-to-allv"));
    RANK_CHECK(job, rebuild(p) == XP_OK);
    RANK_CHECK(job, saw(r, "inter-node all-to-all, inter-node all-to-allv"));
    RANK_CHECK(job, (plan->n_rounds > 1) == p->several_rounds);
    for (int64_t round = 0; round < plan->n_rounds && job->n_wrong == 0; round++)
        check_round(job, p, round);
    RANK_CHECK(job, r->n_strange == 0);
    free(p->y);
    free(p->d_weight);
}

static void run_rank(rank_job *job, double factor, bool several_rounds) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    problem *p = calloc(1, sizeof *p);
    record *r = calloc(1, sizeof *r);
    p->several_rounds = several_rounds;
    fill(p, job->rank, EXPERTS_EACH * job->n_ranks);
    RANK_CHECK(job, xp_device_create(&args, &p->device) == XP_OK);
    RANK_CHECK(job, xp_stream_create(p->device, XP_STREAM_COMPUTE, &p->stream) == XP_OK);
    RANK_CHECK(job, make_side(p, &p->own, job->comm, factor, false) == XP_OK);
    RANK_CHECK(job, make_side(p, &p->gpu, job->comm, factor, true) == XP_OK);
    if (job->n_wrong == 0)
        check_problem(job, p, r);
    free_side(&p->own);
    free_side(&p->gpu);
    xp_stream_destroy(p->stream);
    RANK_CHECK(job, xp_device_bytes(p->device, NULL) == 0 && xp_host_bytes(p->device, NULL) == 0);
    xp_device_destroy(p->device);
    free(p);
    free(r);
}

static void run_roomy(rank_job *job) {
    run_rank(job, 8, false);
}

static void run_tight(rank_job *job) {
    run_rank(job, 0.4, true);
}

static void over_worlds(void (*body)(rank_job *job)) {
    const int nodes[][6] = {
        {0, 1}, {0, 1, 1, 0}, {2, 0, 1, 1, 2, 0}, {0, 0, 1, 0, 1, 1}, {0, 0, 0}};
    const int n_ranks[] = {2, 4, 6, 6, 3};
    for (size_t i = 0; i < sizeof n_ranks / sizeof n_ranks[0]; i++) {
        rank_job *jobs = run_ranks(n_ranks[i], 60, nodes[i], body);
        for (int r = 0; r < n_ranks[i]; r++)
            if (jobs[r].n_wrong > 0)
                fail_msg("%d ranks: %s", n_ranks[i], jobs[r].first);
        free(jobs);
    }
}

static void test_one_round(void **state) {
    (void)state;
    over_worlds(run_roomy);
}

static void test_several_rounds(void **state) {
    (void)state;
    over_worlds(run_tight);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_round),
                                       cmocka_unit_test(test_several_rounds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
