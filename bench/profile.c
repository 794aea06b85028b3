#include "profile.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/memory_limit.h"
#include "core/process.h"
#include "device/plugin.h"
#include "gpu_limits.h"

#define COPY_BYTES   ((size_t)64 << 20) /* of each core: more than its share of any cache */
#define COPY_REPEATS 5
#define SGEMM_FLOPS  (2.0 * XP_BENCH_SGEMM_N * XP_BENCH_SGEMM_N * XP_BENCH_SGEMM_N)
#define MAX_CORES    512
#define MAX_WORDS    64

/* Large enough for GEMMs to count, a step in a fraction of a second on two cores. */
static const char *const cpu_words[] = {
    "--model.flavor=custom",   "--model.dim=512",          "--model.n_layers=2",
    "--model.n_heads=8",       "--model.n_kv_heads=4",     "--model.head_dim=64",
    "--model.vocab_size=8192", "--moe.num_experts=32",     "--moe.top_k=4",
    "--moe.moe_dim=384",       "--training.seq_len=512",   "--training.local_batch_size=1",
    "--training.backend=cpu",  "--training.dtype=float32", NULL};
/* What docs/benchmarks.md measures on one GPU; 30 GiB. */
static const char *const gpu_words[] = {"--model.flavor=30B-A3B",
                                        "--model.n_layers=8",
                                        "--moe.num_experts=16",
                                        "--training.seq_len=4096",
                                        "--training.local_batch_size=4",
                                        "--training.backend=cuda",
                                        "--training.dtype=bfloat16",
                                        "--debug.moe_force_load_balance",
                                        NULL};

/* ---- copy rate ------------------------------------------------------------------------------ */

typedef struct copier {
    char *from, *to;
} copier;

static void *copy_some(void *context) {
    copier *c = context;
    for (int i = 0; i < COPY_REPEATS; i++)
        memcpy(c->to, c->from, COPY_BYTES);
    return NULL;
}

/* Bytes read and written a second by all cores at once; 0: no memory or threads for it. */
static double copy_rate(int n_cores) {
    copier copiers[MAX_CORES] = {{NULL, NULL}};
    pthread_t threads[MAX_CORES];
    const int n = n_cores < MAX_CORES ? n_cores : MAX_CORES;
    double best = 0;
    bool ready = true;
    for (int i = 0; i < n; i++) {
        copiers[i] = (copier){calloc(1, COPY_BYTES), malloc(COPY_BYTES)};
        ready &= copiers[i].from && copiers[i].to;
    }
    for (int run = 0; run < 3 && ready; run++) { /* the first touches the memory */
        int started = 0;
        const double began = xp_time_s();
        while (started < n &&
               pthread_create(&threads[started], NULL, copy_some, &copiers[started]) == 0)
            started++;
        for (int i = 0; i < started; i++)
            pthread_join(threads[i], NULL);
        const double rate = 2.0 * (double)COPY_BYTES * COPY_REPEATS * n / (xp_time_s() - began);
        if (run > 0 && started == n && rate > best)
            best = rate;
    }
    for (int i = 0; i < n; i++) {
        free(copiers[i].from);
        free(copiers[i].to);
    }
    return best;
}

/* ---- steps ---------------------------------------------------------------------------------- */

static xp_status run_steps(xp_config_set *config, const char *folder, int n_steps,
                           xp_bench_step_report *report) {
    const xp_bench_host host = {.world = NULL}; /* one thread */
    XP_TRY(xp_bench_step_prepare(config, folder, 1));
    const xp_bench_step_args args = {.n_variants = 1,
                                     .configs = {config},
                                     .host = &host,
                                     .n_ranks = 1,
                                     .n_warmup = 1,
                                     .n_steps = n_steps};
    return xp_bench_step(&args, report);
}

static xp_status load_and_run(const char *const *words, int n_steps, xp_config_set **config,
                              xp_bench_step_report *report) {
    char folder[] = "/tmp/expar-profile-XXXXXX";
    char *argv[MAX_WORDS];
    int argc = 0;
    while (words[argc] && argc < MAX_WORDS) {
        argv[argc] = (char *)words[argc];
        argc++;
    }
    XP_TRY(xp_config_load(argc, argv, false, config));
    if (!mkdtemp(folder))
        return xp_error(XP_EIO, "cannot make a folder in /tmp");
    xp_status status = run_steps(*config, folder, n_steps, report);
    const xp_status removed = xp_folder_remove(folder);
    return status == XP_OK ? removed : status;
}

static xp_status plan_step(const xp_config_set *config, const xp_hardware *hardware,
                           xp_step_prediction *planned) {
    xp_mesh layout;
    const xp_cluster cluster = {.hardware = hardware, .gpus_per_node = 1, .network_gbps = 1};
    XP_TRY(xp_mesh_layout(xp_config_get(config), 1, 0, &layout));
    return xp_predict_step(xp_config_get(config), &layout, &cluster, planned);
}

static double seconds_of(const xp_bench_step_result *r, const xp_bench_phase *phases, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += r->phases[phases[i]].seconds;
    return sum;
}

static void scale(double *share, double planned_s, double measured_s) {
    if (planned_s > 0 && measured_s > 0)
        *share *= planned_s / measured_s;
}

void xp_bench_profile_scale(const xp_bench_step_report *report, const xp_step_prediction *planned,
                            xp_hardware *h) {
    static const xp_bench_phase dense[] = {XP_BENCH_DENSE_GEMM, XP_BENCH_HEAD_GEMM, XP_BENCH_LOSS},
                                experts[] = {XP_BENCH_EXPERT_GEMM},
                                attention[] = {XP_BENCH_ATTENTION_FORWARD,
                                               XP_BENCH_ATTENTION_BACKWARD},
                                memory[] = {XP_BENCH_EXPERT_ACTIVATION,
                                            XP_BENCH_ROUTER,
                                            XP_BENCH_NORMS,
                                            XP_BENCH_EMBEDDING,
                                            XP_BENCH_EXCHANGE,
                                            XP_BENCH_OPTIMIZER,
                                            XP_BENCH_COPIES};
    const xp_bench_step_result *r = &report->variants[0];
    if (!report->on_gpus) {
        const double a = seconds_of(r, attention, 2);
        scale(&h->reached.dense, planned->dense_s + planned->head_s, seconds_of(r, dense, 3));
        scale(&h->reached.grouped, planned->experts_s, seconds_of(r, experts, 1));
        scale(&h->reached.attention_forward, planned->attention_s, a);
        scale(&h->reached.attention_backward, planned->attention_s, a);
        scale(&h->reached.memory, planned->memory_s + planned->optimizer_s,
              seconds_of(r, memory, 7));
        return;
    }
    /* A GPU's ops are not seen one by one: all shares by the step, fixed costs apart. */
    const double work = planned->step_s - planned->launch_s,
                 took = xp_bench_samples_median(&r->step_s) - planned->launch_s;
    double *const shares[] = {&h->reached.dense, &h->reached.grouped, &h->reached.attention_forward,
                              &h->reached.attention_backward, &h->reached.memory};
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++)
        scale(shares[i], work, took);
}

/* ---- the description ------------------------------------------------------------------------ */

static xp_status describe_gpu(const char *like, xp_bench_profile *p) {
    const xp_cuda_backend *cuda;
    int n = 0;
    double reported = 0;
    XP_TRY(xp_cuda_backend_get(&cuda));
    XP_TRY(cuda->device_count(&n));
    if (n == 0)
        return xp_error(XP_ENOTSUP, "this machine has no GPU: --device cpu measures its cores");
    XP_TRY(cuda->describe(0, p->machine, sizeof p->machine));
    if (like)
        XP_TRY(xp_hardware_read(like, &p->hardware));
    else
        XP_TRY(xp_hardware_of_model(p->machine, &p->hardware));
    const char *after_name = strchr(p->machine, ',');
    if (after_name && sscanf(after_name, ", %lf GiB", &reported) == 1 && reported > 0)
        p->hardware.limits.memory_gib = reported;
    p->hardware.network.gpus_per_node = n;
    return xp_bench_gpu_limits(&p->hardware);
}

static xp_status describe_cpu(const char *like, xp_bench_profile *p) {
    const int n_cores = xp_process_n_cores();
    XP_TRY(xp_hardware_read(like ? like : "cpu", &p->hardware));
    if (!p->hardware.is_cpu)
        return xp_error(XP_ECONFIG, "--like %s describes a GPU, and the CPU is measured", like);
    const double rate = copy_rate(n_cores), memory = (double)xp_memory_limit_get().n_bytes;
    if (rate <= 0)
        return xp_error(XP_ENOMEM, "no memory to measure the copy rate with");
    p->hardware.limits.units = n_cores;
    p->hardware.limits.memory_tbps = rate * 1e-12;
    p->hardware.limits.memory_gib = memory / (double)(1 << 30);
    snprintf(p->machine, sizeof p->machine, "CPU, %d cores", n_cores);
    return XP_OK;
}

static xp_status measure_steps(bool on_gpu, int n_steps, xp_bench_step_report *report,
                               xp_bench_profile *p) {
    xp_config_set *config = NULL;
    xp_step_prediction planned;
    xp_status status = load_and_run(on_gpu ? gpu_words : cpu_words, n_steps, &config, report);
    if (status == XP_OK && report->has_sgemm && !on_gpu)
        p->hardware.limits.tflops = SGEMM_FLOPS / xp_bench_samples_median(&report->sgemm_s) * 1e-12;
    if (status == XP_OK)
        status = plan_step(config, &p->hardware, &planned);
    if (status == XP_OK) {
        p->step_s = xp_bench_samples_median(&report->variants[0].step_s);
        p->planned_s = planned.step_s;
        xp_bench_profile_scale(report, &planned, &p->hardware);
    }
    xp_config_destroy(config);
    return status;
}

xp_status xp_bench_profile_measure(bool on_gpu, int n_steps, const char *like,
                                   xp_bench_profile *profile) {
    xp_bench_step_report *report = calloc(1, sizeof *report);
    xp_bench_profile made = {.step_s = 0};
    if (!report)
        return xp_error(XP_ENOMEM, "no memory for the report");
    xp_status status = on_gpu ? describe_gpu(like, &made) : describe_cpu(like, &made);
    if (status == XP_OK)
        status = measure_steps(on_gpu, n_steps, report, &made);
    free(report);
    if (status == XP_OK)
        *profile = made;
    return status;
}
