/* Foretold time: close to runs on record, made of its parts, and the bytes of an exchange by hand.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>
#include "predict/step_time.h"

#define MAX_WORDS 40

typedef struct wanted {
    const char *gpu;
    int n_ranks, n_nodes;
    const char *words[MAX_WORDS]; /* NULL at the end */
} wanted;

typedef void (*adjust_fn)(xp_hardware *hardware);

static xp_status predict(const wanted *w, adjust_fn adjust, xp_step_prediction *p) {
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
    xp_hardware hardware;
    if (xp_hardware_read(w->gpu, &hardware) != XP_OK)
        fail_msg("%s", xp_last_error());
    if (adjust)
        adjust(&hardware);
    const xp_cluster cluster = {
        .hardware = &hardware, .gpus_per_node = w->n_ranks / w->n_nodes, .network_gbps = 50};
    const xp_status status = xp_predict_step(xp_config_get(set), &layout, &cluster, p);
    xp_config_destroy(set);
    return status;
}

static xp_step_prediction predicted_with(const wanted *w, adjust_fn adjust) {
    xp_step_prediction p;
    if (predict(w, adjust, &p) != XP_OK)
        fail_msg("%s", xp_last_error());
    return p;
}

static xp_step_prediction predicted(const wanted *w) {
    return predicted_with(w, NULL);
}

#define EP(n)         "--parallelism.expert_parallel_degree", n
#define BACKEND(name) "--parallelism.expert_parallel_comm_backend", name
#define ONE_STREAM    "--parallelism.no_expert_parallel_overlap"
#define NO_GRAPHS     "--training.no_cuda_graph"
#define DEBUG_MODEL                                                                                \
    "--model.flavor", "debugmodel_moe", "--model.n_layers", "8", "--moe.num_experts", "64",        \
        "--training.seq_len", "512", "--training.local_batch_size", "8"
#define TINY                                                                                       \
    "--model.flavor", "tiny_moe", "--model.n_layers", "4", "--moe.num_experts", "32",              \
        "--training.seq_len", "256", "--training.local_batch_size", "16"
#define FORCED(mode) "--debug.moe_force_load_balance", "--debug.moe_force_load_balance_mode", mode
#define EVEN_EP_2    EP("2"), BACKEND("deepep"), "--moe.num_experts", "32", FORCED("spread")

/* Rows that were measured with kernels before today's are planned with their shares. Before the activation in the
 * epilogues of GEMMs and the attention forward: */
#define NO_EPILOGUE "--debug.device_caps", "silu_epilogue"
static void cudnn_forward(xp_hardware *h) {
    h->reached.attention_forward = 0.57;
    h->reached.attention_backward = 0.525;
    h->reached.grouped = 0.795;
    h->reached.memory = 0.80;
}

/* Before the attention backward, the memory-bound ops, and dispatch and combine by bulk copies, too: cuDNN's
 * deterministic backward made 341 TFLOP/s in a step, dispatch, combine and both backwards took 1,888 us a layer. */
static void former_kernels(xp_hardware *h) {
    const bool is_h200 = h->limits.memory_tbps > 4;
    h->reached.attention_forward = 0.57;
    h->reached.attention_backward = 0.355;
    h->reached.grouped = is_h200 ? 0.795 : 0.78;
    h->reached.memory = 0.92 * (is_h200 ? 0.80 : 0.86);
    h->reached.link = h->reached.link_backward = h->reached.link_alone = 0.45;
    h->costs.rendezvous_us = 500;
}

static double cpu_tflops; /* of the run that is looked at */
static void set_cpu_tflops(xp_hardware *h) {
    h->limits.tflops = cpu_tflops;
}

/* docs/benchmarks.md, "Planned and measured": tok/s a GPU. */
static void near_runs_on_record(void **state) {
    (void)state;
    const struct {
        wanted w;
        adjust_fn adjust;
        double tokens_per_s, within;
    } runs[] = {
        {{"h200", 1, 1, {"--model.n_layers", "48", NULL}}, NULL, 22527, 0.05},
        {{"h200", 1, 1, {"--model.n_layers", "48", "--training.local_batch_size", "8", NULL}},
         NULL,
         23261,
         0.05},
        {{"h200", 1, 1, {NO_EPILOGUE, NULL}}, cudnn_forward, 98541, 0.05},
        {{"h200", 2, 1, {NO_EPILOGUE, NULL}}, cudnn_forward, 95386, 0.05},
        {{"h200", 2, 1, {EVEN_EP_2, NO_EPILOGUE, NULL}}, cudnn_forward, 94508, 0.05},
        {{"h200", 2, 1, {"--model.n_layers", "48", NO_EPILOGUE, NULL}}, cudnn_forward, 20898, 0.05},
        {{"h200", 2, 1, {EVEN_EP_2, "--model.n_layers", "48", NO_EPILOGUE, NULL}},
         cudnn_forward,
         20594,
         0.05},
        {{"h200", 2, 1, {"--moe.top_k", "2", NO_EPILOGUE, NULL}}, cudnn_forward, 122678, 0.05},
        {{"h200", 2, 1, {EVEN_EP_2, "--moe.top_k", "2", NO_EPILOGUE, NULL}},
         cudnn_forward,
         121403,
         0.05},
        {{"h200", 2, 1, {EVEN_EP_2, "--debug.moe_send_copies", "5", NO_EPILOGUE, NULL}},
         cudnn_forward,
         88439,
         0.05},
        {{"h200",
          2,
          1,
          {EP("2"), BACKEND("deepep"), "--moe.num_experts", "32", ONE_STREAM, NO_EPILOGUE, NULL}},
         cudnn_forward,
         87896,
         0.05},
        {{"h200", 1, 1, {"--model.n_layers", "48", NO_EPILOGUE, NULL}},
         former_kernels,
         19800,
         0.05},
        {{"h200",
          1,
          1,
          {"--model.n_layers", "48", "--training.local_batch_size", "6", NO_EPILOGUE, NULL}},
         former_kernels,
         20500,
         0.05},
        {{"h200",
          2,
          1,
          {EP("2"), BACKEND("deepep"), "--model.flavor", "10B-A1B", "--model.n_layers", "32",
           "--moe.num_experts", "128", "--training.local_batch_size", "8", ONE_STREAM, NO_EPILOGUE,
           NULL}},
         former_kernels,
         37000,
         0.05},
        {{"h200", 1, 1, {DEBUG_MODEL, NULL}}, NULL, 473000, 0.05},
        {{"h200", 1, 1, {DEBUG_MODEL, NO_GRAPHS, NO_EPILOGUE, NULL}}, cudnn_forward, 405640, 0.15},
        {{"h200", 1, 1, {TINY, NULL}}, NULL, 3493000, 0.05},
        {{"h200", 1, 1, {TINY, NO_GRAPHS, NO_EPILOGUE, NULL}}, cudnn_forward, 2610578, 0.15},
        {{"h100", 1, 1, {NO_EPILOGUE, NULL}}, former_kernels, 87115, 0.10},
        {{"h100",
          2,
          1,
          {EP("2"), BACKEND("deepep"), "--moe.num_experts", "32", FORCED("spread"), ONE_STREAM,
           NO_EPILOGUE, NULL}},
         former_kernels,
         76528,
         0.10},
        {{"h100",
          2,
          1,
          {EP("2"), BACKEND("standard"), "--moe.num_experts", "32", FORCED("spread"), ONE_STREAM,
           NO_EPILOGUE, NULL}},
         former_kernels,
         64125,
         0.10},
        {{"h100",
          2,
          1,
          {EP("2"), BACKEND("deepep"), "--moe.num_experts", "32", FORCED("spread"),
           "--parallelism.expert_parallel_overlap", NO_EPILOGUE, NULL}},
         former_kernels,
         73346,
         0.10},
    };
    int n_far = 0;
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        const xp_step_prediction p = predicted_with(&runs[i].w, runs[i].adjust);
        const double ratio = p.tokens / p.step_s / runs[i].tokens_per_s;
        print_message("run %zu: %.0f tok/s measured, %.0f planned, %+.1f %%\n", i,
                      runs[i].tokens_per_s, p.tokens / p.step_s, 100 * (ratio - 1));
        n_far += !(fabs(ratio - 1) < runs[i].within);
    }
    assert_int_equal(n_far, 0);
}

/* What expert parallelism costs: tok/s of EP 2 over that of EP 1, and the exposed exchange in us a layer, forward with
 * the plan (docs/benchmarks.md; traces of one state scatter by 150 us). */
static void near_exposed_exchanges(void **state) {
    (void)state;
    const double plan_us = 35;
    const struct {
        wanted ep2, ep1;
        int n_layers;
        double percent, forward_us, backward_us;
    } runs[] = {
        {{"h200", 2, 1, {EVEN_EP_2, NO_EPILOGUE, NULL}},
         {"h200", 2, 1, {NO_EPILOGUE, NULL}},
         8,
         99.1,
         196,
         114},
        {{"h200", 2, 1, {EVEN_EP_2, "--model.n_layers", "48", NO_EPILOGUE, NULL}},
         {"h200", 2, 1, {"--model.n_layers", "48", NO_EPILOGUE, NULL}},
         48,
         98.5,
         225,
         23},
        {{"h200", 2, 1, {EVEN_EP_2, "--moe.top_k", "2", NO_EPILOGUE, NULL}},
         {"h200", 2, 1, {"--moe.top_k", "2", NO_EPILOGUE, NULL}},
         8,
         99.0,
         433,
         268},
        {{"h200", 2, 1, {EVEN_EP_2, "--debug.moe_send_copies", "5", NO_EPILOGUE, NULL}},
         {"h200", 2, 1, {NO_EPILOGUE, NULL}},
         8,
         92.7,
         1413,
         833},
    };
    int n_far = 0;
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        const xp_step_prediction p = predicted_with(&runs[i].ep2, cudnn_forward),
                                 one = predicted_with(&runs[i].ep1, cudnn_forward);
        const double percent = 100 * one.step_s / p.step_s,
                     forward_us = p.exposed_forward_s * 1e6 / runs[i].n_layers + plan_us,
                     backward_us = p.exposed_backward_s * 1e6 / runs[i].n_layers;
        print_message(
            "run %zu: EP 2 makes %.1f %% of EP 1, planned %.1f; exposed %.0f and %.0f us a "
            "layer, planned %.0f and %.0f\n",
            i, runs[i].percent, percent, runs[i].forward_us, runs[i].backward_us, forward_us,
            backward_us);
        n_far += !(fabs(percent - runs[i].percent) < 2) ||
                 !(fabs(forward_us - runs[i].forward_us) < 200) ||
                 !(fabs(backward_us - runs[i].backward_us) < 200);
    }
    assert_int_equal(n_far, 0);
}

#define NODES                                                                                      \
    EP("8"), BACKEND("deepep"), "--moe.num_experts", "128", "--model.n_layers", "48",              \
        "--training.local_batch_size", "8"

static void slow_network(xp_hardware *h) {
    h->reached.network /= 10;
}

static void slow_link(xp_hardware *h) {
    h->reached.link /= 2;
}

/* Gradients hide behind the layers below, parameters behind those before, as long as these take longer; the
 * exchange hides behind own rows, of which a larger group has fewer. */
static void what_hides(void **state) {
    (void)state;
    const wanted nodes = {"b200", 128, 16, {NODES, NULL}}, node = {"b200", 8, 1, {NODES, NULL}},
                 pair = {"b200", 8, 1, {NODES, EP("2"), NULL}};
    const xp_step_prediction a = predicted(&nodes), b = predicted_with(&nodes, slow_network),
                             c = predicted(&node), d = predicted(&pair),
                             e = predicted_with(&node, slow_link);
    assert_true(a.reduced_s > 0.1 && a.exposed_reduced_s < a.reduced_s / 20);
    assert_true(a.exposed_gathered_s > 0 && a.exposed_gathered_s < a.gathered_s / 20);
    assert_true(b.exposed_reduced_s > 0.5 * b.reduced_s &&
                b.exposed_gathered_s > 0.5 * b.gathered_s);
    /* What hides costs the layers something, and experts of one rank a node are reduced between nodes alone. */
    assert_true(a.gradients_s > a.exposed_reduced_s + a.exposed_gathered_s);
    assert_true(c.reduced_s < a.reduced_s / 10 && c.exchange_s == a.exchange_s);
    assert_true(d.exposed_forward_s < c.exposed_forward_s / 5 &&
                d.slowed_experts_s > c.slowed_experts_s);
    assert_true(e.exposed_forward_s > c.exposed_forward_s &&
                e.exposed_backward_s == c.exposed_backward_s);
}

#define MID_SIZE                                                                                   \
    "--model.flavor", "custom", "--model.dim", "512", "--model.n_layers", "4", "--model.n_heads",  \
        "8", "--model.n_kv_heads", "4", "--model.head_dim", "64", "--model.vocab_size", "8192",    \
        "--moe.num_experts", "32", "--moe.top_k", "4", "--moe.moe_dim", "384",                     \
        "--training.seq_len", "512", "--training.local_batch_size", "8", "--training.dtype",       \
        "float32"
#define DEBUG_MOE                                                                                  \
    "--model.flavor", "tiny_moe", "--model.n_layers", "4", "--moe.num_experts", "32",              \
        "--training.seq_len", "256", "--training.local_batch_size", "8", "--training.dtype",       \
        "float32"

/* Steps on a CPU by one and two ranks that share its cores; the GEMM rate is that of the same run. */
static void near_runs_on_a_cpu(void **state) {
    (void)state;
    const char *const busy = XP_SOURCE_DIR "/tests/unit/train/busy_xeon.toml";
    const struct {
        wanted w;
        double gflops, step_s;
    } runs[] = {
        {{"cpu", 1, 1, {MID_SIZE, NULL}}, 186, 2.81},
        {{busy, 1, 1, {DEBUG_MOE, NULL}}, 8.0, 2.604},
        {{busy, 1, 1, {DEBUG_MOE, NULL}}, 8.54, 2.501},
        {{busy, 2, 1, {DEBUG_MOE, NULL}}, 7.75, 5.216},
    };
    int n_far = 0;
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        cpu_tflops = runs[i].gflops * 1e-3;
        const xp_step_prediction p = predicted_with(&runs[i].w, set_cpu_tflops);
        print_message("CPU run %zu: %.3f s measured, %.3f s planned, %+.1f %%\n", i, runs[i].step_s,
                      p.step_s, 100 * (p.step_s / runs[i].step_s - 1));
        n_far += !(fabs(p.step_s / runs[i].step_s - 1) < 0.10);
    }
    assert_int_equal(n_far, 0);
}

static double sum(const xp_step_prediction *p) {
    return p->dense_s + p->attention_s + p->experts_s + p->memory_s + p->head_s + p->exchange_s +
           p->gradients_s + p->optimizer_s + p->launch_s;
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
    assert_true(d.experts_s > 1.15 * a.experts_s && d.experts_s < 1.3 * a.experts_s);
    assert_true(d.dense_s == a.dense_s && fabs(c.dense_s / a.dense_s - 4.0 / 3) < 0.01);
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
    assert_int_equal(predict(&w, NULL, &p), XP_ENOTSUP);
    assert_non_null(strstr(xp_last_error(), "float32"));
}

static void hardware_of_gpu_models(void **state) {
    (void)state;
    const char *const models[][2] = {
        {"NVIDIA H100 80GB HBM3", "h100"}, {"NVIDIA H100 PCIe", "h100-pcie"},
        {"NVIDIA H200", "h200"},           {"NVIDIA GH200 480GB", "gh200"},
        {"NVIDIA GB200", "gb200"},         {"NVIDIA B200", "b200"},
        {"NVIDIA A100-SXM4-80GB", "a100"}};
    xp_hardware h;
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        assert_int_equal(xp_hardware_of_model(models[i][0], &h), XP_OK);
        assert_string_equal(h.name, models[i][1]);
    }
    assert_int_equal(xp_hardware_of_model("AMD EPYC", &h), XP_ENOENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(near_runs_on_record),    cmocka_unit_test(near_runs_on_a_cpu),
        cmocka_unit_test(near_exposed_exchanges), cmocka_unit_test(what_hides),
        cmocka_unit_test(parts_make_the_step),    cmocka_unit_test(bytes_of_an_exchange),
        cmocka_unit_test(bytes_of_forced_load),   cmocka_unit_test(what_cannot_be_foretold),
        cmocka_unit_test(hardware_of_gpu_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
