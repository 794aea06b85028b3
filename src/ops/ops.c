/*
 * The tables that callers get. Their entries check the arguments and queue the device's own entry
 * on the stream: on the CPU through xp_cpu_submit(), which runs it at once on an inline stream and
 * later on a worker; on a GPU the entry launches its kernels; on the null device nothing runs.
 */
#include <pthread.h>
#include "device/plugin.h"
#include "device/recorder.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/ops_check.h"

_Static_assert(sizeof(xp_attention_backward_args) <= XP_CPU_MAX_ARGS,
               "the largest arguments must fit a stream's queue");

/* The CPU's own entries by how much of the machine they use; filled once, constant afterwards. */
typedef enum cpu_level {
    CPU_REFERENCE = 0,
    CPU_PORTABLE,
    CPU_AVX2,
    CPU_AVX512,
    N_CPU_LEVELS
} cpu_level;
static xp_ops cpu_tables[N_CPU_LEVELS];
static pthread_once_t cpu_tables_once = PTHREAD_ONCE_INIT;

static void fill_cpu_tables(void) {
    static const char *const names[N_CPU_LEVELS] = {"cpu reference", "cpu portable", "cpu avx2",
                                                    "cpu avx512"};
    static const unsigned caps[N_CPU_LEVELS] = {0, 0, XP_CPU_AVX2, XP_CPU_AVX2 | XP_CPU_AVX512};
    for (int level = 0; level < N_CPU_LEVELS; level++) {
        xp_ops *ops = &cpu_tables[level];
        ops->name = names[level];
        xp_cpu_gemm_reference(&ops->gemm);
        xp_cpu_norm_reference(&ops->norm);
        xp_cpu_attention_reference(&ops->attention);
        xp_cpu_moe_reference(&ops->moe);
        xp_cpu_loss_reference(&ops->loss);
        xp_cpu_optim_reference(&ops->optim);
        if (level == CPU_REFERENCE)
            continue;
        xp_cpu_gemm_fast(&ops->gemm, caps[level]);
        xp_cpu_norm_fast(&ops->norm, caps[level]);
        xp_cpu_attention_fast(&ops->attention, caps[level]);
        xp_cpu_moe_fast(&ops->moe, caps[level]);
        xp_cpu_loss_fast(&ops->loss, caps[level]);
        xp_cpu_optim_fast(&ops->optim, caps[level]);
    }
}

static cpu_level level_of(const xp_device *device) {
    const unsigned caps = xp_cpu_device_caps(device);
    if ((caps & XP_CPU_AVX512) != 0)
        return CPU_AVX512;
    return (caps & XP_CPU_AVX2) != 0 ? CPU_AVX2 : CPU_PORTABLE;
}

static const xp_ops *cpu_table(cpu_level level) {
    pthread_once(&cpu_tables_once, fill_cpu_tables);
    return &cpu_tables[level];
}

/* The CUDA backend's entries; NULL without one, and then no CUDA device exists either. */
static const xp_ops *cuda_table(void) {
    const xp_cuda_backend *backend;
    return xp_cuda_backend_get(&backend) == XP_OK ? backend->ops : NULL;
}

/* The entries that do the work for this device. */
static const xp_ops *table_of(const xp_device *device) {
    if (xp_device_get_kind(device) == XP_DEVICE_CUDA)
        return cuda_table();
    return cpu_table(level_of(device));
}

static const xp_ops *own_table(xp_stream *stream) {
    return table_of(xp_stream_device(stream));
}

static xp_status launch(xp_stream *stream, const char *name, xp_cpu_fn run, const void *args) {
    const int64_t op = xp_recorder_begin_op(stream, name);
    return xp_recorder_end_op(stream, op, run(stream, (void *)args)); /* entries only read them */
}

static xp_status issue(xp_stream *stream, const char *name, xp_cpu_fn run, const void *args,
                       size_t n_bytes) {
    switch (xp_device_get_kind(xp_stream_device(stream))) {
    case XP_DEVICE_NULL:
        return XP_OK;
    case XP_DEVICE_CUDA:
        return launch(stream, name, run, args);
    default:
        return xp_cpu_submit_named(stream, name, run, args, n_bytes);
    }
}

/* ---- matrix products
 * -------------------------------------------------------------------------------------------------
 */

static xp_status run_gemm(xp_stream *stream, void *args) {
    return own_table(stream)->gemm.gemm(stream, args);
}
static xp_status gemm(xp_stream *stream, const xp_gemm_args *args) {
    XP_TRY(xp_ops_check_gemm(args));
    return issue(stream, "gemm", run_gemm, args, sizeof *args);
}

static xp_status run_grouped_forward(xp_stream *stream, void *args) {
    return own_table(stream)->gemm.grouped_forward(stream, args);
}
static xp_status grouped_forward(xp_stream *stream, const xp_grouped_args *args) {
    XP_TRY(xp_ops_check_grouped(args, XP_GROUPED_FORWARD));
    return issue(stream, "grouped_forward", run_grouped_forward, args, sizeof *args);
}

static xp_status run_grouped_dgrad(xp_stream *stream, void *args) {
    return own_table(stream)->gemm.grouped_dgrad(stream, args);
}
static xp_status grouped_dgrad(xp_stream *stream, const xp_grouped_args *args) {
    XP_TRY(xp_ops_check_grouped(args, XP_GROUPED_DGRAD));
    return issue(stream, "grouped_dgrad", run_grouped_dgrad, args, sizeof *args);
}

static xp_status run_grouped_wgrad(xp_stream *stream, void *args) {
    return own_table(stream)->gemm.grouped_wgrad(stream, args);
}
static xp_status grouped_wgrad(xp_stream *stream, const xp_grouped_args *args) {
    XP_TRY(xp_ops_check_grouped(args, XP_GROUPED_WGRAD));
    return issue(stream, "grouped_wgrad", run_grouped_wgrad, args, sizeof *args);
}

/* ---- embedding, norms, rope
 * ------------------------------------------------------------------------------------------ */

static xp_status run_embed_forward(xp_stream *stream, void *args) {
    return own_table(stream)->norm.embed_forward(stream, args);
}
static xp_status embed_forward(xp_stream *stream, const xp_embed_args *args) {
    XP_TRY(xp_ops_check_embed(args, false));
    return issue(stream, "embed_forward", run_embed_forward, args, sizeof *args);
}

static xp_status run_embed_backward(xp_stream *stream, void *args) {
    return own_table(stream)->norm.embed_backward(stream, args);
}
static xp_status embed_backward(xp_stream *stream, const xp_embed_args *args) {
    XP_TRY(xp_ops_check_embed(args, true));
    return issue(stream, "embed_backward", run_embed_backward, args, sizeof *args);
}

static xp_status run_rmsnorm_forward(xp_stream *stream, void *args) {
    return own_table(stream)->norm.rmsnorm_forward(stream, args);
}
static xp_status rmsnorm_forward(xp_stream *stream, const xp_rmsnorm_args *args) {
    XP_TRY(xp_ops_check_rmsnorm(args));
    return issue(stream, "rmsnorm_forward", run_rmsnorm_forward, args, sizeof *args);
}

static xp_status run_rmsnorm_apply(xp_stream *stream, void *args) {
    return own_table(stream)->norm.rmsnorm_apply(stream, args);
}
static xp_status rmsnorm_apply(xp_stream *stream, const xp_rmsnorm_apply_args *args) {
    XP_TRY(xp_ops_check_rmsnorm_apply(args));
    return issue(stream, "rmsnorm_apply", run_rmsnorm_apply, args, sizeof *args);
}

static xp_status run_rmsnorm_backward(xp_stream *stream, void *args) {
    return own_table(stream)->norm.rmsnorm_backward(stream, args);
}
static xp_status rmsnorm_backward(xp_stream *stream, const xp_rmsnorm_backward_args *args) {
    XP_TRY(xp_ops_check_rmsnorm_backward(args));
    return issue(stream, "rmsnorm_backward", run_rmsnorm_backward, args, sizeof *args);
}

static xp_status run_qknorm_rope_forward(xp_stream *stream, void *args) {
    return own_table(stream)->norm.qknorm_rope_forward(stream, args);
}
static xp_status qknorm_rope_forward(xp_stream *stream, const xp_qknorm_rope_args *args) {
    XP_TRY(xp_ops_check_qknorm_rope(args));
    return issue(stream, "qknorm_rope_forward", run_qknorm_rope_forward, args, sizeof *args);
}

static xp_status run_qknorm_rope_backward(xp_stream *stream, void *args) {
    return own_table(stream)->norm.qknorm_rope_backward(stream, args);
}
static xp_status qknorm_rope_backward(xp_stream *stream, const xp_qknorm_rope_backward_args *args) {
    XP_TRY(xp_ops_check_qknorm_rope_backward(args));
    return issue(stream, "qknorm_rope_backward", run_qknorm_rope_backward, args, sizeof *args);
}

/* ---- attention
 * -------------------------------------------------------------------------------------------------------
 */

static xp_status run_attention_forward(xp_stream *stream, void *args) {
    return own_table(stream)->attention.forward(stream, args);
}
static xp_status attention_forward(xp_stream *stream, const xp_attention_args *args) {
    XP_TRY(xp_ops_check_attention(args));
    return issue(stream, "attention_forward", run_attention_forward, args, sizeof *args);
}

static xp_status run_attention_backward(xp_stream *stream, void *args) {
    return own_table(stream)->attention.backward(stream, args);
}
static xp_status attention_backward(xp_stream *stream, const xp_attention_backward_args *args) {
    XP_TRY(xp_ops_check_attention_backward(args));
    return issue(stream, "attention_backward", run_attention_backward, args, sizeof *args);
}

static size_t attention_scratch(const xp_device *device, const xp_attention_args *args,
                                bool backward) {
    if (xp_device_get_kind(device) == XP_DEVICE_NULL)
        return xp_device_like(device) == XP_DEVICE_CUDA
                   ? xp_attention_scratch_gpu(args, backward)
                   : cpu_table(CPU_PORTABLE)->attention.scratch(device, args, backward);
    return table_of(device)->attention.scratch(device, args, backward);
}

/* ---- mixture of experts
 * ---------------------------------------------------------------------------------------------- */

static xp_status run_router_forward(xp_stream *stream, void *args) {
    return own_table(stream)->moe.router_forward(stream, args);
}
static xp_status router_forward(xp_stream *stream, const xp_router_args *args) {
    XP_TRY(xp_ops_check_router(args));
    return issue(stream, "router_forward", run_router_forward, args, sizeof *args);
}

static xp_status run_router_backward(xp_stream *stream, void *args) {
    return own_table(stream)->moe.router_backward(stream, args);
}
static xp_status router_backward(xp_stream *stream, const xp_router_backward_args *args) {
    XP_TRY(xp_ops_check_router_backward(args));
    return issue(stream, "router_backward", run_router_backward, args, sizeof *args);
}

static xp_status run_router_losses(xp_stream *stream, void *args) {
    return own_table(stream)->moe.router_losses(stream, args);
}
static xp_status router_losses(xp_stream *stream, const xp_router_losses_args *args) {
    XP_TRY(xp_ops_check_router_losses(args));
    return issue(stream, "router_losses", run_router_losses, args, sizeof *args);
}

static xp_status run_histogram(xp_stream *stream, void *args) {
    return own_table(stream)->moe.histogram(stream, args);
}
static xp_status histogram(xp_stream *stream, const xp_histogram_args *args) {
    XP_TRY(xp_ops_check_histogram(args));
    return issue(stream, "histogram", run_histogram, args, sizeof *args);
}

static xp_status run_silu_gate_prob_forward(xp_stream *stream, void *args) {
    return own_table(stream)->moe.silu_gate_prob_forward(stream, args);
}
static xp_status silu_gate_prob_forward(xp_stream *stream, const xp_silu_gate_prob_args *args) {
    XP_TRY(xp_ops_check_silu(args, true));
    return issue(stream, "silu_gate_prob_forward", run_silu_gate_prob_forward, args, sizeof *args);
}

static xp_status run_silu_gate_prob_backward(xp_stream *stream, void *args) {
    return own_table(stream)->moe.silu_gate_prob_backward(stream, args);
}
static xp_status silu_gate_prob_backward(xp_stream *stream,
                                         const xp_silu_gate_prob_backward_args *args) {
    XP_TRY(xp_ops_check_silu_backward(args));
    return issue(stream, "silu_gate_prob_backward", run_silu_gate_prob_backward, args,
                 sizeof *args);
}

/* ---- loss, optimizer, reductions
 * ------------------------------------------------------------------------------------- */

static xp_status run_cross_entropy(xp_stream *stream, void *args) {
    return own_table(stream)->loss.cross_entropy(stream, args);
}
static xp_status cross_entropy(xp_stream *stream, const xp_cross_entropy_args *args) {
    XP_TRY(xp_ops_check_cross_entropy(args));
    return issue(stream, "cross_entropy", run_cross_entropy, args, sizeof *args);
}

static xp_status run_adamw(xp_stream *stream, void *args) {
    return own_table(stream)->optim.adamw(stream, args);
}
static xp_status adamw(xp_stream *stream, const xp_adamw_args *args) {
    XP_TRY(xp_ops_check_adamw(args));
    return issue(stream, "adamw", run_adamw, args, sizeof *args);
}

static xp_status run_clip_scale(xp_stream *stream, void *args) {
    return own_table(stream)->optim.clip_scale(stream, args);
}
static xp_status clip_scale(xp_stream *stream, const xp_clip_scale_args *args) {
    XP_TRY(xp_ops_check_clip_scale(args));
    return issue(stream, "clip_scale", run_clip_scale, args, sizeof *args);
}

static xp_status run_sum_squares(xp_stream *stream, void *args) {
    return own_table(stream)->optim.sum_squares(stream, args);
}
static xp_status sum_squares(xp_stream *stream, const xp_sum_squares_args *args) {
    XP_TRY(xp_ops_check_sum_squares(args));
    return issue(stream, "sum_squares", run_sum_squares, args, sizeof *args);
}

static xp_status run_axpy(xp_stream *stream, void *args) {
    return own_table(stream)->optim.axpy(stream, args);
}
static xp_status axpy(xp_stream *stream, const xp_axpy_args *args) {
    XP_TRY(xp_ops_check_axpy(args));
    return issue(stream, "axpy", run_axpy, args, sizeof *args);
}

typedef struct sum_args {
    const float *x;
    int64_t n;
    double *out;
} sum_args;
static xp_status run_sum(xp_stream *stream, void *args) {
    const sum_args *a = args;
    return own_table(stream)->optim.sum(stream, a->x, a->n, a->out);
}
static xp_status sum(xp_stream *stream, const float *x, int64_t n, double *out) {
    XP_TRY(xp_ops_check_sum(x, n, out));
    return issue(stream, "sum", run_sum, &(sum_args){x, n, out}, sizeof(sum_args));
}

static xp_status run_draw(xp_stream *stream, void *args) {
    return own_table(stream)->optim.draw(stream, args);
}
static xp_status draw(xp_stream *stream, const xp_draw_args *args) {
    XP_TRY(xp_ops_check_draw(args));
    return issue(stream, "draw", run_draw, args, sizeof *args);
}

/* ---- the tables
 * ----------------------------------------------------------------------------------------------------
 */

/* clang-format off */
#define CHECKED_ENTRIES \
    .gemm = {.gemm = gemm, .grouped_forward = grouped_forward, .grouped_dgrad = grouped_dgrad, .grouped_wgrad = grouped_wgrad}, \
    .norm = {.embed_forward = embed_forward, .embed_backward = embed_backward, .rmsnorm_forward = rmsnorm_forward, .rmsnorm_apply = rmsnorm_apply, .rmsnorm_backward = rmsnorm_backward, .qknorm_rope_forward = qknorm_rope_forward, .qknorm_rope_backward = qknorm_rope_backward}, \
    .attention = {.forward = attention_forward, .backward = attention_backward, .scratch = attention_scratch}, \
    .moe = {.router_forward = router_forward, .router_backward = router_backward, .router_losses = router_losses, .histogram = histogram, .silu_gate_prob_forward = silu_gate_prob_forward, .silu_gate_prob_backward = silu_gate_prob_backward}, \
    .loss = {.cross_entropy = cross_entropy}, \
    .optim = {.adamw = adamw, .clip_scale = clip_scale, .sum_squares = sum_squares, .axpy = axpy, .sum = sum, .draw = draw},
/* clang-format on */

static const xp_ops checked_cpu[N_CPU_LEVELS] = {
    {.name = "cpu reference", CHECKED_ENTRIES},
    {.name = "cpu portable", CHECKED_ENTRIES},
    {.name = "cpu avx2", CHECKED_ENTRIES},
    {.name = "cpu avx512", CHECKED_ENTRIES},
};
static const xp_ops checked_cuda = {.name = "cuda", CHECKED_ENTRIES};
static const xp_ops checked_null = {.name = "null", CHECKED_ENTRIES};

xp_status xp_ops_get(const xp_device *device, const xp_ops **ops) {
    switch (xp_device_get_kind(device)) {
    case XP_DEVICE_CPU:
        *ops = &checked_cpu[level_of(device)];
        return XP_OK;
    case XP_DEVICE_NULL:
        *ops = &checked_null;
        return XP_OK;
    case XP_DEVICE_CUDA:
        if (cuda_table() == NULL)
            return XP_ENOTSUP;
        *ops = &checked_cuda;
        return XP_OK;
    default:
        return xp_error(XP_ENOTSUP, "%s: this build has no ops for it", xp_device_name(device));
    }
}

size_t xp_ops_library_bytes(const xp_device *device) {
    if (xp_device_like(device) != XP_DEVICE_CUDA)
        return 0;
    return (size_t)XP_OPS_BLAS_WORKSPACE_BYTES * XP_OPS_BLAS_STREAMS;
}

xp_status xp_ops_prepare(xp_device *device) {
    const xp_cuda_backend *backend;
    if (xp_device_get_kind(device) != XP_DEVICE_CUDA)
        return XP_OK;
    XP_TRY(xp_cuda_backend_get(&backend));
    return backend->prepare != NULL ? backend->prepare(device) : XP_OK;
}

const xp_ops *xp_ops_reference(void) {
    return cpu_table(CPU_REFERENCE);
}
