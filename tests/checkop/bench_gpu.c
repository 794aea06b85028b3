/* Timing on a GPU: between two marks on the device, the median of many, and before each a write of
 * more than the caches hold. */
#include <stdlib.h>
#include "checkop.h"
#include "core/file.h"
#include "core/rng.h"
#include "device/plugin.h"

#define FLUSH_BYTES  ((size_t)256 << 20)
#define COPY_BYTES   ((size_t)1 << 30)
#define BLOCK_BYTES  ((size_t)4 << 20) /* random, repeated to fill a buffer */
#define MATMUL_N     8192
#define MOST_SAMPLES 2000

typedef xp_status (*timed_call)(void *context);

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static xp_status median(const ck_candidate *candidate, timed_call call, void *context,
                        double repeat_s, void *flush, double *seconds) {
    const xp_cuda_backend *backend;
    XP_TRY(xp_cuda_backend_get(&backend));
    double *samples = malloc(sizeof *samples * MOST_SAMPLES);
    if (samples == NULL)
        return xp_error(XP_ENOMEM, "checkop: out of memory");
    const double end = xp_time_s() + repeat_s;
    int n = 0;
    xp_status status = XP_OK;
    for (int i = 0; status == XP_OK && n < MOST_SAMPLES && (i < 8 || xp_time_s() < end); i++) {
        status = xp_zero(candidate->stream, flush, FLUSH_BYTES);
        if (status == XP_OK)
            status = backend->time_call(candidate->stream, call, context, &samples[n]);
        n += i >= 3; /* the first calls warm up */
    }
    qsort(samples, (size_t)n, sizeof *samples, ascending);
    *seconds = samples[n / 2];
    free(samples);
    return status;
}

static xp_status call_case(void *context) {
    const ck_call *call = context;
    return call->c->call(call);
}

xp_status ck_time_on_gpu(const ck_candidate *candidate, const ck_call *call, double repeat_s,
                         double *seconds) {
    void *flush = NULL;
    XP_TRY(xp_device_alloc(candidate->device, FLUSH_BYTES, "checkop flush", &flush));
    ck_call copy = *call;
    const xp_status status = median(candidate, call_case, &copy, repeat_s, flush, seconds);
    xp_device_free(candidate->device, flush);
    return status;
}

/* Random bf16 (or pairs of them) over n_bytes of device memory. */
static xp_status fill_random(const ck_candidate *candidate, char *data, size_t n_bytes) {
    uint16_t *block = malloc(BLOCK_BYTES);
    if (block == NULL)
        return xp_error(XP_ENOMEM, "checkop: out of memory");
    for (size_t i = 0; i < BLOCK_BYTES / 2; i++)
        block[i] = xp_bf16_from_f32((float)xp_rng_normal(7, xp_rng_stream("limits"), i));
    xp_status status = XP_OK;
    for (size_t at = 0; status == XP_OK && at < n_bytes; at += BLOCK_BYTES)
        status = xp_copy(candidate->stream, data + at, block,
                         n_bytes - at < BLOCK_BYTES ? n_bytes - at : BLOCK_BYTES);
    if (status == XP_OK)
        status = xp_stream_sync(candidate->stream);
    free(block);
    return status;
}

typedef struct limit_call {
    const ck_candidate *candidate;
    char *a, *b, *c;
} limit_call;

static xp_status call_copy(void *context) {
    const limit_call *l = context;
    return xp_copy(l->candidate->stream, l->b, l->a, COPY_BYTES);
}

static xp_status call_matmul(void *context) {
    const limit_call *l = context;
    const int64_t n = MATMUL_N;
    const xp_gemm_args args = {.m = n,
                               .n = n,
                               .k = n,
                               .trans_b = true,
                               .a = l->a,
                               .b = l->b,
                               .c = l->c,
                               .lda = n,
                               .ldb = n,
                               .ldc = n,
                               .ab_dtype = XP_BF16,
                               .c_dtype = XP_BF16,
                               .alpha = 1.0F};
    return l->candidate->ops->gemm(l->candidate->stream, &args);
}

static xp_status measure(const limit_call *l, double repeat_s, void *flush, ck_limits *limits) {
    limit_call call = *l;
    double seconds;
    XP_TRY(fill_random(l->candidate, l->a, COPY_BYTES));
    XP_TRY(fill_random(l->candidate, l->b, COPY_BYTES));
    XP_TRY(median(l->candidate, call_matmul, &call, repeat_s, flush, &seconds));
    limits->flops_per_s = 2.0 * MATMUL_N * MATMUL_N * (double)MATMUL_N / seconds;
    XP_TRY(median(l->candidate, call_copy, &call, repeat_s, flush, &seconds));
    limits->copy_bytes_per_s = 2.0 * (double)COPY_BYTES / seconds;
    limits->what = "bf16 matmul";
    return XP_OK;
}

xp_status ck_measure_gpu_limits(const ck_candidate *candidate, double repeat_s, ck_limits *limits) {
    const size_t sizes[] = {COPY_BYTES, COPY_BYTES, COPY_BYTES, FLUSH_BYTES};
    void *data[4] = {0};
    xp_status status = XP_OK;
    for (int i = 0; status == XP_OK && i < 4; i++)
        status = xp_device_alloc(candidate->device, sizes[i], "checkop limits", &data[i]);
    const limit_call call = {candidate, data[0], data[1], data[2]};
    if (status == XP_OK)
        status = measure(&call, repeat_s, data[3], limits);
    for (int i = 0; i < 4; i++)
        xp_device_free(candidate->device, data[i]);
    return status;
}
