/* expar bench ops: the timed cases of the op harness (tests/checkop), which knows every op and its
 * limit. */
#include <stdio.h>
#include <stdlib.h>
#include "bench.h"
#include "checkop.h"
#include "cli.h"
#include "options.h"

typedef struct ops_options {
    const char *op, *caps;
    int64_t threads;
    double seconds;
    bool json;
} ops_options;

static int run(const ops_options *o) {
    char threads[32], seconds[32];
    snprintf(threads, sizeof threads, "%lld", (long long)o->threads);
    snprintf(seconds, sizeof seconds, "%g", o->seconds);
    char *words[] = {"bench",    "--bench", "--op",   (char *)o->op, "--caps", (char *)o->caps,
                     "--repeat", seconds,   "--json", NULL,          NULL,     NULL};
    int n = o->json ? 9 : 8;
    if (o->threads > 0) {
        words[n++] = "--threads";
        words[n++] = threads;
    }
    words[n] = NULL;
    fflush(stdout);
    return ck_main(n, words);
}

int bench_ops(int argc, char **argv) {
    ops_options o = {.op = "*", .caps = "none", .seconds = 0.4};
    bool done;
    const cli_option options[] = {
        {"--op", CLI_STRING, &o.op, "GLOB", "only ops whose name matches: 'rmsnorm*' (all)", 0, 0},
        {"--caps", CLI_STRING, &o.caps, "LIST",
         "without these capabilities: avx512, or avx2 for both (none)", 0, 0},
        {"--threads", CLI_INT, &o.threads, "N", "threads (the cores)", 1, 1024},
        {"--seconds", CLI_FLOAT, &o.seconds, "S", "how long each op is repeated (0.4)", 0, 3600},
        {"--json", CLI_FLAG, &o.json, NULL, "a JSON array, an object a row", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar bench ops [options]",
        .about = "Times the ops of the model at training shapes. Beside each: its share of the "
                 "machine's limit measured in the\nsame run with the same threads: the copy rate "
                 "for ops bound by memory, sgemm 1024^3 for GEMMs.",
        .examples = "  expar bench ops\n"
                    "  expar bench ops --op 'grouped_*' --threads 1\n"
                    "  expar bench ops --op 'silu*' --json\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    const int code = cli_parse(&command, argc, argv, NULL, &done);
    return code != 0 || done ? code : run(&o);
}
