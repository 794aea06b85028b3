/* Foretold time: close to runs on record, made of its parts, and the bytes of an exchange by hand.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "predict/step_time.h"

#define MAX_WORDS 40

typedef struct wanted {
    const char *gpu;
    int n_ranks, n_nodes;
    const char *words[MAX_WORDS]; /* NULL at the end */
} wanted;

static xp_status predict(const wanted *w, xp_step_prediction *p) {
    char *argv[2 * MAX_WORDS] = {"--model.flavor",
                                 "30B-A3B",
                                 "--training.seq_len",
                                 "4096",
                                 "--training.local_batch_size",
                                 "4",
                                 "--moe.num_experts",
                                 "16",
                                 "--model.n_layers",
                                 "8",
                                 "--training.dtype",
                                 "bfloat16"};
    int argc = 12;
    for (int i = 0; w->words[i]; i++)
        argv[argc++] = (char *)w->words[i];
    xp_config_set *set = NULL;
    xp_mesh layout;
    if (xp_config_load(argc, argv, false, &set) != XP_OK ||
        xp_mesh_layout(xp_config_get(set), w->n_ranks, 0, &layout) != XP_OK)
        fail_msg("%s", xp_last_error());
    layout.ep_nodes = xp_mesh_ep_nodes(&layout, w->n_nodes);
    const xp_cluster cluster = {
        .gpu = xp_gpu_named(w->gpu), .gpus_per_node = w->n_ranks / w->n_nodes, .network_gbps = 50};
    const xp_status status = xp_predict_step(xp_config_get(set), &layout, &cluster, p);
    xp_config_destroy(set);
    return status;
}

static xp_step_prediction predicted(const wanted *w) {
    xp_step_prediction p;
    if (predict(w, &p) != XP_OK)
        fail_msg("%s", xp_last_error());
    return p;
}

#define EP(n)         "--parallelism.expert_parallel_degree", n
#define BACKEND(name) "--parallelism.expert_parallel_comm_backend", name

/* docs/benchmarks.md; 10 % because single runs differ by 4 % and some are of older kernels. */
static void near_runs_on_record(void **state) {
    (void)state;
    const struct {
        wanted w;
        double tokens_per_s;
    } runs[] = {
        {{"h100", 1, 1, {NULL}}, 87115},
        {{"h200", 1, 1, {"--model.n_layers", "48", NULL}}, 18400},
        {{"h100", 2, 1, {EP("2"), BACKEND("deepep"), "--moe.num_experts", "32", NULL}}, 76528},
        {{"h100", 2, 1, {EP("2"), BACKEND("standard"), "--moe.num_experts", "32", NULL}}, 64125},
    };
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        const xp_step_prediction p = predicted(&runs[i].w);
        const double ratio = p.tokens / p.step_s / runs[i].tokens_per_s;
        if (!(fabs(ratio - 1) < 0.1))
            fail_msg("run %zu: %.0f tok/s foretold, %.0f measured", i, p.tokens / p.step_s,
                     runs[i].tokens_per_s);
    }
}

static double sum(const xp_step_prediction *p) {
    return p->dense_s + p->attention_s + p->experts_s + p->memory_s + p->head_s + p->exchange_s +
           p->gradients_s + p->optimizer_s;
}

static void parts_make_the_step(void **state) {
    (void)state;
    const wanted one = {"h100", 1, 1, {NULL}},
                 twice = {"h100", 1, 1, {"--training.global_batch_size", "8", NULL}},
                 full = {"h100", 1, 1, {"--activation_checkpoint.mode", "full", NULL}},
                 selective = {"h100", 1, 1, {"--activation_checkpoint.mode", "selective", NULL}};
    const xp_step_prediction a = predicted(&one), b = predicted(&twice), c = predicted(&full),
                             d = predicted(&selective);
    assert_true(fabs(sum(&a) / a.step_s - 1) < 1e-12);
    assert_true(a.exchange_s == 0 && a.gradients_s == 0 && a.gradient_bytes == 0);
    assert_true(a.tokens == 16384 && b.tokens == 32768);
    /* Two passes: all work twice, the update once; gradients of experts are added in fp32. */
    assert_true(b.experts_s > 2 * a.experts_s && b.experts_s < 2.5 * a.experts_s);
    assert_int_equal(b.n_passes, 2);
    assert_true(fabs(b.head_s / a.head_s - 2) < 1e-12);
    assert_true(b.optimizer_s < 1.5 * a.optimizer_s);
    /* Recomputation: gate and up are two of nine models' worth; all of it a forward pass more. */
    assert_true(fabs(d.experts_s / a.experts_s - 11.0 / 9) < 1e-12);
    assert_true(d.dense_s == a.dense_s && fabs(c.dense_s / a.dense_s - 4.0 / 3) < 1e-12);
    assert_true(c.step_s > d.step_s && d.step_s > a.step_s);
}

/* One assignment a token: it stays with 1 of R ranks. 4 times 2 bytes x 2048 a token and layer. */
static void bytes_of_an_exchange(void **state) {
    (void)state;
    const double row = 4.0 * 2 * 2048 * 16384 * 8;
    const wanted p2p = {"h100", 4, 1, {EP("4"), BACKEND("deepep"), "--moe.top_k", "1", NULL}},
                 a2a = {"h100", 4, 1, {EP("4"), BACKEND("standard"), "--moe.top_k", "1", NULL}},
                 assignments = {"h100",
                                4,
                                1,
                                {EP("4"), BACKEND("standard"), "--moe.top_k", "8", NULL}},
                 all = {"h100", 4, 1, {EP("4"), BACKEND("deepep"), "--moe.top_k", "16", NULL}},
                 nodes = {"h100", 4, 2, {EP("4"), BACKEND("standard"), "--moe.top_k", "1", NULL}},
                 forwarded = {"h100",
                              4,
                              2,
                              {EP("4"), BACKEND("deepep"), "--deepep.transport", "hierarchical",
                               "--moe.top_k", "16", NULL}};
    assert_true(fabs(predicted(&p2p).link_bytes / (row * 3 / 4) - 1) < 1e-9);
    assert_true(fabs(predicted(&a2a).link_bytes / (row * 3 / 4) - 1) < 1e-9);
    assert_true(fabs(predicted(&assignments).link_bytes / (row * 8 * 3 / 4) - 1) < 1e-9);
    assert_true(fabs(predicted(&all).link_bytes / (row * 3) - 1) < 1e-9); /* every rank, once */
    assert_true(predicted(&all).network_bytes == 0);
    const xp_step_prediction two = predicted(&nodes), once = predicted(&forwarded);
    assert_true(fabs(two.link_bytes / (row / 4) - 1) < 1e-9);
    assert_true(fabs(two.network_bytes / (row / 2) - 1) < 1e-9);
    assert_true(fabs(once.network_bytes / row - 1) < 1e-9); /* the other node, once */
}

/* 8 assignments in turn over 16 ranks (spread) are 8 ranks of one node of two; over 128 experts (modulo)
 * one rank of 8 experts. */
static void bytes_of_forced_load(void **state) {
    (void)state;
    const double row = 4.0 * 2 * 2048 * 16384 * 8;
    const wanted spread = {"h100",
                           16,
                           2,
                           {EP("16"), BACKEND("deepep"), "--deepep.transport", "hierarchical",
                            "--moe.num_experts", "128", "--debug.moe_force_load_balance",
                            "--debug.moe_force_load_balance_mode", "spread", NULL}},
                 modulo = {"h100",
                           16,
                           1,
                           {EP("16"), BACKEND("deepep"), "--moe.num_experts", "128",
                            "--debug.moe_force_load_balance", NULL}};
    assert_true(fabs(predicted(&spread).network_bytes / (row / 2) - 1) < 1e-9);
    assert_true(fabs(predicted(&spread).link_bytes / (row * 7) - 1) < 1e-9);
    assert_true(fabs(predicted(&modulo).link_bytes / (row * 15 / 16) - 1) < 1e-9);
}

static void what_cannot_be_foretold(void **state) {
    (void)state;
    const wanted w = {"h100", 1, 1, {"--training.dtype", "float32", NULL}};
    xp_step_prediction p;
    assert_int_equal(predict(&w, &p), XP_ENOTSUP);
    assert_non_null(strstr(xp_last_error(), "float32"));
}

static void gpus_by_name(void **state) {
    (void)state;
    const char *const models[][2] = {
        {"NVIDIA H100 80GB HBM3", "h100"}, {"NVIDIA H100 PCIe", "h100-pcie"},
        {"NVIDIA H200", "h200"},           {"NVIDIA GH200 480GB", "gh200"},
        {"NVIDIA GB200", "gb200"},         {"NVIDIA B200", "b200"},
        {"NVIDIA A100-SXM4-80GB", "a100"}};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++)
        assert_string_equal(xp_gpu_of_model(models[i][0])->name, models[i][1]);
    assert_null(xp_gpu_of_model("AMD EPYC"));
    assert_ptr_equal(xp_gpu_named("H200"), xp_gpu_named("h200"));
    assert_null(xp_gpu_named("h20"));
    for (int i = 0; xp_gpu_at(i); i++)
        assert_ptr_equal(xp_gpu_named(xp_gpu_at(i)->name), xp_gpu_at(i));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(near_runs_on_record),     cmocka_unit_test(parts_make_the_step),
        cmocka_unit_test(bytes_of_an_exchange),    cmocka_unit_test(bytes_of_forced_load),
        cmocka_unit_test(what_cannot_be_foretold), cmocka_unit_test(gpus_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
