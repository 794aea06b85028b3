/* checkop: see --help. */
#include "shapes.h"
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/text.h"

static const char usage[] =
    "Compare every fast op with the plain code, or time it.\n"
    "\n"
    "  checkop [--op GLOB] [--seed N] [--part K/N] [--verbose] [--json]\n"
    "  checkop --bench [--op GLOB] [--caps LIST] [--threads N] [--repeat S] [--json]\n"
    "  checkop --shapes users [--scale N] [--budget S] ...\n"
    "  checkop --device cuda[:N] ...\n"
    "  checkop --list                  the ops and how many cases each has; fails when one has "
    "none\n"
    "\n"
    "  --op GLOB     only ops whose name matches: 'rmsnorm*', attention_backward\n"
    "  --device NAME cpu (the default), cuda or cuda:N: whose ops are compared with the plain "
    "code\n"
    "  --quick       small cases only and once: for sanitizers\n"
    "  --seed N      of the random inputs (1)\n"
    "  --part K/N    every Nth case from the Kth on (1 to N): for N processes side by side\n"
    "  --caps LIST   only the table without these capabilities: avx512, or avx2 (leaves out "
    "both);\n"
    "                'none' leaves out nothing. Without it: all tables. On a GPU: cudnn (our own\n"
    "                attention), attention_forward (cuDNN's instead of ours on Hopper),\n"
    "                silu_epilogue (the experts' activation in kernels of its own),\n"
    "                deterministic (faster sums without a fixed order)\n"
    "  --threads N   only this many threads (check: 1 to 4; bench: the machine's cores)\n"
    "  --bench       time the ops; every line has the machine's limit of the same run beside it\n"
    "  --repeat S    seconds that every op is repeated; the fastest call counts (0.4)\n"
    "  --shapes users  time the shapes that users have: each beside its floor and the best of its "
    "size\n"
    "  --scale N     divide these sizes (1 on a GPU, 8 on a CPU)\n"
    "  --budget S    seconds for all of them; what is left then is left out (60)\n"
    "  --json        results as JSON\n"
    "\n"
    "Exit code: 0 all right, 1 a difference was found, 2 wrong usage.\n";

typedef struct options {
    const char *caps; /* NULL: all tables */
    int n_threads;    /* 0: as usual */
    bool cuda;
    int cuda_index;
    bool has_shapes;
    ck_shapes shapes;
} options;

static xp_status open_candidate(const char *caps, int n_threads, ck_candidate *made) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = n_threads, .caps = caps};
    *made = (ck_candidate){.same_bits_as = -1};
    XP_TRY(xp_device_create(&args, &made->device));
    XP_TRY(xp_ops_get(made->device, &made->ops));
    XP_TRY(xp_stream_create(made->device, XP_STREAM_COMPUTE, &made->stream));
    snprintf(made->name, sizeof made->name, "%s, %d thread%s", made->ops->name, n_threads,
             n_threads == 1 ? "" : "s");
    return XP_OK;
}

static xp_status open_gpu_candidate(ck_context *ctx, const options *o, const char *caps,
                                    const char *name) {
    const xp_device_args args = {
        .kind = XP_DEVICE_CUDA, .index = o->cuda_index, .n_threads = 1, .caps = caps};
    ck_candidate *made = &ctx->candidates[ctx->n_candidates];
    *made = (ck_candidate){.same_bits_as = -1};
    XP_TRY(xp_device_create(&args, &made->device));
    ctx->n_candidates++;
    XP_TRY(xp_ops_get(made->device, &made->ops));
    XP_TRY(xp_stream_create(made->device, XP_STREAM_COMPUTE, &made->stream));
    snprintf(made->name, sizeof made->name, "%s", name);
    return XP_OK;
}

/* The GPU's table, once more for its bits, and without the libraries that have a stand-in. */
static xp_status open_gpu(ck_context *ctx, const options *o) {
    ctx->gpu = true;
    XP_TRY(open_candidate("avx2,avx512", 1, &ctx->reference));
    ctx->reference.ops = xp_ops_reference();
    const char *caps = o->caps != NULL && strcmp(o->caps, "none") != 0 ? o->caps : NULL;
    char name[64];
    snprintf(name, sizeof name, caps == NULL ? "cuda" : "cuda without %s", caps);
    XP_TRY(open_gpu_candidate(ctx, o, caps, name));
    if (ctx->bench || ctx->quick)
        return XP_OK;
    XP_TRY(open_gpu_candidate(ctx, o, caps, "cuda again"));
    ctx->candidates[1].same_bits_as = 0;
    return o->caps == NULL ? open_gpu_candidate(ctx, o, "cudnn", "cuda without cudnn") : XP_OK;
}

static void close_candidate(ck_candidate *candidate) {
    xp_stream_destroy(candidate->stream);
    xp_device_destroy(candidate->device);
}

/* The tables that differ on this machine, each with every number of threads that is wanted. */
static xp_status open_all(ck_context *ctx, const options *o) {
    const char *all_caps[] = {NULL, "avx512", "avx2"};
    const int n_caps = o->caps == NULL ? 3 : 1;
    if (o->caps != NULL)
        all_caps[0] = strcmp(o->caps, "none") == 0 ? NULL : o->caps;
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    int first = o->n_threads > 0 ? o->n_threads : 1, last = o->n_threads > 0 ? o->n_threads : 4;
    if (ctx->bench && o->n_threads == 0)
        first = last = (int)(cores < 1 ? 1 : cores);
    XP_TRY(open_candidate("avx2,avx512", 1, &ctx->reference));
    ctx->reference.ops = xp_ops_reference();
    for (int i = 0; i < n_caps; i++) {
        const int one = ctx->n_candidates;
        for (int n = first; n <= last; n++) {
            ck_candidate *c = &ctx->candidates[ctx->n_candidates];
            XP_TRY(open_candidate(all_caps[i], n, c));
            ctx->n_candidates++;
            bool seen = false;
            for (int k = 0; k < one; k++)
                seen = seen || ctx->candidates[k].ops == c->ops;
            if (seen) { /* this machine lacks the capability that was left out */
                close_candidate(c);
                ctx->n_candidates--;
                break;
            }
            c->same_bits_as = n == first ? -1 : one;
        }
    }
    return XP_OK;
}

#define OP_NAME(entry, queued, args_type, check, cuda) #entry,
static const char *const op_names[CK_N_OPS] = {XP_OP_LIST(OP_NAME)};

void ck_count_case(ck_context *ctx, const char *op) {
    for (int i = 0; i < CK_N_OPS; i++)
        if (strcmp(op, op_names[i]) == 0)
            ctx->n_cases_of[i]++;
}

/* The ops of XP_OP_LIST with the number of their cases. Every op must have one. */
static int list_ops(ck_context *ctx) {
    int missing = 0;
    for (int i = 0; ck_families[i] != NULL; i++)
        ck_families[i](ctx);
    for (int i = 0; i < CK_N_OPS; i++) {
        missing += ctx->n_cases_of[i] == 0;
        fprintf(ctx->out, "%-26s %5d cases%s\n", op_names[i], ctx->n_cases_of[i],
                ctx->n_cases_of[i] == 0 ? "  MISSING: add one to tests/checkop/cases_*.c" : "");
    }
    return missing == 0 ? 0 : 1;
}

static xp_status run_families(ck_context *ctx, const options *o) {
    XP_TRY(o->cuda ? open_gpu(ctx, o) : open_all(ctx, o));
    if (ctx->bench)
        XP_TRY(ck_measure_limits(&ctx->candidates[0], ctx->repeat_s, &ctx->limits));
    if (ctx->shapes)
        return ck_shapes_run(ctx);
    if (ctx->json)
        fprintf(ctx->out, "[");
    for (int i = 0; ck_families[i] != NULL; i++)
        ck_families[i](ctx);
    if (ctx->json)
        fprintf(ctx->out, "\n]\n");
    return XP_OK;
}

static bool parse_part(const char *text, ck_context *ctx) {
    char more;
    const bool ok = sscanf(text, "%d/%d%c", &ctx->part, &ctx->n_parts, &more) == 2;
    ctx->part--;
    return ok && ctx->part >= 0 && ctx->part < ctx->n_parts;
}

static const struct option long_options[] = {
    {"op", required_argument, NULL, 'o'},     {"seed", required_argument, NULL, 's'},
    {"caps", required_argument, NULL, 'c'},   {"threads", required_argument, NULL, 't'},
    {"bench", no_argument, NULL, 'b'},        {"json", no_argument, NULL, 'j'},
    {"verbose", no_argument, NULL, 'v'},      {"repeat", required_argument, NULL, 'r'},
    {"device", required_argument, NULL, 'd'}, {"part", required_argument, NULL, 'p'},
    {"quick", no_argument, NULL, 'q'},        {"list", no_argument, NULL, 'l'},
    {"shapes", required_argument, NULL, 'S'}, {"scale", required_argument, NULL, 'n'},
    {"budget", required_argument, NULL, 'B'}, {NULL, 0, NULL, 0},
};

static bool parse(int argc, char **argv, ck_context *ctx, options *o) {
    int64_t number = 0;
    for (int key; (key = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        switch (key) {
        case 'o':
            ctx->op_glob = optarg;
            break;
        case 'd':
            o->cuda = strncmp(optarg, "cuda", 4) == 0;
            if (o->cuda && optarg[4] == ':' && xp_parse_i64(optarg + 5, &number) && number >= 0 &&
                number < 1024)
                o->cuda_index = (int)number;
            else if (strcmp(optarg, "cuda") != 0 && strcmp(optarg, "cpu") != 0)
                return false;
            break;
        case 'q':
            ctx->quick = true;
            break;
        case 'l':
            ctx->list = true;
            break;
        case 's':
            if (!xp_parse_i64(optarg, &number))
                return false;
            ctx->seed = (uint64_t)number;
            break;
        case 'p':
            if (!parse_part(optarg, ctx))
                return false;
            break;
        case 'c':
            o->caps = optarg;
            break;
        case 't':
            if (!xp_parse_i64(optarg, &number) || number < 1 || number > 1024)
                return false;
            o->n_threads = (int)number;
            break;
        case 'r':
            if (!xp_parse_f64(optarg, &ctx->repeat_s) || !(ctx->repeat_s >= 0))
                return false;
            break;
        case 'b':
            ctx->bench = true;
            break;
        case 'j':
            ctx->json = true;
            break;
        case 'S':
            o->has_shapes = strcmp(optarg, "users") == 0;
            if (!o->has_shapes)
                return false;
            break;
        case 'n':
            if (!xp_parse_i64(optarg, &o->shapes.scale) || o->shapes.scale < 1)
                return false;
            break;
        case 'B':
            if (!xp_parse_f64(optarg, &o->shapes.budget_s) || !(o->shapes.budget_s > 0))
                return false;
            break;
        case 'v':
            ctx->verbose = true;
            break;
        default:
            return false;
        }
    }
    return optind == argc;
}

/* A CPU takes an eighth of the sizes unless told otherwise. */
static void use_shapes(ck_context *ctx, options *o) {
    if (!o->has_shapes)
        return;
    ctx->bench = true;
    ctx->shapes = &o->shapes;
    if (o->shapes.scale == 0)
        o->shapes.scale = o->cuda ? 1 : 8;
}

int ck_main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0); /* what hangs is the line after the last one shown */
    ck_context ctx = {.seed = 1, .op_glob = "*", .out = stdout, .repeat_s = 0.4, .n_parts = 1};
    options o = {.shapes = {.budget_s = 60}};
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    if (!parse(argc, argv, &ctx, &o)) {
        fputs(usage, stderr);
        return 2;
    }
    if (ctx.list)
        return list_ops(&ctx);
    use_shapes(&ctx, &o);
    const xp_status status = run_families(&ctx, &o);
    if (status != XP_OK)
        fprintf(stderr, "checkop: %s\n", xp_last_error());
    else if (ctx.n_cases == 0)
        fprintf(stderr, "checkop: no op matches \"%s\"\n", ctx.op_glob);
    else if (!ctx.json && !ctx.bench)
        printf("checkop: %d cases, %d candidates, %d failed\n", ctx.n_cases, ctx.n_candidates,
               ctx.n_failed);
    for (int k = 0; k < ctx.n_candidates; k++)
        close_candidate(&ctx.candidates[k]);
    close_candidate(&ctx.reference);
    return status == XP_OK && ctx.n_failed == 0 && ctx.n_cases > 0 ? 0 : 1;
}
