/* expar bench ops: the timed cases of the op harness (tests/checkop), which knows every op and its
 * limit. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bench.h"
#include "checkop.h"
#include "cli.h"
#include "options.h"

#define MAX_WORDS 24

typedef struct ops_options {
    const char *op, *caps, *device, *shapes;
    int64_t threads, scale;
    double seconds, budget; /* seconds < 0: not given */
    bool json;
} ops_options;

/* Of the harness. */
typedef struct words {
    int n;
    char *items[MAX_WORDS];
    char numbers[4][32];
    int n_numbers;
} words;

static void add(words *w, const char *name, const char *value) {
    w->items[w->n++] = (char *)name;
    if (value)
        w->items[w->n++] = (char *)value;
}

static void add_number(words *w, const char *name, double value) {
    char *text = w->numbers[w->n_numbers++];
    snprintf(text, sizeof w->numbers[0], "%.10g", value);
    add(w, name, text);
}

static int run(const ops_options *o) {
    words w = {.n = 0};
    const bool is_auto = strcmp(o->device, "auto") == 0;
    add(&w, "bench", NULL);
    if (o->shapes)
        add(&w, "--shapes", o->shapes);
    else
        add(&w, "--bench", NULL);
    add(&w, "--op", o->op);
    add(&w, "--caps", o->caps);
    add(&w, "--device", !is_auto ? o->device : cli_has_gpu() ? "cuda" : "cpu");
    add_number(&w, "--repeat", o->seconds >= 0 ? o->seconds : o->shapes ? 0.08 : 0.4);
    add_number(&w, "--budget", o->budget);
    if (o->threads > 0)
        add_number(&w, "--threads", (double)o->threads);
    if (o->scale > 0)
        add_number(&w, "--scale", (double)o->scale);
    if (o->json)
        add(&w, "--json", NULL);
    fflush(stdout);
    return ck_main(w.n, w.items);
}

/* NULL: nothing is wrong. */
static const char *wrong_words(const ops_options *o) {
    static const char *const devices[] = {"auto", "cpu", "cuda"};
    bool known = strncmp(o->device, "cuda:", 5) == 0;
    for (int i = 0; i < 3; i++)
        known = known || strcmp(o->device, devices[i]) == 0;
    if (!known)
        return "--device: auto, cpu, cuda or cuda:N";
    if (o->shapes && strcmp(o->shapes, "users") != 0)
        return "--shapes: users";
    return o->shapes || (o->scale == 0 && o->budget == 60) ? NULL
                                                           : "--scale and --budget are of --shapes";
}

int bench_ops(int argc, char **argv) {
    ops_options o = {.op = "*", .caps = "none", .device = "auto", .seconds = -1, .budget = 60};
    bool done;
    const cli_option options[] = {
        {"--op", CLI_STRING, &o.op, "GLOB", "only ops whose name matches: 'rmsnorm*' (all)", 0, 0},
        {"--shapes", CLI_STRING, &o.shapes, "users",
         "the table of shapes that users have, instead of a few of each op", 0, 0},
        {"--device", CLI_STRING, &o.device, "KIND",
         "cpu, cuda or cuda:N (cuda where there is a GPU)", 0, 0},
        {"--caps", CLI_STRING, &o.caps, "LIST",
         "without these capabilities: avx512, or avx2 for both; of a GPU cudnn, deterministic "
         "(none)",
         0, 0},
        {"--threads", CLI_INT, &o.threads, "N", "threads of a CPU (the cores)", 1, 1024},
        {"--seconds", CLI_FLOAT, &o.seconds, "S",
         "how long each op is repeated (0.4; with --shapes 0.08)", 0, 3600},
        {"--scale", CLI_INT, &o.scale, "N",
         "--shapes: divide the sizes by it (1 on a GPU, 8 on a CPU)", 1, 4096},
        {"--budget", CLI_FLOAT, &o.budget, "S",
         "--shapes: seconds for all; shapes that do not fit in are left out and counted (60)",
         0.001, 86400},
        {"--json", CLI_FLAG, &o.json, NULL, "a JSON array, an object a row", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar bench ops [options]",
        .about =
            "Times the ops of the model at training shapes, each beside its floor: the larger of "
            "its FLOP and its bytes over\nthe machine's limits, measured in the same run: the copy "
            "rate, and a large GEMM (bf16 8192^3 on a GPU, sgemm 1024^3\nwith the same threads on "
            "a "
            "CPU). On a GPU: device time, the median of many, caches flushed before each.\n\n"
            "--shapes users: models of 1536 to 7168 wide, experts of 512 to 2048, 8 to 256 of "
            "them, "
            "top-1 to top-16, few and many\nrows. Each row also stands beside the best share of "
            "the "
            "floor that its op reaches at its size (a floor below 5, 15,\n50 and 150 us, and "
            "longer) "
            "or a smaller one; what is under 60 % of that is marked, with the reason where there "
            "is "
            "one.",
        .examples = "  expar bench ops\n"
                    "  expar bench ops --op 'grouped_*' --threads 1 --device cpu\n"
                    "  expar bench ops --op 'silu*' --json\n"
                    "  expar bench ops --shapes users\n"
                    "  expar bench ops --shapes users --op 'router*' --device cpu --scale 16\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    const int code = cli_parse(&command, argc, argv, NULL, &done);
    if (code != 0 || done)
        return code;
    const char *wrong = wrong_words(&o);
    if (wrong) {
        fprintf(stderr, "error: %s\n", wrong);
        return XP_EXIT_USAGE;
    }
    return run(&o);
}
