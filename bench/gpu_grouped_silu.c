/*
 * bench_grouped_silu [--repeats N] [--rows N] [--caps LIST]...: the experts' first GEMM with
 * silu * gate * prob, and the dgrad of the second with its backward, of 16 experts (D 2048, F 768) on
 * the first GPU. Two ops one after the other, and the one op of both, whose results must have the same
 * bits; each --caps adds a line without these capabilities.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/rng.h"
#include "core/text.h"
#include "device/gpu_environment.h"
#include "device/plugin.h"
#include "ops/ops.h"

enum {
    N_EXPERTS = 16,
    DIM = 2048,
    WIDTH = 768,
    N_TOKENS = 16384,
    MOST_CAPS = 6,
    MOST_REPEATS = 101
};
#define PATTERN (1LL << 20) /* random elements; memory repeats them */
#define SAMPLE  (1LL << 20) /* bytes of each third of a result that are compared */

typedef struct side { /* one way to compute: a device object on the same GPU */
    xp_device *device;
    xp_stream *stream;
    const xp_ops *ops;
} side;

typedef struct bench {
    const xp_cuda_backend *backend;
    side side;
    int n_repeats;
    int64_t n_rows;
    char *x, *w13, *w2, *saved;      /* [N_TOKENS, D], weights, gate_up as backward gets it */
    char *gate_up[2], *h[2], *dp[2]; /* of two ops, of one */
    char *scratch, *p, *offsets, *gather;
} bench;

typedef struct work {
    const bench *b;
    bool forward, fused;
} work;

static xp_grouped_args gemm_of(const bench *b, bool forward, void *y) {
    return (xp_grouped_args){.n_experts = N_EXPERTS,
                             .max_rows = b->n_rows,
                             .n = forward ? 2 * WIDTH : DIM,
                             .k = forward ? DIM : WIDTH,
                             .offsets = (const int32_t *)b->offsets,
                             .gather = forward ? (const int32_t *)b->gather : NULL,
                             .gather_dy = forward ? NULL : (const int32_t *)b->gather,
                             .x = forward ? b->x : NULL,
                             .dy = forward ? NULL : b->x,
                             .w = forward ? b->w13 : b->w2,
                             .y = y,
                             .dtype = XP_BF16};
}

/* Two ops (0) or one (1) into the results of that number. */
static xp_status compute(void *context) {
    const work *k = context;
    const bench *b = k->b;
    const xp_ops *ops = b->side.ops;
    char *gate_up = b->gate_up[k->fused];
    void *h = b->h[k->fused];
    const xp_grouped_args gemm = gemm_of(b, k->forward, k->forward ? gate_up : h);
    if (k->fused) {
        const xp_grouped_silu_args args = {.gemm = gemm,
                                           .p = (const float *)b->p,
                                           .gate_up = gate_up,
                                           .h = h,
                                           .dp = k->forward ? NULL : (float *)b->dp[1],
                                           .scratch = (float *)b->scratch};
        return k->forward ? ops->grouped_silu_forward(b->side.stream, &args)
                          : ops->grouped_silu_backward(b->side.stream, &args);
    }
    const xp_silu_gate_prob_args silu = {.n_rows = b->n_rows,
                                         .dim = WIDTH,
                                         .n_rows_device = (const int32_t *)b->offsets + N_EXPERTS,
                                         .a = gate_up,
                                         .b = gate_up + WIDTH * 2,
                                         .ld = 2 * WIDTH,
                                         .p = (const float *)b->p,
                                         .h = h,
                                         .dtype = XP_BF16};
    if (k->forward) {
        XP_TRY(ops->grouped_forward(b->side.stream, &gemm));
        return ops->silu_gate_prob_forward(b->side.stream, &silu);
    }
    const xp_silu_gate_prob_backward_args backward = {.forward = silu,
                                                      .dh = h,
                                                      .da = gate_up,
                                                      .db = gate_up + WIDTH * 2,
                                                      .ldd = 2 * WIDTH,
                                                      .dp = (float *)b->dp[0]};
    XP_TRY(ops->grouped_dgrad(b->side.stream, &gemm));
    return ops->silu_gate_prob_backward(b->side.stream, &backward);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static xp_status median(const bench *b, work *k, double *seconds) {
    double all[MOST_REPEATS];
    for (int i = 0; i < 2; i++)
        XP_TRY(compute(k));
    for (int i = 0; i < b->n_repeats; i++)
        XP_TRY(b->backend->time_call(b->side.stream, compute, k, &all[i]));
    qsort(all, (size_t)b->n_repeats, sizeof all[0], by_value);
    *seconds = all[b->n_repeats / 2];
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

/* n bf16 in [-scale, scale), a random pattern again and again. */
static xp_status fill(const bench *b, const char *name, double scale, char *data, int64_t n) {
    uint16_t *pattern = malloc(PATTERN * sizeof *pattern);
    if (pattern == NULL)
        return xp_error(XP_ENOMEM, "no memory for random numbers");
    for (int64_t i = 0; i < PATTERN; i++)
        pattern[i] = xp_bf16_from_f32(
            (float)(scale *
                    ((double)xp_rng_below(1, xp_rng_stream(name), (uint64_t)i, 65536) / 32768.0 -
                     1.0)));
    int64_t done = n < PATTERN ? n : PATTERN;
    xp_status status = xp_copy(b->side.stream, data, pattern, (size_t)done * 2);
    while (status == XP_OK && done < n) {
        const int64_t more = done < n - done ? done : n - done;
        status = xp_copy(b->side.stream, data + done * 2, data, (size_t)more * 2);
        done += more;
    }
    if (status == XP_OK)
        status = xp_stream_sync(b->side.stream);
    free(pattern);
    return status;
}

/* Experts of uneven size, which end inside a tile; tokens at random; p in [0, 1). */
static xp_status route(const bench *b) {
    int32_t offsets[N_EXPERTS + 1];
    int32_t *gather = malloc((size_t)b->n_rows * sizeof *gather);
    float *p = malloc((size_t)b->n_rows * sizeof *p);
    xp_status status = gather && p ? XP_OK : xp_error(XP_ENOMEM, "no memory for a gather list");
    for (int e = 0; e <= N_EXPERTS; e++)
        offsets[e] =
            (int32_t)(b->n_rows * e / N_EXPERTS - (e > 0 && e < N_EXPERTS ? 7 * e % 61 : 0));
    for (int64_t r = 0; status == XP_OK && r < b->n_rows; r++) {
        gather[r] = (int32_t)xp_rng_below(1, xp_rng_stream("gather"), (uint64_t)r, N_TOKENS);
        p[r] = (float)xp_rng_below(1, xp_rng_stream("p"), (uint64_t)r, 65536) / 65536.0F;
    }
    if (status == XP_OK)
        status = xp_copy(b->side.stream, b->offsets, offsets, sizeof offsets);
    if (status == XP_OK)
        status = xp_copy(b->side.stream, b->gather, gather, (size_t)b->n_rows * 4);
    if (status == XP_OK)
        status = xp_copy(b->side.stream, b->p, p, (size_t)b->n_rows * 4);
    if (status == XP_OK)
        status = xp_stream_sync(b->side.stream);
    free(gather);
    free(p);
    return status;
}

static xp_status reserve(bench *b) {
    const int64_t rows = b->n_rows;
    struct {
        char **at;
        int64_t n_bytes;
    } all[] = {{&b->x, (int64_t)N_TOKENS * DIM * 2},
               {&b->w13, (int64_t)N_EXPERTS * 2 * WIDTH * DIM * 2},
               {&b->w2, (int64_t)N_EXPERTS * DIM * WIDTH * 2},
               {&b->saved, rows * 2 * WIDTH * 2},
               {&b->gate_up[0], rows * 2 * WIDTH * 2},
               {&b->gate_up[1], rows * 2 * WIDTH * 2},
               {&b->h[0], rows * WIDTH * 2},
               {&b->h[1], rows * WIDTH * 2},
               {&b->dp[0], rows * 4},
               {&b->dp[1], rows * 4},
               {&b->scratch, XP_SILU_PARTS(WIDTH) * rows * 4},
               {&b->p, rows * 4},
               {&b->offsets, (N_EXPERTS + 1) * 4},
               {&b->gather, rows * 4}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        XP_TRY(
            xp_device_alloc(b->side.device, (size_t)all[i].n_bytes, "bench", (void **)all[i].at));
    XP_TRY(fill(b, "x", 1.0, b->x, (int64_t)N_TOKENS * DIM));
    XP_TRY(fill(b, "w13", 0.05, b->w13, (int64_t)N_EXPERTS * 2 * WIDTH * DIM));
    XP_TRY(fill(b, "w2", 0.05, b->w2, (int64_t)N_EXPERTS * DIM * WIDTH));
    XP_TRY(fill(b, "gate_up", 3.0, b->saved, rows * 2 * WIDTH));
    return route(b);
}

/* Bytes that differ in three stretches of the results: first, middle, last. */
static xp_status compare(const bench *b, char *const result[2], int64_t n_bytes, int64_t *differ) {
    const int64_t each = n_bytes < SAMPLE ? n_bytes : SAMPLE;
    char *both[2] = {malloc((size_t)each), malloc((size_t)each)};
    xp_status status = both[0] && both[1] ? XP_OK : xp_error(XP_ENOMEM, "no memory for results");
    for (int part = 0; status == XP_OK && part < 3; part++) {
        for (int i = 0; status == XP_OK && i < 2; i++)
            status = xp_copy(b->side.stream, both[i], result[i] + (n_bytes - each) / 2 * part,
                             (size_t)each);
        if (status == XP_OK)
            status = xp_stream_sync(b->side.stream);
        for (int64_t i = 0; status == XP_OK && i < each; i++)
            *differ += both[0][i] != both[1][i];
    }
    free(both[0]);
    free(both[1]);
    return status;
}

/* Both ways from the same gate_up, their results poisoned before. */
static xp_status check(const bench *b, bool forward, int64_t *differ) {
    const int64_t rows = b->n_rows;
    *differ = 0;
    for (int fused = 0; fused < 2; fused++) {
        work k = {b, forward, fused != 0};
        XP_TRY(xp_zero(b->side.stream, b->h[fused], (size_t)(rows * WIDTH * 2)));
        XP_TRY(xp_zero(b->side.stream, b->dp[fused], (size_t)rows * 4));
        XP_TRY(
            xp_copy(b->side.stream, b->gate_up[fused], b->saved, (size_t)(rows * 2 * WIDTH * 2)));
        XP_TRY(compute(&k));
    }
    XP_TRY(xp_stream_sync(b->side.stream));
    XP_TRY(compare(b, b->gate_up, rows * 2 * WIDTH * 2, differ));
    XP_TRY(compare(b, b->h, rows * WIDTH * 2, differ));
    return forward ? XP_OK : compare(b, b->dp, rows * 4, differ);
}

static xp_status run(bench *b, const char *caps, bool *other_bits) {
    for (int forward = 1; forward >= 0; forward--) {
        work two = {b, forward != 0, false}, one = {b, forward != 0, true};
        double apart, together;
        int64_t differ;
        XP_TRY(check(b, forward != 0, &differ));
        /* Backward again and again: gradients become its input and shrink. The operands of the GEMM
         * stay. */
        XP_TRY(
            xp_copy(b->side.stream, b->gate_up[0], b->saved, (size_t)(b->n_rows * 2 * WIDTH * 2)));
        XP_TRY(median(b, &two, &apart));
        XP_TRY(
            xp_copy(b->side.stream, b->gate_up[1], b->saved, (size_t)(b->n_rows * 2 * WIDTH * 2)));
        XP_TRY(median(b, &one, &together));
        *other_bits = *other_bits || differ != 0;
        printf("%-8s %-16s two ops %8.1f us, one %8.1f us (%+.1f), bytes that differ %lld%s\n",
               forward ? "forward" : "backward", caps ? caps : "", apart * 1e6, together * 1e6,
               (together - apart) * 1e6, (long long)differ, differ != 0 ? "  OTHER BITS" : "");
        fflush(stdout);
    }
    return XP_OK;
}

int main(int argc, char **argv) {
    xp_gpu_environment_set();
    bench b = {.n_repeats = 15, .n_rows = 131072};
    const char *caps[MOST_CAPS + 1] = {NULL};
    int n_caps = 1;
    for (int i = 1; i < argc; i++) {
        int64_t number = 0;
        if (strcmp(argv[i], "--caps") == 0 && i + 1 < argc && n_caps <= MOST_CAPS) {
            caps[n_caps++] = argv[++i];
        } else if (strcmp(argv[i], "--repeats") == 0 && i + 1 < argc &&
                   xp_parse_i64(argv[++i], &number) && number >= 1 && number <= MOST_REPEATS) {
            b.n_repeats = (int)number;
        } else if (strcmp(argv[i], "--rows") == 0 && i + 1 < argc &&
                   xp_parse_i64(argv[++i], &number) && number >= 1024 && number <= 1 << 20) {
            b.n_rows = number;
        } else {
            fprintf(stderr, "usage: %s [--repeats 1..%d] [--rows 1024..1048576] [--caps LIST]...\n",
                    argv[0], MOST_REPEATS);
            return 2;
        }
    }
    bool other_bits = false;
    xp_status status = xp_cuda_backend_get(&b.backend);
    for (int i = 0; status == XP_OK && i < n_caps; i++) {
        memset(&b.side, 0, sizeof b.side);
        status = open_side(caps[i], &b.side);
        if (status == XP_OK)
            status = reserve(&b);
        if (status == XP_OK)
            status = run(&b, caps[i], &other_bits);
        if (b.side.device != NULL)
            close_side(&b.side); /* and all memory of it */
    }
    if (status != XP_OK)
        fprintf(stderr, "bench_grouped_silu: %s\n", xp_last_error());
    return status != XP_OK || other_bits;
}
