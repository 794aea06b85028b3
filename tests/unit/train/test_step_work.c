/* The work of a step by parts: what the predictor's own model says of it at the same limits, and figures by hand. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>
#include "predict/step_work.h"

#define MAX_WORDS 24

typedef struct both {
    xp_step_work work;
    xp_step_prediction predicted;
} both;

/* A machine that reaches its limits: FLOP and bytes are all that takes time. */
static void make_ideal(xp_hardware *h) {
    h->limits.units = 1;
    h->measured.gemm_tflops = h->measured.copy_tbps = h->measured.link_gbps = 0;
    h->reached.dense = h->reached.grouped = h->reached.wgrad = h->reached.memory = 1;
    h->reached.attention_forward = h->reached.attention_backward = h->reached.link = 1;
    h->reached.grouped_2048_rows = h->reached.grouped_256_rows = 1;
    h->reached.adding_16384_rows = h->reached.adding_2048_rows = h->reached.adding_256_rows = 1;
    h->reached.dense_depth = h->reached.grouped_depth = h->reached.attention_length = 0;
    memset(&h->costs, 0, sizeof h->costs);
}

static void work_out(const char *const *words, int n_ranks, void (*adjust)(xp_hardware *),
                     both *out) {
    char *argv[MAX_WORDS] = {"--model.flavor",     "30B-A3B", "--moe.num_experts",           "16",
                             "--training.seq_len", "4096",    "--training.local_batch_size", "4",
                             "--training.dtype",   "bfloat16"};
    int argc = 10;
    xp_config_set *set = NULL;
    xp_mesh layout;
    xp_hardware hardware;
    for (int i = 0; words[i]; i++)
        argv[argc++] = (char *)words[i];
    if (xp_config_load(argc, argv, false, &set) != XP_OK ||
        xp_hardware_read("h200", &hardware) != XP_OK ||
        xp_mesh_layout(xp_config_get(set), n_ranks, 0, &layout) != XP_OK)
        fail_msg("%s", xp_last_error());
    if (adjust)
        adjust(&hardware);
    const xp_cluster cluster = {
        .hardware = &hardware, .gpus_per_node = n_ranks, .network_gbps = 50};
    if (xp_predict_work(xp_config_get(set), &layout, &cluster, &out->work) != XP_OK ||
        xp_predict_step(xp_config_get(set), &layout, &cluster, &out->predicted) != XP_OK)
        fail_msg("%s", xp_last_error());
    xp_config_destroy(set);
}

static double floors(const both *b, xp_part first, xp_part last) {
    double sum = 0;
    for (int i = (int)first; i <= (int)last; i++)
        sum += b->work.parts[i].floor_s;
    return sum;
}

static void check_near(double got, double want, double within) {
    if (!(fabs(got / want - 1) <= within))
        fail_msg("%.6g instead of %.6g", got, want);
}

static void only_flops(xp_hardware *h) {
    make_ideal(h);
    h->limits.memory_tbps = 1e12;
}

static void only_bytes(xp_hardware *h) {
    make_ideal(h);
    h->limits.tflops = 1e12;
}

/* Every mode of recomputation, accumulation, experts over ranks, a dense model. */
static void same_as_the_predictor(void **state) {
    (void)state;
    static const struct {
        int n_ranks;
        const char *words[8];
    } runs[] = {
        {1, {NULL}},
        {1, {"--activation_checkpoint.mode", "selective", NULL}},
        {1, {"--activation_checkpoint.mode", "full", NULL}},
        {1, {"--training.global_batch_size", "16", NULL}},
        {2, {"--parallelism.expert_parallel_degree", "2", NULL}},
        {1, {"--model.flavor", "0.6B", "--moe.num_experts", "0", NULL}},
        {1,
         {"--model.flavor", "0.6B", "--moe.num_experts", "0", "--activation_checkpoint.mode",
          "selective", NULL}},
        {1,
         {"--model.flavor", "0.6B", "--moe.num_experts", "0", "--activation_checkpoint.mode",
          "full", NULL}},
    };
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        both b;
        work_out(runs[i].words, runs[i].n_ranks, only_flops, &b);
        const xp_step_prediction *p = &b.predicted;
        check_near(floors(&b, XP_PART_ATTENTION_FORWARD, XP_PART_ATTENTION_BACKWARD),
                   p->attention_s, 1e-6);
        /* The router's GEMM is one of the dense ones here. */
        check_near(floors(&b, XP_PART_DENSE_FORWARD, XP_PART_DENSE_BACKWARD), p->dense_s, 0.005);
        check_near(b.work.parts[XP_PART_HEAD].floor_s, p->head_s, 1e-6);
        if (p->experts_s > 0)
            check_near(floors(&b, XP_PART_EXPERT_FORWARD, XP_PART_EXPERT_WGRAD), p->experts_s,
                       1e-6);
        work_out(runs[i].words, runs[i].n_ranks, only_bytes, &b);
        check_near(b.work.parts[XP_PART_OPTIMIZER].floor_s, b.predicted.optimizer_s, 1e-6);
        assert_int_equal(b.work.parts[XP_PART_OPTIMIZER].bound, XP_BOUND_COPY);
    }
}

/* The predictor counts the bytes of a layer's memory-bound ops as one sum. */
static void memory_bound_ops(void **state) {
    (void)state;
    both b;
    work_out((const char *[]){"--debug.device_caps", "cudnn,silu_epilogue", NULL}, 1, only_bytes,
             &b);
    const double all = floors(&b, XP_PART_ACTIVATION, XP_PART_EXCHANGE);
    check_near(all, b.predicted.memory_s, 0.15);
    /* The activation in the GEMMs' epilogues is no op of its own. */
    work_out((const char *[]){NULL}, 1, only_bytes, &b);
    check_near(all - b.work.parts[XP_PART_ACTIVATION].floor_s, b.predicted.memory_s, 0.15);
}

/* 48 layers of 4 x 4096 tokens: 2.5 times 2 T S q FLOP of attention; 8 assignments a token. */
static void figures_by_hand(void **state) {
    (void)state;
    both b;
    work_out((const char *[]){NULL}, 1, NULL, &b);
    const xp_step_limits *l = &b.work.limits;
    const double t = 16384, layers = 48;
    assert_true(l->measured);
    check_near(l->flops, 787e12, 1e-9);
    check_near(l->memory, 4.23e12, 1e-9);
    check_near(b.work.parts[XP_PART_ATTENTION_BACKWARD].floor_s,
               layers * 5 * t * 4096 * 4096 / 787e12, 1e-9);
    check_near(b.work.parts[XP_PART_EXPERT_DGRAD].flops, layers * 6 * t * 8 * 2048 * 768, 1e-9);
    check_near(b.work.parts[XP_PART_ACTIVATION].bytes, layers * 9 * 2 * t * 8 * 768, 1e-9);
    check_near(b.work.parts[XP_PART_QK_NORM_ROPE].bytes, layers * 7 * 2 * t * 36 * 128, 1e-9);
    check_near(b.work.parts[XP_PART_CROSS_ENTROPY].floor_s, 4 * t * 151936 / 4.23e12, 1e-9);
    check_near(b.work.parts[XP_PART_EXCHANGE].bytes, layers * 2 * 9 * 2 * t * 2048, 1e-9);
    assert_int_equal(b.work.parts[XP_PART_ATTENTION_FORWARD].bound, XP_BOUND_GEMM);
    assert_int_equal(b.work.parts[XP_PART_NORMS].bound, XP_BOUND_COPY);
    for (int i = XP_PART_OTHER; i < XP_N_PARTS; i++)
        assert_true(b.work.parts[i].floor_s == 0 && xp_part_name((xp_part)i)[0]);
}

/* An exchange takes its bytes over the link, unless it can hide. */
static void exchange_between_ranks(void **state) {
    (void)state;
    static const char *const words[][8] = {{"--parallelism.expert_parallel_degree", "2",
                                            "--parallelism.no_expert_parallel_overlap", NULL},
                                           {"--parallelism.expert_parallel_degree", "2", NULL}};
    both b;
    work_out(words[0], 2, NULL, &b);
    const xp_part_work *w = &b.work.parts[XP_PART_EXCHANGE];
    assert_int_equal(w->bound, XP_BOUND_LINK);
    assert_true(w->link_bytes == b.predicted.link_bytes && w->link_bytes > 0);
    check_near(w->floor_s, b.predicted.link_bytes / 394e9, 1e-9);
    work_out(words[1], 2, NULL, &b);
    assert_true(w->floor_s == 0 && w->link_bytes > 0);
}

/* [measured] is a file's own: what it leans on has other rates. */
static void data_sheet_limits(void **state) {
    (void)state;
    xp_hardware h;
    assert_int_equal(xp_hardware_read("b200", &h), XP_OK);
    assert_true(h.measured.gemm_tflops == 0 && h.measured.copy_tbps == 0);
    both b;
    work_out((const char *[]){NULL}, 1, make_ideal, &b);
    assert_false(b.work.limits.measured);
    check_near(b.work.limits.flops, 989e12, 1e-9);
}

/* Whatever the sizes: what rounding leaves of an exchange that hides nothing is no negative time. */
static void nothing_is_negative(void **state) {
    (void)state;
    static const char *const degrees[] = {"2", "4", "8"}, *const modes[] = {"none", "selective",
                                                                            "full"};
    for (int i = 0; i < 3 * 3 * 16; i++) {
        char batch[8];
        snprintf(batch, sizeof batch, "%d", i / 9 + 1);
        const char *const words[] = {"--model.flavor",
                                     "debugmodel_moe",
                                     "--training.seq_len",
                                     "1000",
                                     "--training.local_batch_size",
                                     batch,
                                     "--parallelism.expert_parallel_degree",
                                     degrees[i % 3],
                                     "--activation_checkpoint.mode",
                                     modes[i / 3 % 3],
                                     "--parallelism.expert_parallel_overlap",
                                     NULL};
        both b;
        work_out(words, 16, NULL, &b);
        const xp_step_prediction *p = &b.predicted;
        assert_true(p->hidden_exchange_s >= 0 && !signbit(p->hidden_exchange_s));
        assert_true(p->exposed_forward_s >= 0 && p->exposed_backward_s >= 0);
        assert_true(p->exposed_reduced_s >= 0 && p->exposed_reduced_s <= p->reduced_s);
        assert_true(p->exposed_gathered_s >= 0 && p->exposed_gathered_s <= p->gathered_s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_as_the_predictor), cmocka_unit_test(memory_bound_ops),
        cmocka_unit_test(figures_by_hand),       cmocka_unit_test(exchange_between_ranks),
        cmocka_unit_test(data_sheet_limits),     cmocka_unit_test(nothing_is_negative),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
