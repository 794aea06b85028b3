/*
 * bench_grouped_gemm [--caps LIST] [--beside LIST]... [--repeats N] [--spare-sms N] [--only GLOB]
 * [--shapes N]: grouped GEMMs of real layer sizes (the first N of them, the kinds whose names match)
 * on the first GPU, each checked against the portable kernel. --beside: the same without these
 * capabilities, in the next column, with the same bits.
 *
 * A GPU at its power limit gets slower as a run goes on. So each row is timed in rounds: a call of the
 * dense GEMM of cuBLASLt (which takes all SMs), one of the row, one of each --beside, and again.
 *
 * The table: time (median), rate, share of the dense rate of the same rounds, that rate, and how far
 * the sampled results lie from the portable kernel's (relative, in norm). Exit code 1 when one is
 * further than rounding explains. "forward, halves" is two calls, of the first half of each expert's
 * rows and of the others: its results must have the bits of one call.
 */
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device/gpu_environment.h"
#include "core/rng.h"
#include "core/text.h"
#include "device/plugin.h"
#include "ops/ops.h"

#define DENSE_N      8192
#define PATTERN      (4LL << 20) /* random elements; memory repeats them */
#define MAX_ROWS     262144LL
#define N_TOKENS     32768LL
#define MAX_WIDTH    2048LL
#define MAX_WEIGHTS  (128LL * 1536 * 2048)
#define SAMPLE       (1LL << 16)
#define MOST_REPEATS 101
#define MOST_BESIDE  7
#define TOLERANCE    5e-3 /* two roundings to bf16 of sums in different order */

typedef struct shape {
    int n_experts;
    int64_t rows_each, n, k;
} shape;

static const shape shapes[] = {
    {16, 16384, 1536, 2048}, {16, 16384, 2048, 768}, {128, 2048, 1536, 2048},
    {128, 2048, 2048, 768},  {128, 256, 1536, 2048},
};

#define N_SHAPES ((int)(sizeof shapes / sizeof shapes[0]))

typedef struct side { /* one way to compute: a device object on the same GPU */
    xp_device *device;
    xp_stream *stream;
    const xp_ops *ops;
} side;

typedef struct bench {
    const xp_cuda_backend *backend;
    side fast, plain, beside[MOST_BESIDE];
    const char *beside_caps[MOST_BESIDE];
    int n_beside;
    int n_repeats, spare_sms, n_shapes;
    const char *only; /* names of kinds */
    bool far;
    char *rows, *weights, *wide, *out, *want; /* [rows, 2048], [L, n, k], [rows, 2048], results */
    int32_t *offsets, *gather, *range;
} bench;

typedef struct timed {
    const side *who;
    xp_status (*call)(xp_stream *stream, const xp_grouped_args *args);
    const xp_grouped_args *grouped, *then; /* then: a second call, or NULL */
    const xp_gemm_args *gemm;
} timed;

static xp_status run_timed(void *context) {
    const timed *t = context;
    if (t->gemm)
        return t->who->ops->gemm(t->who->stream, t->gemm);
    XP_TRY(t->call(t->who->stream, t->grouped));
    return t->then ? t->call(t->who->stream, t->then) : XP_OK;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Medians of n calls, in rounds of one each. */
static xp_status medians(const bench *b, timed *calls, int n, double *seconds) {
    double all[MOST_BESIDE + 2][MOST_REPEATS];
    for (int i = -2; i < b->n_repeats; i++)
        for (int c = 0; c < n; c++)
            XP_TRY(b->backend->time_call(calls[c].who->stream, run_timed, &calls[c],
                                         &all[c][i < 0 ? 0 : i]));
    for (int c = 0; c < n; c++) {
        qsort(all[c], (size_t)b->n_repeats, sizeof all[c][0], by_value);
        seconds[c] = all[c][b->n_repeats / 2];
    }
    return XP_OK;
}

static xp_status open_side(const char *caps, side *made) {
    const xp_device_args args = {.kind = XP_DEVICE_CUDA, .caps = caps};
    XP_TRY(xp_device_create(&args, &made->device));
    XP_TRY(xp_ops_get(made->device, &made->ops));
    return xp_stream_create(made->device, XP_STREAM_COMPUTE, &made->stream);
}

static void close_side(side *made) {
    xp_stream_destroy(made->stream);
    xp_device_destroy(made->device);
}

/* Random bf16 in [-1, 1), repeated through `n` elements of device memory. */
static xp_status fill(const bench *b, const char *name, char *data, int64_t n) {
    uint16_t *pattern = malloc(PATTERN * sizeof *pattern);
    if (pattern == NULL)
        return xp_error(XP_ENOMEM, "no memory for random numbers");
    for (int64_t i = 0; i < PATTERN; i++) {
        const double value =
            (double)xp_rng_below(1, xp_rng_stream(name), (uint64_t)i, 65536) / 32768.0 - 1.0;
        pattern[i] = xp_bf16_from_f32((float)value);
    }
    xp_status status = XP_OK;
    int64_t done = n < PATTERN ? n : PATTERN;
    status = xp_copy(b->fast.stream, data, pattern, (size_t)done * 2);
    while (status == XP_OK && done < n) {
        const int64_t more = done < n - done ? done : n - done;
        status = xp_copy(b->fast.stream, data + done * 2, data, (size_t)more * 2);
        done += more;
    }
    if (status == XP_OK)
        status = xp_stream_sync(b->fast.stream);
    free(pattern);
    return status;
}

static xp_status reserve(bench *b) {
    struct {
        char **at;
        int64_t n;
        const char *name;
    } all[] = {{&b->rows, MAX_ROWS * MAX_WIDTH, "rows"},
               {&b->weights, MAX_WEIGHTS, "weights"},
               {&b->wide, MAX_ROWS * MAX_WIDTH, "wide"},
               {&b->out, MAX_WEIGHTS * 2, "out"},
               {&b->want, MAX_WEIGHTS * 2, "want"}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        XP_TRY(xp_device_alloc(b->fast.device, (size_t)all[i].n * 2, "bench", (void **)all[i].at));
        if (i < 3)
            XP_TRY(fill(b, all[i].name, *all[i].at, all[i].n));
    }
    XP_TRY(xp_device_alloc(b->fast.device, 1024 * 4, "bench", (void **)&b->offsets));
    XP_TRY(xp_device_alloc(b->fast.device, 2048 * 4, "bench", (void **)&b->range));
    return xp_device_alloc(b->fast.device, MAX_ROWS * 4, "bench", (void **)&b->gather);
}

/* Even groups of tokens in ascending order, as routing gives them, at random. Ranges: the first half
 * of each group. */
static xp_status route(const bench *b, const shape *s) {
    const int64_t n_rows = s->n_experts * s->rows_each;
    int32_t offsets[1024], range[2048];
    int32_t *gather = malloc((size_t)n_rows * sizeof *gather);
    if (gather == NULL)
        return xp_error(XP_ENOMEM, "no memory for a gather list");
    for (int e = 0; e <= s->n_experts; e++)
        offsets[e] = (int32_t)(e * s->rows_each);
    for (int e = 0; e < s->n_experts; e++) {
        range[2 * e] = offsets[e];
        range[2 * e + 1] = (int32_t)(offsets[e] + s->rows_each / 2);
    }
    const int64_t step = N_TOKENS / s->rows_each;
    for (int64_t r = 0; r < n_rows; r++)
        gather[r] =
            (int32_t)(r % s->rows_each * step + (int64_t)xp_rng_below(1, xp_rng_stream("gather"),
                                                                      (uint64_t)r, (uint64_t)step));
    xp_status status =
        xp_copy(b->fast.stream, b->offsets, offsets, (size_t)(s->n_experts + 1) * sizeof *offsets);
    if (status == XP_OK)
        status = xp_copy(b->fast.stream, b->range, range, (size_t)s->n_experts * 2 * sizeof *range);
    if (status == XP_OK)
        status = xp_copy(b->fast.stream, b->gather, gather, (size_t)n_rows * sizeof *gather);
    if (status == XP_OK)
        status = xp_stream_sync(b->fast.stream);
    free(gather);
    return status;
}

static double value_at(const void *data, bool f32, int64_t i) {
    return f32 ? (double)((const float *)data)[i]
               : (double)xp_bf16_to_f32(((const uint16_t *)data)[i]);
}

/* Distance in norm of three stretches of the results: first, middle, last. */
static xp_status compare(const bench *b, int64_t n, bool f32, double *distance) {
    const size_t size = f32 ? 4 : 2;
    const int64_t each = n < SAMPLE ? n : SAMPLE;
    char *got = malloc((size_t)each * size), *want = malloc((size_t)each * size);
    xp_status status =
        got && want ? XP_OK : xp_error(XP_ENOMEM, "no memory for %lld results", (long long)each);
    double error = 0, norm = 0;
    for (int part = 0; status == XP_OK && part < 3; part++) {
        const size_t at = (size_t)((n - each) / 2 * part) * size;
        status = xp_copy(b->fast.stream, got, b->out + at, (size_t)each * size);
        if (status == XP_OK)
            status = xp_copy(b->fast.stream, want, b->want + at, (size_t)each * size);
        if (status == XP_OK)
            status = xp_stream_sync(b->fast.stream);
        for (int64_t i = 0; status == XP_OK && i < each; i++) {
            const double x = value_at(got, f32, i), y = value_at(want, f32, i);
            error += (x - y) * (x - y);
            norm += y * y;
        }
    }
    *distance = sqrt(error / norm);
    free(got);
    free(want);
    return status;
}

/* Rows are gathered but where they lie in order; wgrad: those of x, of dy, and both with
 * fp32 sums added to. */
typedef enum kind {
    FORWARD,
    FORWARD_HALVES,
    FORWARD_IN_ORDER,
    DGRAD,
    DGRAD_IN_ORDER,
    WGRAD,
    WGRAD_OF_DY,
    WGRAD_F32_ACC,
    WGRAD_OF_DY_F32_ACC,
    N_KINDS
} kind;
static const char *const kind_names[N_KINDS] = {"forward",   "forward, halves", "forward, order",
                                                "dgrad",     "dgrad, order",    "wgrad",
                                                "wgrad, dy", "wgrad f32 +=",    "wgrad dy f32+="};

static bool adds_f32(kind which) {
    return which == WGRAD_F32_ACC || which == WGRAD_OF_DY_F32_ACC;
}

static xp_grouped_args args_of(const bench *b, const shape *s, kind which) {
    xp_grouped_args a = {.n_experts = s->n_experts,
                         .max_rows = s->n_experts * s->rows_each,
                         .n = s->n,
                         .k = s->k,
                         .offsets = b->offsets,
                         .dtype = XP_BF16,
                         .dw_dtype = adds_f32(which) ? XP_F32 : XP_BF16,
                         .acc = adds_f32(which),
                         .spare_sms = b->spare_sms};
    switch (which) {
    case FORWARD:
    case FORWARD_HALVES:
    case FORWARD_IN_ORDER:
        a.x = b->rows, a.gather = which != FORWARD_IN_ORDER ? b->gather : NULL, a.w = b->weights;
        break;
    case DGRAD:
    case DGRAD_IN_ORDER:
        a.dy = b->rows, a.gather_dy = which == DGRAD ? b->gather : NULL, a.w = b->weights;
        break;
    case WGRAD_OF_DY:
    case WGRAD_OF_DY_F32_ACC:
        a.x = b->wide, a.dy = b->rows, a.gather_dy = b->gather;
        break;
    default:
        a.x = b->rows, a.gather = b->gather, a.dy = b->wide;
        break;
    }
    return a;
}

static xp_status call_of(const side *who, kind which, xp_grouped_args *args, timed *t) {
    const xp_ops *ops = who->ops;
    *t = (timed){.who = who,
                 .grouped = args,
                 .call = which <= FORWARD_IN_ORDER ? ops->grouped_forward
                         : which <= DGRAD_IN_ORDER ? ops->grouped_dgrad
                                                   : ops->grouped_wgrad};
    return XP_OK;
}

/* Whether two ways write the same: the first one's results go where the portable kernel's were. */
static xp_status same_bits(const bench *b, timed *first, timed *other, size_t n_bytes,
                           int64_t n_out, bool *same) {
    double distance;
    XP_TRY(run_timed(first));
    XP_TRY(xp_stream_sync(first->who->stream));
    XP_TRY(xp_copy(b->fast.stream, b->want, b->out, n_bytes));
    XP_TRY(xp_zero(b->fast.stream, b->out, n_bytes));
    XP_TRY(xp_stream_sync(b->fast.stream));
    XP_TRY(run_timed(other));
    XP_TRY(xp_stream_sync(other->who->stream));
    XP_TRY(compare(b, n_out, false, &distance));
    *same = distance < 1e-30;
    return XP_OK;
}

/* Its results go where the portable kernel's were. */
static xp_gemm_args dense_args(const bench *b) {
    return (xp_gemm_args){.m = DENSE_N,
                          .n = DENSE_N,
                          .k = DENSE_N,
                          .trans_b = true,
                          .a = b->rows,
                          .b = b->wide,
                          .c = b->want,
                          .lda = DENSE_N,
                          .ldb = DENSE_N,
                          .ldc = DENSE_N,
                          .ab_dtype = XP_BF16,
                          .c_dtype = XP_BF16,
                          .alpha = 1.0F};
}

/* Time the case beside the dense GEMM and the other sides, and print the row. */
static xp_status run_timing(bench *b, const shape *s, kind which, const timed *first,
                            double distance, const bool *same) {
    const double flops = 2.0 * (double)(s->n_experts * s->rows_each) * (double)s->n * (double)s->k;
    const bool far = !(distance < (which == FORWARD_HALVES ? 1e-30 : TOLERANCE));
    const xp_gemm_args dense = dense_args(b);
    timed calls[MOST_BESIDE + 2] = {{.who = &b->fast, .gemm = &dense}, *first};
    double seconds[MOST_BESIDE + 2];
    for (int i = 0; i < b->n_beside; i++) {
        calls[i + 2] = *first;
        calls[i + 2].who = &b->beside[i];
        b->far = b->far || !same[i];
    }
    XP_TRY(medians(b, calls, b->n_beside + 2, seconds));
    b->far = b->far || far;
    const double dense_rate = 2.0 * DENSE_N * DENSE_N * DENSE_N / seconds[0];
    printf("%-15s %3d x %5lld rows %4lldx%-4lld %9.1f us %7.1f TFLOP/s %5.1f %% of dense (%.0f)  "
           "distance %.1e%s",
           kind_names[which], s->n_experts, (long long)s->rows_each, (long long)s->n,
           (long long)s->k, seconds[1] * 1e6, flops / seconds[1] * 1e-12,
           100 * flops / seconds[1] / dense_rate, dense_rate * 1e-12, distance,
           far ? "  TOO FAR" : "");
    for (int i = 0; i < b->n_beside; i++)
        printf("  %s %.1f %%%s", b->beside_caps[i], 100 * flops / seconds[i + 2] / dense_rate,
               same[i] ? "" : " OTHER BITS");
    printf("\n");
    fflush(stdout);
    return XP_OK;
}

static xp_status run_case(bench *b, const shape *s, kind which) {
    const int64_t n_rows = s->n_experts * s->rows_each;
    const bool f32 = adds_f32(which);
    const int64_t n_out = which <= FORWARD_IN_ORDER ? n_rows * s->n
                          : which <= DGRAD_IN_ORDER ? n_rows * s->k
                                                    : s->n_experts * s->n * s->k;
    const size_t out_bytes = (size_t)n_out * (f32 ? 4 : 2);
    xp_grouped_args args = args_of(b, s, which);
    timed t;
    double distance;
    XP_TRY(xp_zero(b->fast.stream, b->out, out_bytes));
    XP_TRY(xp_zero(b->fast.stream, b->want, out_bytes));
    XP_TRY(xp_stream_sync(b->fast.stream));
    args.y = b->want;
    const side *judge = which == FORWARD_HALVES ? &b->fast : &b->plain;
    XP_TRY(call_of(judge, which, &args, &t));
    XP_TRY(run_timed(&t));
    XP_TRY(xp_stream_sync(judge->stream));
    args.y = b->out;
    XP_TRY(call_of(&b->fast, which, &args, &t));
    xp_grouped_args others = args;
    if (which == FORWARD_HALVES) {
        args.row_range = others.row_range = b->range;
        args.rows = XP_ROWS_IN_RANGE;
        others.rows = XP_ROWS_OUT_OF_RANGE;
        t.then = &others;
    }
    XP_TRY(run_timed(&t));
    XP_TRY(compare(b, n_out, f32, &distance));
    timed first = t;
    bool same[MOST_BESIDE];
    for (int i = 0; i < b->n_beside; i++) {
        same[i] = true;
        t = first;
        t.who = &b->beside[i];
        if (!f32) /* sums that are added to: other bits each time */
            XP_TRY(same_bits(b, &first, &t, out_bytes, n_out, &same[i]));
    }
    return run_timing(b, s, which, &first, distance, same);
}

static xp_status run_all(bench *b, const char *caps) {
    XP_TRY(xp_cuda_backend_get(&b->backend));
    XP_TRY(open_side(caps, &b->fast));
    XP_TRY(open_side("wgmma", &b->plain));
    for (int i = 0; i < b->n_beside; i++)
        XP_TRY(open_side(b->beside_caps[i], &b->beside[i]));
    XP_TRY(reserve(b));
    for (int i = 0; i < b->n_shapes; i++) {
        XP_TRY(route(b, &shapes[i]));
        for (int which = 0; which < N_KINDS; which++)
            if (fnmatch(b->only, kind_names[which], 0) == 0)
                XP_TRY(run_case(b, &shapes[i], (kind)which));
    }
    return XP_OK;
}

int main(int argc, char **argv) {
    xp_gpu_environment_set();
    bench b = {.n_repeats = 21, .n_shapes = N_SHAPES, .only = "*"};
    const char *caps = NULL;
    for (int i = 1; i < argc; i++) {
        int64_t number = 0;
        if (strcmp(argv[i], "--caps") == 0 && i + 1 < argc) {
            caps = argv[++i];
        } else if (strcmp(argv[i], "--beside") == 0 && i + 1 < argc && b.n_beside < MOST_BESIDE) {
            b.beside_caps[b.n_beside++] = argv[++i];
        } else if (strcmp(argv[i], "--repeats") == 0 && i + 1 < argc &&
                   xp_parse_i64(argv[++i], &number) && number >= 1 && number <= MOST_REPEATS) {
            b.n_repeats = (int)number;
        } else if (strcmp(argv[i], "--spare-sms") == 0 && i + 1 < argc &&
                   xp_parse_i64(argv[++i], &number) && number >= 0 && number <= 1024) {
            b.spare_sms = (int)number;
        } else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
            b.only = argv[++i];
        } else if (strcmp(argv[i], "--shapes") == 0 && i + 1 < argc &&
                   xp_parse_i64(argv[++i], &number) && number >= 1 && number <= N_SHAPES) {
            b.n_shapes = (int)number;
        } else {
            fprintf(stderr,
                    "usage: %s [--caps LIST] [--beside LIST]... [--repeats 1..%d] [--spare-sms "
                    "0..1024] "
                    "[--only GLOB] [--shapes 1..%d]\n",
                    argv[0], MOST_REPEATS, N_SHAPES);
            return 2;
        }
    }
    const xp_status status = run_all(&b, caps);
    if (status != XP_OK)
        fprintf(stderr, "bench_grouped_gemm: %s\n", xp_last_error());
    for (int i = 0; i < b.n_beside; i++)
        if (b.beside[i].device != NULL)
            close_side(&b.beside[i]);
    if (b.plain.device != NULL)
        close_side(&b.plain);
    if (b.fast.device != NULL)
        close_side(&b.fast); /* and all memory of it */
    return status != XP_OK || b.far;
}
