#include "phases.h"

#include <string.h>
#include "ops/ops.h"

const char *xp_bench_phase_name(xp_bench_phase phase) {
    static const char *const names[XP_BENCH_N_PHASES] = {"attention forward", "attention backward",
                                                         "dense GEMMs",       "expert GEMMs",
                                                         "expert activation", "router",
                                                         "norms and rope",    "embedding",
                                                         "head GEMMs",        "loss",
                                                         "expert exchange",   "collectives",
                                                         "optimizer",         "copies"};
    return names[phase];
}

static xp_bench_phase phase_of_gemm(const xp_arch *arch, const xp_gemm_args *a) {
    const int64_t v = arch->vocab_size, e = arch->n_experts;
    if (a->m == v || a->n == v || a->k == v)
        return XP_BENCH_HEAD_GEMM;
    if (e > 0 && (a->m == e || a->n == e || a->k == e))
        return XP_BENCH_ROUTER;
    return XP_BENCH_DENSE_GEMM;
}

static int64_t grouped_rows(const xp_grouped_args *a) {
    const int64_t all = a->offsets[a->n_experts];
    int64_t in_range = 0;
    for (int64_t e = 0; a->rows != XP_ROWS_ALL && e < a->n_experts; e++)
        in_range += a->row_range[2 * e + 1] - a->row_range[2 * e];
    return a->rows == XP_ROWS_IN_RANGE ? in_range : all - in_range;
}

static double flops_of(const char *name, const void *args) {
    if (strcmp(name, "gemm") == 0) {
        const xp_gemm_args *a = args;
        return 2.0 * (double)a->m * (double)a->n * (double)a->k;
    }
    if (strncmp(name, "grouped_", 8) == 0) {
        const xp_grouped_args *a = args;
        return 2.0 * (double)grouped_rows(a) * (double)a->n * (double)a->k;
    }
    return 0;
}

/* Names that begin so. The rest are collectives: comm names its work by kind. */
static const struct {
    const char *name;
    xp_bench_phase phase;
} prefixes[] = {
    {"attention_forward", XP_BENCH_ATTENTION_FORWARD},
    {"attention_backward", XP_BENCH_ATTENTION_BACKWARD},
    {"grouped_", XP_BENCH_EXPERT_GEMM},
    {"silu_gate_prob", XP_BENCH_EXPERT_ACTIVATION},
    {"router_", XP_BENCH_ROUTER},
    {"histogram", XP_BENCH_ROUTER},
    {"rmsnorm_", XP_BENCH_NORMS},
    {"qknorm_", XP_BENCH_NORMS},
    {"embed_", XP_BENCH_EMBEDDING},
    {"cross_entropy", XP_BENCH_LOSS},
    {"sum_squares", XP_BENCH_OPTIMIZER},
    {"sum", XP_BENCH_LOSS},
    {"clip_scale", XP_BENCH_OPTIMIZER},
    {"adamw", XP_BENCH_OPTIMIZER},
    {"remainder_", XP_BENCH_OPTIMIZER},
    {"axpy", XP_BENCH_OPTIMIZER},
    {"copy", XP_BENCH_COPIES},
    {"plan", XP_BENCH_EXCHANGE},
    {"dispatch", XP_BENCH_EXCHANGE},
    {"combine", XP_BENCH_EXCHANGE},
};

static xp_bench_phase phase_of(const xp_arch *arch, const char *name, const void *args) {
    if (strcmp(name, "gemm") == 0)
        return phase_of_gemm(arch, args);
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++)
        if (strncmp(name, prefixes[i].name, strlen(prefixes[i].name)) == 0)
            return prefixes[i].phase;
    return XP_BENCH_COLLECTIVE;
}

static void ran(void *context, xp_stream *stream, const char *name, const void *args,
                double began_s, double ended_s) {
    xp_bench_phases *phases = context;
    (void)stream;
    xp_bench_phase_total *total = &phases->totals[phase_of(phases->arch, name, args)];
    pthread_mutex_lock(&phases->lock);
    total->seconds += ended_s - began_s;
    total->flops += flops_of(name, args);
    total->n_calls++;
    pthread_mutex_unlock(&phases->lock);
}

void xp_bench_phases_start(xp_bench_phases *phases, xp_device *device, const xp_arch *arch) {
    memset(phases, 0, sizeof *phases);
    phases->arch = arch;
    pthread_mutex_init(&phases->lock, NULL);
    const xp_cpu_observer observer = {.ran = ran, .context = phases};
    xp_cpu_device_observe(device, &observer);
}

void xp_bench_phases_stop(xp_bench_phases *phases, xp_device *device) {
    xp_cpu_device_observe(device, NULL);
    pthread_mutex_destroy(&phases->lock);
}

void xp_bench_phases_take(xp_bench_phases *phases, xp_bench_phase_total totals[XP_BENCH_N_PHASES]) {
    pthread_mutex_lock(&phases->lock);
    memcpy(totals, phases->totals, sizeof phases->totals);
    memset(phases->totals, 0, sizeof phases->totals);
    pthread_mutex_unlock(&phases->lock);
}
