#include "ep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "ep_rank.h"

#define MIN_SAMPLES 5

typedef xp_bench_ep_rank bench_rank;
typedef xp_bench_lane lane;

typedef struct shared_case {
    const xp_bench_ep_case *c;
    xp_bench_ep_row *rows;
} shared_case;

static size_t row_bytes(const xp_bench_ep_case *c) {
    return (size_t)c->dim * xp_dtype_bytes(c->dtype);
}

xp_status xp_bench_ep_reduce(const bench_rank *r, double *values, int n, xp_reduce_op op) {
    if (!r->rank->world)
        return XP_OK;
    return xp_comm_all_reduce(r->rank->world, values, values, n, XP_F64, op, NULL);
}

xp_status xp_bench_ep_barrier(const bench_rank *r) {
    return r->rank->world ? xp_comm_barrier(r->rank->world, NULL) : XP_OK;
}

static xp_ep_config config_of(const xp_bench_ep_case *c, int i) {
    return (xp_ep_config){.max_tokens = c->n_tokens,
                          .dim = c->dim,
                          .top_k = c->top_k,
                          .n_experts = c->n_experts,
                          .dtype = c->dtype,
                          .capacity_factor = c->capacity_factor,
                          .transport = c->transports[i],
                          .host_synchronized = c->host_synchronized,
                          .num_sms = c->num_sms};
}

static xp_status open_lane(bench_rank *r, int i) {
    lane *l = &r->lanes[i];
    const xp_ep_config config = config_of(r->c, i);
    XP_TRY(xp_ep_group_create(r->rank->world, r->d.device, &config, &l->group));
    XP_TRY(xp_ep_plan_create(l->group, &l->plan));
    const xp_ep_sizes sizes = xp_ep_group_sizes(l->group);
    r->recv_rows = sizes.recv_capacity > r->recv_rows ? sizes.recv_capacity : r->recv_rows;
    r->assignment_rows = sizes.assignment_capacity > r->assignment_rows ? sizes.assignment_capacity
                                                                        : r->assignment_rows;
    return XP_OK;
}

/* After all memory has been reserved, which on a GPU may wait for kernels that wait for this rank.
 */
static xp_status plan_lane(bench_rank *r, lane *l) {
    xp_ep_counts counts;
    XP_TRY(xp_ep_plan_build(l->group, r->device_ids, r->device_weights, r->c->n_tokens, r->d.stream,
                            l->plan));
    XP_TRY(xp_ep_plan_wait(l->plan, &counts));
    l->n_rounds = counts.n_rounds;
    l->n_recv = counts.n_recv;
    l->n_assignments = counts.n_assignments;
    return XP_OK;
}

static xp_status queue_copy(void *context) {
    bench_rank *r = context;
    return xp_copy(r->d.stream, r->copy_to, r->copy_from, r->link.n_bytes);
}

/* The GPU's own rate, by one rank while the others wait. */
static xp_status sample_gpu_copy(bench_rank *r) {
    double seconds = 0;
    if (r->rank->rank == 0)
        XP_TRY(r->d.backend->time_call(r->d.stream, queue_copy, r, &seconds));
    XP_TRY(xp_bench_ep_reduce(r, &seconds, 1, XP_MAX));
    xp_bench_samples_add(&r->copy_rate, 2.0 * (double)r->link.n_bytes / seconds);
    return XP_OK;
}

static xp_status sample_copy(bench_rank *r) {
    XP_TRY(xp_bench_ep_barrier(r));
    if (r->d.backend)
        return sample_gpu_copy(r);
    const double began = xp_time_s();
    XP_TRY(queue_copy(r));
    XP_TRY(xp_stream_sync(r->d.stream));
    double seconds = xp_time_s() - began;
    XP_TRY(xp_bench_ep_reduce(r, &seconds, 1, XP_MAX));
    xp_bench_samples_add(&r->copy_rate, 2.0 * (double)r->link.n_bytes * r->c->n_ranks / seconds);
    return XP_OK;
}

/* rows[i]: what this rank sends to rank i, itself included. */
static void count_rows(const bench_rank *r, bool each_assignment, double *rows) {
    const int each = r->c->n_experts / r->c->n_ranks, top_k = r->c->top_k;
    for (int64_t t = 0; t < r->c->n_tokens; t++) {
        const int32_t *ids = r->ids + t * top_k;
        for (int k = 0; k < top_k; k++) {
            bool counted = false;
            for (int before = 0; before < k && !each_assignment; before++)
                counted |= ids[before] / each == ids[k] / each;
            rows[ids[k] / each] += counted ? 0 : 1;
        }
    }
}

/* What the busiest rank sends or receives (xp_bench_ep_row.link_bytes); own: tokens with an assignment on their own rank. */
static xp_status count_link(const bench_rank *r, xp_ep_transport transport, double *n_bytes,
                            double *own) {
    const int n = r->c->n_ranks, rank = r->rank->rank;
    double *rows = calloc((size_t)n, sizeof *rows), out = 0;
    *n_bytes = *own = 0;
    if (!rows)
        return xp_error(XP_ENOMEM, "no memory for %d ranks", n);
    count_rows(r, transport == XP_EP_A2A, rows);
    for (int i = 0; i < n; i++)
        out += i == rank ? 0 : rows[i];
    rows[rank] = 0;
    xp_status status = xp_bench_ep_reduce(r, rows, n, XP_SUM);
    double most = rows[rank] > out ? rows[rank] : out;
    memset(rows, 0, (size_t)n * sizeof *rows);
    count_rows(r, false, rows);
    *own = rows[rank];
    free(rows);
    if (status == XP_OK)
        status = xp_bench_ep_reduce(r, &most, 1, XP_MAX);
    *n_bytes = most * (double)row_bytes(r->c);
    return status;
}

/* Threads of a CPU read each other's expert rows where they are, while there is one round of them:
 * no sum has to be stored for another rank. */
static bool stores_sums(const bench_rank *r, const lane *l) {
    const bool threads = r->rank->team != NULL;
    return !threads || r->d.backend || l->n_rounds > 1;
}

static xp_status fill_row(bench_rank *r, int i) {
    const lane *l = &r->lanes[i];
    const double row = (double)row_bytes(r->c);
    double link_bytes,
        sums[4] = {(double)l->n_recv, (double)l->n_assignments, (double)r->c->n_tokens};
    XP_TRY(count_link(r, r->c->transports[i], &link_bytes, &sums[3]));
    XP_TRY(xp_bench_ep_reduce(r, sums, 4, XP_SUM));
    if (r->rank->rank != 0)
        return XP_OK;
    const double recv = sums[0], stored = stores_sums(r, l) ? recv - sums[3] : 0;
    r->rows[i] = (xp_bench_ep_row){.n_rounds = l->n_rounds,
                                   .memcpy_bytes_per_s = xp_bench_samples_median(&r->copy_rate),
                                   .link_both_bytes_per_s = xp_bench_samples_median(&r->link.both),
                                   .link_one_bytes_per_s = xp_bench_samples_median(&r->link.one),
                                   .link_bytes = link_bytes,
                                   .moved_bytes = 2 * recv * row,
                                   .dispatch_bytes = 2 * recv * row,
                                   .combine_bytes = (sums[1] + 2 * stored + sums[2]) * row,
                                   .n_samples = l->op_s[0].n};
    r->rows[i].plan_s = xp_bench_samples_median(&l->plan_s);
    for (int op = 0; op < XP_BENCH_EP_N_OPS; op++)
        r->rows[i].op_s[op] = xp_bench_samples_median(&l->op_s[op]);
    return XP_OK;
}

static xp_status measure(bench_rank *r) {
    const xp_bench_ep_case *c = r->c;
    XP_TRY(xp_bench_device_open(r->rank, c->cuda, &r->d));
    XP_TRY(xp_bench_ep_take_routing(r));
    for (int i = 0; i < c->n_transports; i++)
        XP_TRY(open_lane(r, i));
    XP_TRY(xp_bench_ep_take_memory(r));
    XP_TRY(xp_bench_ep_barrier(r));
    for (int i = 0; i < c->n_transports; i++)
        XP_TRY(plan_lane(r, &r->lanes[i]));
    for (int i = 0; i < c->n_transports; i++)
        XP_TRY(xp_bench_lane_warm_up(r, &r->lanes[i]));
    double spent = 0;
    for (int n = 0; n < MIN_SAMPLES || spent < c->seconds; n++) {
        const double began = xp_time_s();
        XP_TRY(sample_copy(r));
        XP_TRY(xp_bench_link_sample(&r->link));
        for (int i = 0; i < c->n_transports; i++)
            XP_TRY(xp_bench_lane_sample(r, &r->lanes[(i + n) % c->n_transports]));
        double seconds = (xp_time_s() - began) / c->n_transports;
        XP_TRY(xp_bench_ep_reduce(r, &seconds, 1, XP_MAX)); /* all ranks agree on when to stop */
        spent += seconds;
    }
    for (int i = 0; i < c->n_transports; i++)
        XP_TRY(fill_row(r, i));
    return XP_OK;
}

static xp_status run_rank(xp_bench_rank *rank, void *data) {
    const shared_case *shared = data;
    bench_rank *r = calloc(1, sizeof *r);
    if (!r)
        return xp_error(XP_ENOMEM, "no memory for a rank");
    r->c = shared->c;
    r->rows = shared->rows;
    r->rank = rank;
    const xp_status status = measure(r);
    if (status != XP_OK && rank->world)
        xp_comm_abort(rank->world, NULL);
    for (int i = 0; i < r->c->n_transports; i++) {
        xp_ep_plan_destroy(r->lanes[i].plan);
        xp_ep_group_destroy(r->lanes[i].group);
    }
    xp_bench_link_close(&r->link);
    xp_bench_device_close(&r->d);
    free(r);
    return status;
}

/* What is wrong with the sizes is known before a rank starts. */
static xp_status check(const xp_bench_ep_case *c) {
    for (int i = 0; i < c->n_transports; i++) {
        xp_ep_config config = config_of(c, i);
        xp_ep_sizes sizes;
        config.on_gpu = c->cuda && c->n_ranks > 1;
        XP_TRY(xp_ep_query_sizes(&config, c->n_ranks, &sizes));
    }
    return XP_OK;
}

xp_status xp_bench_ep(const xp_bench_host *host, const xp_bench_ep_case *c, xp_bench_ep_row *rows) {
    shared_case shared = {.c = c, .rows = rows};
    memset(rows, 0, (size_t)c->n_transports * sizeof *rows);
    xp_status status = check(c);
    if (status == XP_OK)
        status = xp_bench_run_ranks(host, c->n_ranks, run_rank, &shared);
    for (int i = 0; status != XP_OK && i < c->n_transports; i++) {
        rows[i].failed = true;
        snprintf(rows[i].error, sizeof rows[i].error, "%s", xp_last_error());
    }
    return status;
}
