/* Timing of cases beside the machine's own limits, measured in the same run with the same threads.
 */
#include <stdlib.h>
#include <string.h>
#include "checkop.h"
#include "core/file.h"

#define COPY_BYTES (64LL << 20)
#define SGEMM_N    1024

/* Seconds of the fastest of repeated calls. */
static xp_status fastest(const ck_candidate *candidate, const ck_case *c, const ck_image *image,
                         double repeat_s, double *seconds) {
    ck_loaded loaded;
    XP_TRY(ck_loaded_create(candidate, image, &loaded));
    const ck_call call = {c, candidate->ops, candidate->stream, loaded.pointers, loaded.scratch};
    if (xp_device_get_kind(candidate->device) == XP_DEVICE_CUDA) {
        const xp_status timed = ck_time_on_gpu(candidate, &call, repeat_s, seconds);
        ck_loaded_release(candidate, c, &loaded);
        return timed;
    }
    const double end = xp_time_s() + repeat_s;
    xp_status status = XP_OK;
    *seconds = 1e30;
    for (int i = 0; status == XP_OK && (i < 3 || xp_time_s() < end); i++) {
        const double start = xp_time_s();
        status = c->call(&call);
        if (status == XP_OK)
            status = xp_stream_sync(candidate->stream);
        const double took = xp_time_s() - start;
        *seconds = i > 0 && took < *seconds ? took : *seconds; /* the first call warms up */
    }
    ck_loaded_release(candidate, c, &loaded);
    return status;
}

static xp_status call_axpy(const ck_call *call) {
    const xp_axpy_args args = {
        .n = call->c->size[0], .alpha = 1.0f, .x = ck_at(call, "x"), .y = ck_at(call, "y")};
    return call->ops->axpy(call->stream, &args);
}

static xp_status call_gemm(const ck_call *call) {
    const int64_t n = call->c->size[0];
    const xp_gemm_args args = {.m = n,
                               .n = n,
                               .k = n,
                               .a = ck_at(call, "a"),
                               .b = ck_at(call, "b"),
                               .c = ck_at(call, "c"),
                               .lda = n,
                               .ldb = n,
                               .ldc = n,
                               .alpha = 1.0f};
    return call->ops->gemm(call->stream, &args);
}

xp_status ck_measure_limits(const ck_candidate *candidate, double repeat_s, ck_limits *limits) {
    if (xp_device_get_kind(candidate->device) == XP_DEVICE_CUDA)
        return ck_measure_gpu_limits(candidate, repeat_s, limits);
    ck_context quiet = {.seed = 1};
    ck_case copy, gemm;
    ck_case_init(&copy, "copy", call_axpy);
    copy.size[0] = COPY_BYTES / 4;
    ck_in(&copy, "x", XP_F32, copy.size[0]);
    ck_out(&copy, "y", XP_F32, copy.size[0], CK_EXACT);
    ck_case_init(&gemm, "sgemm", call_gemm);
    gemm.size[0] = SGEMM_N;
    ck_in(&gemm, "a", XP_F32, SGEMM_N * SGEMM_N);
    ck_in(&gemm, "b", XP_F32, SGEMM_N * SGEMM_N);
    ck_out(&gemm, "c", XP_F32, SGEMM_N * SGEMM_N, CK_SUM);
    const ck_case *cases[2] = {&copy, &gemm};
    double seconds[2];
    for (int i = 0; i < 2; i++) {
        ck_image *image = NULL;
        XP_TRY(ck_image_create(&quiet, cases[i], &image));
        const xp_status status = fastest(candidate, cases[i], image, repeat_s, &seconds[i]);
        ck_image_destroy(image);
        XP_TRY(status);
    }
    limits->copy_bytes_per_s = 2.0 * (double)COPY_BYTES / seconds[0];
    limits->what = "sgemm";
    limits->flops_per_s = 2.0 * SGEMM_N * SGEMM_N * SGEMM_N / seconds[1];
    return XP_OK;
}

double ck_floor_s(const ck_context *ctx, const ck_case *c, bool *by_flops) {
    double n_bytes = c->bytes;
    for (int i = 0; c->bytes <= 0 && i < c->n_buffers; i++)
        if (c->buffers[i].role != CK_SCRATCH)
            n_bytes += (double)c->buffers[i].n * (double)xp_dtype_bytes(c->buffers[i].dtype);
    const double flops_s = c->flops / ctx->limits.flops_per_s,
                 bytes_s = n_bytes / ctx->limits.copy_bytes_per_s;
    *by_flops = flops_s > bytes_s;
    return *by_flops ? flops_s : bytes_s;
}

static void print_line(ck_context *ctx, const ck_case *c, const ck_candidate *candidate,
                       double seconds) {
    const bool counts_flops = c->flops > 0;
    const double rate = (counts_flops ? c->flops : c->bytes) / seconds;
    const double limit = counts_flops ? ctx->limits.flops_per_s : ctx->limits.copy_bytes_per_s;
    bool by_flops;
    const double floor_s = ck_floor_s(ctx, c, &by_flops);
    if (ctx->json)
        fprintf(ctx->out,
                "%s\n  {\"op\": \"%s\", \"shape\": \"%s\", \"table\": \"%s\", \"seconds\": %.9g, "
                "\"%s\": %.9g, \"limit\": %.9g, \"floor_s\": %.9g, \"bound\": \"%s\"}",
                ctx->n_json++ == 0 ? "" : ",", c->op, c->shape, candidate->name, seconds,
                counts_flops ? "flops_per_s" : "bytes_per_s", rate, limit, floor_s,
                by_flops ? "GEMM" : "copy");
    else
        fprintf(ctx->out,
                "%-26s %-44s %-22s %10.1f us  floor %8.1f us  %5.1f %%  %9.1f %s of %s %.1f\n",
                c->op, c->shape, candidate->name, seconds * 1e6, floor_s * 1e6,
                100 * floor_s / seconds, rate * 1e-9, counts_flops ? "GFLOP/s" : "GB/s   ",
                counts_flops ? ctx->limits.what : "copy", limit * 1e-9);
}

void ck_bench(ck_context *ctx, const ck_case *c) {
    ck_image *image = NULL;
    xp_status status = ck_image_create(ctx, c, &image);
    for (int k = 0; status == XP_OK && k < ctx->n_candidates; k++) {
        double seconds;
        status = fastest(&ctx->candidates[k], c, image, ctx->repeat_s, &seconds);
        if (status == XP_OK)
            print_line(ctx, c, &ctx->candidates[k], seconds);
    }
    if (status != XP_OK) {
        ctx->n_failed++;
        fprintf(ctx->json ? stderr : ctx->out, "FAIL  %s  %s: %s\n", c->op, c->shape,
                xp_last_error());
    }
    ck_image_destroy(image);
}
