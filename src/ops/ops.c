/*
 * The tables that callers get, made from XP_OP_LIST. An op is four functions deep: the checked entry
 * gemm(), submit(), run_gemm() in the stream's order, and the device's own entry, which computes or
 * launches its kernel.
 */
#include <pthread.h>
#include "device/plugin.h"
#include "device/recorder.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/ops_check.h"

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
        xp_cpu_gemm_reference(ops);
        xp_cpu_norm_reference(ops);
        xp_cpu_attention_reference(ops);
        xp_cpu_attention_decode(ops);
        xp_cpu_moe_reference(ops);
        xp_cpu_grouped_silu(ops);
        xp_cpu_loss_reference(ops);
        xp_cpu_optim_reference(ops);
        if (level == CPU_REFERENCE)
            continue;
        xp_cpu_gemm_fast(ops, caps[level]);
        xp_cpu_norm_fast(ops, caps[level]);
        xp_cpu_attention_fast(ops, caps[level]);
        xp_cpu_moe_fast(ops, caps[level]);
        xp_cpu_loss_fast(ops, caps[level]);
        xp_cpu_optim_fast(ops, caps[level]);
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

/* Queue an op whose arguments are right: a CPU stream copies them and runs `queued` when it gets
 * there, a GPU launches now, and the null device runs nothing. */
static xp_status submit(xp_stream *stream, const char *name, xp_cpu_fn queued, const void *args,
                        size_t n_bytes) {
    int64_t op;
    switch (xp_device_get_kind(xp_stream_device(stream))) {
    case XP_DEVICE_NULL:
        return XP_OK;
    case XP_DEVICE_CUDA:
        op = xp_recorder_begin_op(stream, name);
        return xp_recorder_end_op(stream, op, queued(stream, (void *)args)); /* only read there */
    default:
        return xp_cpu_submit_named(stream, name, queued, args, n_bytes);
    }
}

/* For each op: what runs in the stream's order, and the entry that callers get. */
#define DEFINE_OP(entry, queued, args_type, check, cuda)                                           \
    _Static_assert(sizeof(args_type) <= XP_CPU_MAX_ARGS, #args_type " must fit a stream's queue"); \
    static xp_status queued(xp_stream *stream, void *args) {                                       \
        return table_of(xp_stream_device(stream))->entry(stream, args);                            \
    }                                                                                              \
    static xp_status entry(xp_stream *stream, const args_type *args) {                             \
        XP_TRY(check(args));                                                                       \
        return submit(stream, #entry, queued, args, sizeof *args);                                 \
    }
XP_OP_LIST(DEFINE_OP)
#undef DEFINE_OP

static size_t attention_scratch(const xp_device *device, const xp_attention_args *args,
                                bool backward) {
    if (xp_device_get_kind(device) == XP_DEVICE_NULL)
        return xp_device_like(device) == XP_DEVICE_CUDA
                   ? xp_attention_scratch_gpu(args, backward)
                   : cpu_table(CPU_PORTABLE)->attention_scratch(device, args, backward);
    return table_of(device)->attention_scratch(device, args, backward);
}

static bool fuses_silu(const xp_device *device, const xp_silu_sizes *sizes) {
    return xp_device_get_kind(device) == XP_DEVICE_CUDA && cuda_table()->fuses_silu(device, sizes);
}

#define CHECKED_ENTRY(entry, queued, args_type, check, cuda) .entry = entry,
#define CHECKED_ENTRIES                                                                            \
    XP_OP_LIST(CHECKED_ENTRY).attention_scratch = attention_scratch, .fuses_silu = fuses_silu

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
