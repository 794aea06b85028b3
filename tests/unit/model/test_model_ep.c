/* A model whose experts are spread over rank threads is the same model: loss, gradients, counts;
 * overlap and recomputation too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "device/recorder.h"
#include "harness.h"
#include "model/model_internal.h"
#include "model/moe_core_internal.h"

enum { MAX_RANKS = 3, ROWS = 6, SEQ = 7, MAX_OPS = 1024 };

typedef struct rank_job {
    xp_thread_world *world;
    int rank, n_ranks;
    xp_model_args args;
    const xp_test_model *whole; /* the batch of all ranks */
    xp_model_loss loss;
    float *grads; /* of this rank's table */
    xp_param_table *table;
    int64_t counts[3 * 6];
    bool accumulates;            /* a second pass adds to the gradients */
    bool row_by_row;             /* the experts' rows do not depend on each other's number */
    char order[2][MAX_OPS * 24]; /* recorded ops of the last pass: compute, worker */
} rank_job;

/* Rows rank, rank + n, ...: what each rank trains on. */
static void copy_rows(rank_job *job, xp_test_model *mine) {
    int n_rows = ROWS / job->n_ranks;
    const xp_test_model *all = job->whole;
    for (int64_t i = 0; i < n_rows * SEQ; i++) {
        int64_t from = ((i / SEQ) * job->n_ranks + job->rank) * SEQ + i % SEQ;
        mine->tokens[i] = all->tokens[from];
        mine->targets[i] = all->targets[from];
        mine->positions[i] = all->positions[from];
    }
    mine->batch.loss_scale = all->batch.loss_scale;
}

/* The last pass, recorded: the names of each stream's ops in order. */
static void record_step(rank_job *job, xp_test_model *t) {
    xp_recorder *recorder = NULL;
    xp_recording ops;
    xp_test_must(xp_recorder_create(t->device, MAX_OPS, &recorder));
    xp_test_must(xp_recorder_start(recorder));
    job->loss = xp_test_step(t);
    xp_test_must(xp_recorder_stop(recorder, &ops));
    assert_int_equal(ops.n_lost, 0);
    for (int64_t i = 0; i < ops.n_ops; i++) {
        char *order = job->order[strcmp(ops.rows[ops.ops[i].row], "compute stream") != 0];
        strcat(strcat(order, ops.ops[i].name), "|");
    }
    xp_recorder_destroy(recorder);
}

/* A fast GEMM of a CPU sums a row in an order that may depend on how many rows there are. */
static xp_status forward_row_by_row(xp_stream *stream, const xp_grouped_args *args) {
    return xp_ops_reference()->grouped_forward(stream, args);
}

static void *rank_main(void *arg) {
    rank_job *job = arg;
    xp_test_model t;
    xp_ops ops;
    xp_comm *comm = NULL;
    xp_test_must(xp_thread_world_comm(job->world, job->rank, &comm));
    job->args.ep_comm = comm;
    job->args.n_rows = ROWS / job->n_ranks;
    xp_test_model_create(job->args, 1, &t);
    ops = *t.model->core->ops;
    if (job->row_by_row)
        ops.grouped_forward = forward_row_by_row;
    t.model->core->ops = &ops;
    copy_rows(job, &t);
    if (job->accumulates) {
        (void)xp_test_step(&t);
        t.batch.accumulate = true;
    }
    record_step(job, &t);
    job->grads = xp_test_grads(&t);
    memcpy(job->counts, xp_model_expert_counts(t.model),
           (size_t)(job->args.arch->n_layers * 6) * sizeof *job->counts);
    xp_test_must(xp_param_table_create(&t.arch, job->rank, job->n_ranks, &job->table));
    xp_test_model_destroy(&t);
    xp_comm_destroy(comm);
    return NULL;
}

/* Dense gradients are summed over the ranks, experts' stand side by side. */
static void check_param(const xp_test_model *whole, rank_job *jobs, int n_ranks, int index) {
    const xp_param *all = xp_param_table_param(xp_model_params(whole->model), index);
    float *sum = calloc((size_t)all->n_elements, sizeof(float));
    assert_non_null(sum);
    for (int r = 0; r < n_ranks; r++) {
        const xp_param *mine = xp_param_table_param(jobs[r].table, index);
        int64_t skip = mine->n_elements < all->n_elements ? r * mine->n_elements : 0;
        for (int64_t i = 0; i < mine->n_elements; i++)
            sum[skip + i] += jobs[r].grads[mine->offset + i];
    }
    const float *expected = (const float *)xp_model_grad_data(whole->model) + all->offset;
    double distance = xp_test_distance(sum, expected, all->n_elements);
    if (!(distance < 1e-5))
        fail_msg("%s: off by %.3g of its norm over %d ranks", all->name, distance, n_ranks);
    free(sum);
}

static void check(int n_ranks, xp_model_args args) {
    xp_test_model whole;
    xp_model_args alone = xp_test_args(args.arch);
    alone.n_rows = args.n_rows = ROWS;
    alone.aux_loss_coeff = args.aux_loss_coeff;
    alone.z_loss_coeff = args.z_loss_coeff;
    xp_test_model_create(alone, 1, &whole);
    xp_model_loss expected = xp_test_step(&whole);
    xp_thread_world *world = NULL;
    xp_test_must(xp_thread_world_create(n_ranks, 20.0, &world));
    static rank_job jobs[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    for (int r = 0; r < n_ranks; r++) {
        jobs[r] = (rank_job){
            .world = world, .rank = r, .n_ranks = n_ranks, .args = args, .whole = &whole};
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &jobs[r]), 0);
    }
    xp_model_loss sum = {0};
    int64_t counts[2 * 6] = {0};
    for (int r = 0; r < n_ranks; r++) {
        pthread_join(threads[r], NULL);
        sum.loss_sum += jobs[r].loss.loss_sum;
        sum.aux_loss += jobs[r].loss.aux_loss;
        sum.z_loss += jobs[r].loss.z_loss;
        for (int i = 0; i < 12; i++)
            counts[i] += jobs[r].counts[i];
    }
    assert_true(fabs(sum.loss_sum / expected.loss_sum - 1.0) < 1e-6);
    assert_true(fabs(sum.aux_loss - expected.aux_loss) <= 1e-6 * expected.aux_loss);
    assert_true(fabs(sum.z_loss - expected.z_loss) <= 1e-6 * expected.z_loss);
    assert_memory_equal(counts, xp_model_expert_counts(whole.model), sizeof(counts));
    for (int i = 0; i < xp_param_table_n_params(xp_model_params(whole.model)); i++)
        check_param(&whole, jobs, n_ranks, i);
    for (int r = 0; r < n_ranks; r++) {
        free(jobs[r].grads);
        xp_param_table_destroy(jobs[r].table);
    }
    xp_thread_world_destroy(world);
    xp_test_model_destroy(&whole);
}

static void test_ranks_equal_one(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    for (int n_ranks = 2; n_ranks <= MAX_RANKS; n_ranks++) {
        xp_model_args args = xp_test_args(&arch);
        args.ep.transport = XP_EP_P2P;
        check(n_ranks, args);
        args.ep.transport = XP_EP_A2A;
        check(n_ranks, args);
        args.aux_loss_coeff = 0.2;
        args.z_loss_coeff = 0.1;
        args.recompute = XP_RECOMPUTE_FULL;
        check(n_ranks, args);
        args.recompute = XP_RECOMPUTE_SELECTIVE;
        args.save_dispatched = XP_SAVE_DISPATCHED_YES;
        check(n_ranks, args);
    }
}

static void test_overlap_and_rounds(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    for (int n_ranks = 2; n_ranks <= MAX_RANKS; n_ranks++) {
        xp_model_args args = xp_test_args(&arch);
        args.overlap = XP_OVERLAP_HALVES;
        check(n_ranks, args);
        args.overlap_split = 0.3;
        args.recompute = XP_RECOMPUTE_FULL;
        check(n_ranks, args);
        args.ep.capacity_factor = 0.2;
        check(n_ranks, args);
        args.overlap = XP_OVERLAP_NONE;
        args.recompute = XP_RECOMPUTE_NONE;
        check(n_ranks, args);
    }
}

typedef struct run {
    rank_job jobs[MAX_RANKS];
    bool row_by_row; /* of the jobs */
} run;

static void run_ranks(int n_ranks, const xp_test_model *whole, xp_model_args args, run *r) {
    xp_thread_world *world = NULL;
    pthread_t threads[MAX_RANKS];
    args.n_rows = ROWS;
    xp_test_must(xp_thread_world_create(n_ranks, 20.0, &world));
    for (int i = 0; i < n_ranks; i++) {
        r->jobs[i] = (rank_job){.world = world,
                                .rank = i,
                                .n_ranks = n_ranks,
                                .args = args,
                                .whole = whole,
                                .accumulates = true,
                                .row_by_row = r->row_by_row};
        assert_int_equal(pthread_create(&threads[i], NULL, rank_main, &r->jobs[i]), 0);
    }
    for (int i = 0; i < n_ranks; i++)
        pthread_join(threads[i], NULL);
    xp_thread_world_destroy(world);
}

static void free_ranks(int n_ranks, run *r) {
    for (int i = 0; i < n_ranks; i++) {
        free(r->jobs[i].grads);
        xp_param_table_destroy(r->jobs[i].table);
    }
}

/* Only the order of work differs: loss and gradients of every rank have the same bits. */
static void same_bits(int n_ranks, xp_model_args args) {
    xp_test_model whole;
    xp_model_args alone = xp_test_args(args.arch);
    alone.n_rows = ROWS;
    xp_test_model_create(alone, 1, &whole);
    run *plain = calloc(1, sizeof *plain), *beside = calloc(1, sizeof *beside);
    assert_non_null(plain);
    assert_non_null(beside);
    plain->row_by_row = beside->row_by_row = true;
    args.overlap = XP_OVERLAP_NONE;
    run_ranks(n_ranks, &whole, args, plain);
    args.overlap = XP_OVERLAP_GEMMS;
    run_ranks(n_ranks, &whole, args, beside);
    for (int i = 0; i < n_ranks; i++) {
        const rank_job *a = &plain->jobs[i], *b = &beside->jobs[i];
        const size_t n = (size_t)xp_param_table_n_elements(a->table);
        assert_memory_equal(&a->loss.loss_sum, &b->loss.loss_sum, sizeof a->loss.loss_sum);
        assert_memory_equal(a->grads, b->grads, n * sizeof *a->grads);
    }
    free_ranks(n_ranks, plain);
    free_ranks(n_ranks, beside);
    free(plain);
    free(beside);
    xp_test_model_destroy(&whole);
}

/* The ops of `names` in their order, up to the loss ("sum") or from it on. */
static void only(const char *text, bool forward, const char *const *names, char *out) {
    const char *loss = strstr(text, "|sum|"), *end = forward ? loss : text + strlen(text);
    const char *at = forward ? text : loss;
    for (*out = '\0'; loss && at < end; at += strcspn(at, "|") + 1) {
        const size_t n = strcspn(at, "|");
        for (const char *const *name = names; *name; name++)
            if (strlen(*name) == n && strncmp(at, *name, n) == 0)
                strcat(strcat(out, *name), " ");
    }
}

/* Two layers: what is queued on which stream. Forward, the experts' GEMMs of own rows and of other
 * ranks' rows; backward, where the weight gradients stand. */
static void test_order_of_work(void **state) {
    (void)state;
    static const char *const forward_names[] = {"dispatch", "combine", "grouped_forward", NULL};
    static const char *const names[] = {"combine backward", "dispatch backward",  "grouped_dgrad",
                                        "grouped_wgrad",    "attention_backward", NULL};
    xp_arch arch = xp_test_moe_arch();
    xp_model_args args = xp_test_args(&arch);
    xp_test_model whole;
    xp_model_args alone = args;
    alone.n_rows = ROWS;
    xp_test_model_create(alone, 1, &whole);
    run *r = calloc(1, sizeof *r);
    char order[MAX_OPS * 24];
    assert_non_null(r);
    args.ep.capacity_factor = 4.0; /* one round */
    run_ranks(2, &whole, args, r);
    only(r->jobs[0].order[0], true, forward_names, order);
    assert_string_equal(order, "dispatch grouped_forward grouped_forward combine "
                               "dispatch grouped_forward grouped_forward combine ");
    only(r->jobs[0].order[0], false, names, order);
    assert_string_equal(order, "combine backward grouped_dgrad grouped_dgrad grouped_wgrad "
                               "grouped_wgrad dispatch backward attention_backward "
                               "combine backward grouped_dgrad grouped_dgrad grouped_wgrad "
                               "grouped_wgrad dispatch backward attention_backward ");
    assert_string_equal(r->jobs[0].order[1], "");
    free_ranks(2, r);
    args.overlap = XP_OVERLAP_GEMMS;
    run_ranks(2, &whole, args, r);
    only(r->jobs[0].order[0], true, forward_names, order);
    assert_string_equal(order, "grouped_forward grouped_forward grouped_forward grouped_forward "
                               "combine grouped_forward grouped_forward grouped_forward "
                               "grouped_forward combine ");
    only(r->jobs[0].order[0], false, names, order);
    assert_string_equal(order, "grouped_dgrad grouped_dgrad grouped_wgrad attention_backward "
                               "grouped_wgrad grouped_dgrad grouped_dgrad grouped_wgrad "
                               "attention_backward grouped_wgrad ");
    assert_string_equal(r->jobs[0].order[1], "dispatch|dispatch|"
                                             "combine backward|dispatch backward|"
                                             "combine backward|dispatch backward|");
    free_ranks(2, r);
    free(r);
    xp_test_model_destroy(&whole);
}

static void test_beside_gemms(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    arch.n_layers = 3;
    for (int n_ranks = 2; n_ranks <= MAX_RANKS; n_ranks++) {
        for (int i = 0; i < 16; i++) {
            xp_model_args args = xp_test_args(&arch);
            args.ep.transport = (i & 1) != 0 ? XP_EP_A2A : XP_EP_P2P;
            args.recompute = (i & 2) != 0 ? XP_RECOMPUTE_FULL : XP_RECOMPUTE_NONE;
            args.save_dispatched = (i & 4) != 0 ? XP_SAVE_DISPATCHED_NO : XP_SAVE_DISPATCHED_YES;
            args.ep.capacity_factor = (i & 8) != 0 ? 0.2 : 2.0; /* several rounds, one */
            same_bits(n_ranks, args);
        }
    }
}

typedef struct bytes_job {
    xp_thread_world *world;
    int rank;
    xp_model_args args;
    int64_t bytes[5];
} bytes_job;

static void read_bytes(xp_model_args args, xp_device_kind kind, int64_t bytes[5]) {
    static const char *const tags[] = {"params", "grads", "activations", "ep", "workspace"};
    const xp_device_args device = {.kind = kind, .n_threads = 1};
    xp_model *model = NULL;
    xp_test_must(xp_device_create(&device, &args.device));
    xp_test_must(xp_model_create(&args, &model));
    for (int i = 0; i < 5; i++)
        bytes[i] = xp_device_bytes(args.device, tags[i]);
    xp_model_destroy(model);
    xp_device_destroy(args.device);
}

static void *bytes_main(void *arg) {
    bytes_job *job = arg;
    xp_comm *comm = NULL;
    xp_test_must(xp_thread_world_comm(job->world, job->rank, &comm));
    job->args.ep_comm = comm;
    read_bytes(job->args, XP_DEVICE_CPU, job->bytes);
    xp_comm_destroy(comm);
    return NULL;
}

/* What a rank of two reserves is known without the other. */
static void test_null_device_counts_a_rank(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    for (int i = 0; i < 4; i++) {
        xp_model_args args = xp_test_args(&arch);
        args.overlap = i % 3;
        args.ep.transport = (i & 2) != 0 ? XP_EP_A2A : XP_EP_P2P;
        args.ep.send_copies = i;
        xp_thread_world *world = NULL;
        xp_test_must(xp_thread_world_create(2, 20.0, &world));
        bytes_job jobs[2];
        pthread_t threads[2];
        for (int r = 0; r < 2; r++) {
            jobs[r] = (bytes_job){.world = world, .rank = r, .args = args};
            assert_int_equal(pthread_create(&threads[r], NULL, bytes_main, &jobs[r]), 0);
        }
        for (int r = 0; r < 2; r++) {
            int64_t counted[5];
            pthread_join(threads[r], NULL);
            args.ep_size = 2;
            args.ep_rank = r;
            read_bytes(args, XP_DEVICE_NULL, counted);
            for (int tag = 0; tag < 5; tag++)
                assert_int_equal(counted[tag], jobs[r].bytes[tag]);
        }
        xp_thread_world_destroy(world);
    }
}

/* With all experts on one rank nothing travels: overlap changes no bit. */
static void test_one_rank_ignores_overlap(void **state) {
    (void)state;
    xp_arch arch = xp_test_moe_arch();
    xp_model_args args = xp_test_args(&arch);
    xp_test_model plain, overlapped;
    xp_test_model_create(args, 1, &plain);
    args.overlap = XP_OVERLAP_HALVES;
    xp_test_model_create(args, 1, &overlapped);
    assert_true(xp_test_step(&plain).loss_sum == xp_test_step(&overlapped).loss_sum);
    xp_test_model_destroy(&plain);
    xp_test_model_destroy(&overlapped);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_equal_one),
        cmocka_unit_test(test_overlap_and_rounds),
        cmocka_unit_test(test_order_of_work),
        cmocka_unit_test(test_beside_gemms),
        cmocka_unit_test(test_null_device_counts_a_rank),
        cmocka_unit_test(test_one_rank_ignores_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
