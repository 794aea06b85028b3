#include "self_test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/rng.h"
#include "self_test_parts.h"

/* ---- ops --------------------------------------------------------------------------------- */

#define MOST_ROWS  256
#define MOST_WIDTH 128
#define N_EXPERTS  4

/* Inputs and the result of an op, in the memory of the host or of a device. */
typedef struct op_memory {
    _Alignas(256) float a[MOST_ROWS * MOST_WIDTH];
    _Alignas(256) float b[N_EXPERTS * MOST_WIDTH * MOST_WIDTH];
    _Alignas(256) float p[MOST_ROWS];
    _Alignas(256) float rstd[MOST_ROWS];
    _Alignas(256) int32_t offsets[N_EXPERTS + 1];
    _Alignas(256) float out[MOST_ROWS * MOST_WIDTH];
} op_memory;

/* m is of the stream's device: its members' addresses are taken, nothing is read. */
typedef struct op_case {
    const xp_ops *ops;
    xp_stream *stream;
    op_memory *m;
    int64_t n_rows, width;
    xp_dtype dtype;
} op_case;

static xp_status call_gemm(const op_case *c) {
    const xp_gemm_args args = {.m = c->n_rows,
                               .n = c->width,
                               .k = c->width,
                               .trans_b = true,
                               .a = c->m->a,
                               .b = c->m->b,
                               .c = c->m->out,
                               .lda = c->width,
                               .ldb = c->width,
                               .ldc = c->width,
                               .ab_dtype = c->dtype,
                               .c_dtype = c->dtype,
                               .alpha = 1.0F};
    return c->ops->gemm(c->stream, &args);
}

static xp_status call_grouped(const op_case *c) {
    const xp_grouped_args args = {.n_experts = N_EXPERTS,
                                  .max_rows = c->n_rows,
                                  .n = c->width,
                                  .k = c->width,
                                  .offsets = c->m->offsets,
                                  .x = c->m->a,
                                  .w = c->m->b,
                                  .y = c->m->out,
                                  .dtype = c->dtype,
                                  .dw_dtype = c->dtype};
    return c->ops->grouped_forward(c->stream, &args);
}

static xp_status call_rmsnorm(const op_case *c) {
    const xp_rmsnorm_args args = {.n_rows = c->n_rows,
                                  .dim = c->width,
                                  .eps = 1e-6F,
                                  .x = c->m->a,
                                  .w = c->m->b,
                                  .y = c->m->out,
                                  .rstd = c->m->rstd,
                                  .dtype = c->dtype};
    return c->ops->rmsnorm_forward(c->stream, &args);
}

static xp_status call_activation(const op_case *c) {
    const int64_t half = c->width / 2;
    const xp_silu_gate_prob_args args = {.n_rows = c->n_rows,
                                         .dim = half,
                                         .a = c->m->a,
                                         .b = (const char *)c->m->a +
                                              (size_t)half * xp_dtype_bytes(c->dtype),
                                         .ld = c->width,
                                         .p = c->m->p,
                                         .h = c->m->out,
                                         .dtype = c->dtype};
    return c->ops->silu_gate_prob_forward(c->stream, &args);
}

static xp_status call_axpy(const op_case *c) {
    const xp_axpy_args args = {
        .n = c->n_rows * c->width / 2, .alpha = 0.5F, .x = c->m->a, .y = c->m->out};
    return c->ops->axpy(c->stream, &args);
}

static const struct {
    const char *name;
    xp_status (*call)(const op_case *c);
    bool is_f32; /* whatever the rows are */
} op_tests[] = {
    {"GEMM", call_gemm, false},       {"grouped GEMM", call_grouped, false},
    {"RMSNorm", call_rmsnorm, false}, {"silu*gate*prob", call_activation, false},
    {"axpy", call_axpy, true},
};
#define N_OP_TESTS (sizeof op_tests / sizeof op_tests[0])

static float value_of(const void *data, xp_dtype dtype, int64_t i) {
    return dtype == XP_BF16 ? xp_bf16_to_f32(((const uint16_t *)data)[i])
                            : ((const float *)data)[i];
}

xp_status xp_self_test_compare(const char *what, const void *got, const void *wanted, int64_t n,
                               xp_dtype dtype) {
    const float near = dtype == XP_BF16 ? 0.02F : 1e-4F;
    float worst = 0;
    int64_t at = -1;
    for (int64_t i = 0; i < n; i++) {
        const float x = value_of(got, dtype, i), y = value_of(wanted, dtype, i);
        const float difference = isfinite(x) ? fabsf(x - y) : INFINITY;
        if (difference > near * (1.0F + fabsf(y)) && difference > worst) {
            worst = difference;
            at = i;
        }
    }
    if (at < 0)
        return XP_OK;
    return xp_error(XP_EINTERNAL,
                    "%s is wrong: the largest difference to the plain code is %g, at element %lld "
                    "(%g instead of %g)",
                    what, (double)worst, (long long)at, (double)value_of(got, dtype, at),
                    (double)value_of(wanted, dtype, at));
}

void xp_self_test_fill(uint64_t seed, int64_t n, xp_dtype dtype, float *values) {
    xp_rng_fill_normal(1, seed, 0, n, 1.0F, values);
    uint16_t *narrow = (uint16_t *)values;
    for (int64_t i = 0; dtype == XP_BF16 && i < n; i++)
        narrow[i] = xp_bf16_from_f32(values[i]);
}

/* An expert without rows among them. */
static void fill(op_memory *m, int64_t n_rows, xp_dtype dtype) {
    memset(m, 0, sizeof *m);
    xp_self_test_fill(1, MOST_ROWS * MOST_WIDTH, dtype, m->a);
    xp_self_test_fill(2, N_EXPERTS * MOST_WIDTH * MOST_WIDTH, dtype, m->b);
    xp_self_test_fill(3, MOST_ROWS, XP_F32, m->p);
    const int64_t n[] = {0, n_rows / 3, n_rows / 3, n_rows / 2, n_rows};
    for (int i = 0; i <= N_EXPERTS; i++)
        m->offsets[i] = (int32_t)n[i];
}

static xp_status try_op(size_t i, const op_case *fast, const op_case *plain, op_memory *got) {
    const size_t n_bytes = sizeof *got;
    char what[96];
    XP_TRY(xp_copy(fast->stream, fast->m, plain->m, n_bytes));
    XP_TRY(op_tests[i].call(fast));
    XP_TRY(xp_copy(fast->stream, got, fast->m, n_bytes));
    XP_TRY(xp_stream_sync(fast->stream));
    XP_TRY(op_tests[i].call(plain));
    XP_TRY(xp_stream_sync(plain->stream));
    const xp_device *device = xp_stream_device(fast->stream);
    const bool on_cpu = xp_device_get_kind(device) == XP_DEVICE_CPU;
    snprintf(what, sizeof what, "%s: %s", on_cpu ? fast->ops->name : xp_device_name(device),
             op_tests[i].name);
    const xp_dtype dtype = op_tests[i].is_f32 ? XP_F32 : fast->dtype;
    const int64_t n = MOST_ROWS * MOST_WIDTH;
    XP_TRY(xp_self_test_compare(what, got->out, plain->m->out, n, dtype));
    memset(plain->m->out, 0, sizeof plain->m->out);
    return XP_OK;
}

xp_status xp_self_test_open(xp_device_kind kind, int index, xp_self_test_device *d) {
    const xp_device_args args = {.kind = kind, .index = index, .n_threads = 2};
    *d = (xp_self_test_device){NULL};
    XP_TRY(xp_device_create(&args, &d->device));
    return xp_stream_create(d->device, XP_STREAM_COMPUTE, &d->stream);
}

void xp_self_test_close(xp_self_test_device *d) {
    xp_stream_destroy(d->stream);
    xp_device_destroy(d->device);
}

/* Sizes that whole tiles of a GPU's tensor cores fit, and odd ones for a CPU. */
static xp_status try_ops(op_case *fast, op_case *plain, op_memory *got) {
    const bool is_bf16 = fast->dtype == XP_BF16;
    fast->n_rows = plain->n_rows = is_bf16 ? 256 : 37;
    fast->width = plain->width = is_bf16 ? 128 : 72;
    fill(plain->m, fast->n_rows, fast->dtype);
    for (size_t i = 0; i < N_OP_TESTS; i++)
        XP_TRY(try_op(i, fast, plain, got));
    return XP_OK;
}

xp_status xp_self_test_table(xp_device *device, const xp_ops *ops, xp_dtype dtype, char *text,
                             size_t n_text) {
    op_case fast = {.ops = ops, .dtype = dtype},
            plain = {.ops = xp_ops_reference(), .dtype = dtype};
    xp_self_test_device host;
    void *memory[3] = {NULL, NULL, NULL};
    xp_status status = xp_self_test_open(XP_DEVICE_CPU, 0, &host);
    if (status == XP_OK)
        status = xp_stream_create(device, XP_STREAM_COMPUTE, &fast.stream);
    if (status == XP_OK)
        status = xp_device_alloc(device, sizeof(op_memory), "self test", &memory[0]);
    for (int i = 1; i < 3 && status == XP_OK; i++)
        status = xp_device_alloc(host.device, sizeof(op_memory), "self test", &memory[i]);
    if (status == XP_OK) {
        fast.m = memory[0];
        plain.m = memory[1];
        plain.stream = host.stream;
        status = try_ops(&fast, &plain, memory[2]);
    }
    if (status == XP_OK)
        snprintf(text, n_text, "%s agrees with the plain code in %zu ops", ops->name, N_OP_TESTS);
    xp_device_free(device, memory[0]);
    for (int i = 1; i < 3 && host.device; i++)
        xp_device_free(host.device, memory[i]);
    xp_stream_destroy(fast.stream);
    xp_self_test_close(&host);
    return status;
}

static xp_status try_device(xp_device_kind kind, int index, xp_dtype dtype, char *text,
                            size_t n_text) {
    xp_self_test_device d;
    const xp_ops *ops = NULL;
    xp_status status = xp_self_test_open(kind, index, &d);
    if (status == XP_OK)
        status = xp_ops_get(d.device, &ops);
    if (status == XP_OK)
        status = xp_self_test_table(d.device, ops, dtype, text, n_text);
    xp_self_test_close(&d);
    return status;
}

xp_status xp_self_test_ops(char *text, size_t n_text) {
    return try_device(XP_DEVICE_CPU, 0, XP_F32, text, n_text);
}

xp_status xp_self_test_gpu_ops(int gpu, char *text, size_t n_text) {
    return try_device(XP_DEVICE_CUDA, gpu, XP_BF16, text, n_text);
}

/* ---- files ------------------------------------------------------------------------------- */

xp_status xp_self_test_folder(const char *folder, char *text, size_t n_text) {
    char path[4096], back[16] = "";
    static const char content[] = "expar doctor";
    snprintf(path, sizeof path, "%s/.expar-doctor-XXXXXX", folder);
    const int fd = mkstemp(path);
    if (fd < 0)
        return xp_error(XP_EIO, "cannot create a file in %s: %s", folder, strerror(errno));
    const bool written = write(fd, content, sizeof content) == (ssize_t)sizeof content &&
                         fsync(fd) == 0 &&
                         pread(fd, back, sizeof back, 0) == (ssize_t)sizeof content &&
                         memcmp(back, content, sizeof content) == 0;
    const int error = errno;
    close(fd);
    unlink(path);
    if (!written)
        return xp_error(XP_EIO, "cannot write to %s: %s", folder, strerror(error));
    snprintf(text, n_text, "files can be written and synced");
    return XP_OK;
}
