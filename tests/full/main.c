/* check_full: see --help. */
#include <stdio.h>
#include <string.h>
#include "device/gpu_environment.h"
#include "core/text.h"
#include "full.h"

static const char usage[] =
    "Compare expert GEMMs, attention and the head with exact sums at the sizes of\n"
    "Qwen3-30B-A3B and 235B-A22B, at sampled places.\n"
    "\n"
    "  check_full [--device cuda|cpu] [--caps LIST] [--op GLOB] [--seed N] [--small]\n"
    "\n"
    "  --device NAME  cuda (the default), or cpu, which is for --small\n"
    "  --caps LIST    without these capabilities of the device: wgmma, bulk, cudnn, deterministic\n"
    "  --op GLOB      grouped_forward, grouped_dgrad, grouped_wgrad, attention, head_product\n"
    "  --small        small sizes, on the CPU unless --device says otherwise\n"
    "\n"
    "Takes about 20 GiB of GPU memory. Exit code: 0 all right, 1 a difference or a failure, 2\n"
    "wrong usage.\n";

static bool parse(int argc, char **argv, full_context *ctx, xp_device_args *device) {
    bool named = false;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        int64_t number = 0;
        if (strcmp(argv[i], "--small") == 0) {
            ctx->small = true;
            continue;
        }
        if (strcmp(argv[i], "--device") == 0 && strcmp(value, "cpu") == 0)
            device->kind = XP_DEVICE_CPU;
        else if (strcmp(argv[i], "--device") == 0 && strcmp(value, "cuda") == 0)
            device->kind = XP_DEVICE_CUDA;
        else if (strcmp(argv[i], "--caps") == 0 && value[0] != '\0')
            device->caps = value;
        else if (strcmp(argv[i], "--op") == 0 && value[0] != '\0')
            ctx->glob = value;
        else if (strcmp(argv[i], "--seed") == 0 && xp_parse_i64(value, &number))
            ctx->seed = (uint64_t)number;
        else
            return false;
        named = named || strcmp(argv[i], "--device") == 0;
        i++;
    }
    if (ctx->small && !named)
        device->kind = XP_DEVICE_CPU;
    return true;
}

static xp_status check_all(full_context *ctx, const xp_device_args *args) {
    XP_TRY(xp_device_create(args, &ctx->device));
    XP_TRY(xp_ops_get(ctx->device, &ctx->ops));
    XP_TRY(xp_stream_create(ctx->device, XP_STREAM_COMPUTE, &ctx->stream));
    XP_TRY(full_products(ctx));
    XP_TRY(full_attention(ctx));
    return full_head(ctx);
}

int main(int argc, char **argv) {
    xp_gpu_environment_set();
    full_context ctx = {.glob = "*", .seed = 1};
    xp_device_args device = {.kind = XP_DEVICE_CUDA, .n_threads = 2};
    setvbuf(stdout, NULL, _IOLBF, 0); /* what hangs is what comes after the last line */
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    if (!parse(argc, argv, &ctx, &device)) {
        fputs(usage, stderr);
        return 2;
    }
    const xp_status status = check_all(&ctx, &device);
    if (status != XP_OK)
        fprintf(stderr, "check_full: %s\n", xp_last_error());
    printf("check_full: %d checks, %d failed\n", ctx.n_checks, ctx.n_failed);
    xp_stream_destroy(ctx.stream);
    xp_device_destroy(ctx.device);
    return status != XP_OK || ctx.n_failed > 0 || ctx.n_checks == 0;
}
