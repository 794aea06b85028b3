/* expar bench ep: arguments and printing; bench/ep.c measures. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "bench.h"
#include "cli.h"
#include "core/text.h"
#include "ep.h"
#include "lists.h"
#include "options.h"
#include "train/trainer.h"

#define MIB (1024.0 * 1024.0)

typedef struct ep_options {
    const char *tokens, *dims, *top_k, *experts, *ranks, *transports, *routings, *dtype, *device;
    double seconds, capacity_factor;
    int64_t num_sms;
    bool json, host_synchronized;
} ep_options;

typedef struct ep_lists {
    cli_int_list tokens, dims, top_k, experts, ranks;
    cli_choice_list transports, routings;
    xp_dtype dtype;
} ep_lists;

static const char *const transport_names[] = {"auto", "p2p", "a2a", "hierarchical", NULL};
static const char *const routing_names[] = {"random", "skewed", "modulo", "spread", NULL};

/* ---- printing ---------------------------------------------------------------------------- */

static void print_head(void) {
    printf("%2s %6s %5s %2s %4s %-7s %-12s %9s %11s %11s %9s %9s %8s %7s\n", "R", "T", "D", "K",
           "E", "routing", "transport", "moved MB", "dispatch us", "combine us", "row GB/s",
           "mem GB/s", "memcpy", "share");
}

static double seconds_of(const xp_bench_ep_row *row) {
    return row->dispatch_s + row->combine_s;
}

static double share_of(const xp_bench_ep_row *row) {
    return (row->dispatch_bytes + row->combine_bytes) / seconds_of(row) / row->memcpy_bytes_per_s;
}

static const char *transport_name(const xp_bench_ep_case *c, int i) {
    return c->n_ranks == 1 ? "none" : transport_names[c->transports[i]];
}

/* The other transport's row of this case, to compare with; NULL when it was not asked for. */
static const xp_bench_ep_row *find(const xp_bench_ep_case *c, const xp_bench_ep_row *rows,
                                   xp_ep_transport transport) {
    for (int i = 0; i < c->n_transports; i++)
        if (c->transports[i] == transport && !rows[i].failed)
            return &rows[i];
    return NULL;
}

static void print_row(const xp_bench_ep_case *c, const xp_bench_ep_row *rows, int i) {
    const xp_bench_ep_row *row = &rows[i];
    printf("%2d %6lld %5lld %2d %4d %-7s %-12s ", c->n_ranks, (long long)c->n_tokens,
           (long long)c->dim, c->top_k, c->n_experts, xp_bench_routing_name(c->routing),
           transport_name(c, i));
    if (row->failed) {
        printf("failed: %s\n", row->error);
        return;
    }
    printf("%9.1f %11.1f %11.1f %9.2f %9.2f %8.2f %6.1f%%", row->moved_bytes / MIB,
           row->dispatch_s * 1e6, row->combine_s * 1e6, row->moved_bytes / seconds_of(row) * 1e-9,
           (row->dispatch_bytes + row->combine_bytes) / seconds_of(row) * 1e-9,
           row->memcpy_bytes_per_s * 1e-9, 100 * share_of(row));
    const xp_bench_ep_row *a2a = find(c, rows, XP_EP_A2A);
    if (c->transports[i] == XP_EP_P2P && a2a)
        printf("  %.2fx of a2a's speed", seconds_of(a2a) / seconds_of(row));
    if (row->n_rounds > 1)
        printf("  %lld rounds", (long long)row->n_rounds);
    printf("\n");
}

static void add_number(xp_text *t, const char *name, double value) {
    xp_text_printf(t, ", \"%s\": ", name);
    xp_text_add_json_double(t, value);
}

static void add_row(xp_text *t, const xp_bench_ep_case *c, const xp_bench_ep_row *row, int i) {
    xp_text_printf(t,
                   "%s\n  {\"ranks\": %d, \"tokens\": %lld, \"dim\": %lld, \"top_k\": %d, "
                   "\"experts\": %d, \"dtype\": \"%s\", \"routing\": \"%s\", \"transport\": \"%s\"",
                   t->length > 1 ? "," : "", c->n_ranks, (long long)c->n_tokens, (long long)c->dim,
                   c->top_k, c->n_experts, xp_dtype_name(c->dtype),
                   xp_bench_routing_name(c->routing), transport_name(c, i));
    if (row->failed) {
        xp_text_puts(t, ", \"error\": ");
        xp_text_add_json(t, row->error, strlen(row->error));
    } else {
        xp_text_printf(t, ", \"rounds\": %lld, \"samples\": %d", (long long)row->n_rounds,
                       row->n_samples);
        add_number(t, "moved_bytes", row->moved_bytes);
        add_number(t, "dispatch_s", row->dispatch_s);
        add_number(t, "combine_s", row->combine_s);
        add_number(t, "dispatch_bytes", row->dispatch_bytes);
        add_number(t, "combine_bytes", row->combine_bytes);
        add_number(t, "memcpy_bytes_per_s", row->memcpy_bytes_per_s);
        add_number(t, "share_of_memcpy", share_of(row));
    }
    xp_text_puts(t, "}");
}

/* ---- running ----------------------------------------------------------------------------- */

typedef struct run_state {
    xp_bench_host host;
    const ep_options *o;
    const ep_lists *lists;
    xp_text json;
    int n_failed;
    bool stop; /* a rank of several processes cannot go on after a failure */
} run_state;

static void run_case(run_state *s, const xp_bench_ep_case *c) {
    xp_bench_ep_row rows[XP_BENCH_EP_MAX_TRANSPORTS];
    if (xp_bench_ep(&s->host, c, rows) != XP_OK) {
        s->n_failed++;
        s->stop = s->host.world != NULL;
    }
    for (int i = 0; i < c->n_transports && xp_bench_host_leads(&s->host); i++) {
        if (s->o->json)
            add_row(&s->json, c, &rows[i], i);
        else
            print_row(c, rows, i);
    }
    fflush(stdout);
}

static xp_bench_ep_case case_at(const run_state *s, const int at[6]) {
    const ep_lists *l = s->lists;
    xp_bench_ep_case c = {.n_ranks = xp_bench_host_n_ranks(&s->host, (int)l->ranks.values[at[0]]),
                          .dim = l->dims.values[at[1]],
                          .n_tokens = l->tokens.values[at[2]],
                          .top_k = (int)l->top_k.values[at[3]],
                          .n_experts = (int)l->experts.values[at[4]],
                          .routing = (xp_bench_routing)l->routings.values[at[5]],
                          .dtype = l->dtype,
                          .capacity_factor = s->o->capacity_factor,
                          .cuda = strcmp(s->o->device, "cuda") == 0,
                          .host_synchronized = s->o->host_synchronized,
                          .num_sms = (int)s->o->num_sms,
                          .seconds = s->o->seconds};
    c.n_transports = c.n_ranks == 1 ? 1 : l->transports.n;
    for (int i = 0; i < c.n_transports; i++)
        c.transports[i] = (xp_ep_transport)l->transports.values[i];
    return c;
}

/* Every combination; the last list turns fastest. */
static void run_all(run_state *s) {
    const ep_lists *l = s->lists;
    const int sizes[6] = {s->host.world ? 1 : l->ranks.n,
                          l->dims.n,
                          l->tokens.n,
                          l->top_k.n,
                          l->experts.n,
                          l->routings.n};
    int at[6] = {0};
    while (!s->stop) {
        const xp_bench_ep_case c = case_at(s, at);
        run_case(s, &c);
        int digit = 5;
        while (digit >= 0 && ++at[digit] == sizes[digit])
            at[digit--] = 0;
        if (digit < 0)
            break;
    }
}

static int parse_lists(const ep_options *o, ep_lists *l) {
    int code = 0;
    if (!cli_parse_ints("--tokens", o->tokens, 0, 1 << 24, &l->tokens) ||
        !cli_parse_ints("--dim", o->dims, 1, 1 << 20, &l->dims) ||
        !cli_parse_ints("--top-k", o->top_k, 1, 1024, &l->top_k) ||
        !cli_parse_ints("--experts", o->experts, 1, 65536, &l->experts) ||
        !cli_parse_ints("--ranks", o->ranks, 1, 1024, &l->ranks) ||
        !cli_parse_choices("--transport", o->transports, transport_names,
                           XP_BENCH_EP_MAX_TRANSPORTS, &l->transports) ||
        !cli_parse_choices("--routing", o->routings, routing_names, CLI_LIST_MAX, &l->routings))
        code = XP_EXIT_USAGE;
    if (strcmp(o->dtype, "f32") == 0)
        l->dtype = XP_F32;
    else if (strcmp(o->dtype, "bf16") == 0)
        l->dtype = XP_BF16;
    else
        code = XP_EXIT_USAGE;
    if (strcmp(o->device, "cpu") != 0 && strcmp(o->device, "cuda") != 0) {
        fprintf(stderr, "error: --device: \"%s\" is neither cpu nor cuda\n", o->device);
        code = XP_EXIT_USAGE;
    }
    if (code == 0)
        return 0;
    if (l->dtype == XP_F32 && strcmp(o->dtype, "f32") != 0)
        fprintf(stderr, "error: --dtype: \"%s\" is neither f32 nor bf16\n", o->dtype);
    return code;
}

static void print_notes(void) {
    printf("\nmoved: rows that dispatch delivers and rows that combine returns, each once; row "
           "GB/s: those\nover the time of both. mem: bytes read plus bytes written that the "
           "contract asks for, on all ranks;\nmemcpy: the same of a copy by all ranks at once, "
           "between the samples (on a GPU: of its own copy, alone); share: mem of memcpy.\n");
}

static int run(const ep_options *o) {
    ep_lists lists = {.dtype = XP_F32};
    const int code = parse_lists(o, &lists);
    if (code != 0)
        return code;
    run_state s = {.o = o, .lists = &lists};
    const xp_status status = xp_bench_host_open(&s.host);
    if (status != XP_OK)
        return cli_fail(status);
    const bool leads = xp_bench_host_leads(&s.host);
    if (o->json)
        xp_text_puts(&s.json, "[");
    else if (leads)
        print_head();
    run_all(&s);
    if (leads && o->json)
        printf("%s\n]\n", s.json.failed ? "[" : s.json.data);
    else if (leads)
        print_notes();
    xp_text_free(&s.json);
    xp_bench_host_close(&s.host);
    return s.n_failed > 0 ? XP_EXIT_FAILED : XP_EXIT_OK;
}

int bench_ep(int argc, char **argv) {
    char cores[16];
    snprintf(cores, sizeof cores, "%d", xp_train_n_cores() > 8 ? 8 : xp_train_n_cores());
    ep_options o = {.tokens = "64,512,4096",
                    .dims = "2048",
                    .top_k = "8",
                    .experts = "128",
                    .ranks = cores,
                    .transports = "p2p,a2a",
                    .routings = "random,skewed,modulo,spread",
                    .dtype = "f32",
                    .device = "cpu",
                    .seconds = 0.5,
                    .capacity_factor = 2};
    bool done;
    const cli_option options[] = {
        {"--tokens", CLI_STRING, &o.tokens, "LIST", "T, tokens of a rank (64,512,4096)", 0, 0},
        {"--dim", CLI_STRING, &o.dims, "LIST", "D, row width (2048)", 0, 0},
        {"--top-k", CLI_STRING, &o.top_k, "LIST", "K, experts of a token (8)", 0, 0},
        {"--experts", CLI_STRING, &o.experts, "LIST", "E, a multiple of the ranks (128)", 0, 0},
        {"--ranks", CLI_STRING, &o.ranks, "LIST", "R, rank threads (the cores, at most 8)", 0, 0},
        {"--transport", CLI_STRING, &o.transports, "LIST", "p2p, a2a, hierarchical (p2p,a2a)", 0,
         0},
        {"--routing", CLI_STRING, &o.routings, "LIST", "random, skewed, modulo, spread (all)", 0,
         0},
        {"--dtype", CLI_STRING, &o.dtype, "TYPE", "f32 or bf16 rows (f32)", 0, 0},
        {"--device", CLI_STRING, &o.device, "KIND",
         "cpu, or cuda: rank threads share one GPU, which takes the times (cpu)", 0, 0},
        {"--sms", CLI_INT, &o.num_sms, "N",
         "on a GPU: blocks of each rank, an SM each (0: half of the GPU for all)", 0, 4096},
        {"--host-synchronized", CLI_FLAG, &o.host_synchronized, NULL,
         "on a GPU, p2p: barriers are made by the hosts, no kernel waits", 0, 0},
        {"--capacity-factor", CLI_FLOAT, &o.capacity_factor, "F",
         "rows reserved over the balanced load (2); more goes in rounds", 0.01, 1e6},
        {"--seconds", CLI_FLOAT, &o.seconds, "S", "how long each row is repeated (0.5)", 0.001,
         3600},
        {"--json", CLI_FLAG, &o.json, NULL, "a JSON array, an object a row", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar bench ep [options]",
        .about =
            "Times dispatch and combine for every combination of the lists, the transports of "
            "a shape in turns, and a memcpy\nby all ranks between them. Ranks are threads that "
            "share the cores; under mpirun they are the processes.",
        .examples =
            "  expar bench ep\n"
            "  expar bench ep --ranks 2 --tokens 4096 --dim 2048,7168 --routing random --json\n"
            "  expar bench ep --device cuda --dtype bf16 --ranks 8 --tokens 4096 --sms 16\n"
            "  mpirun -n 2 expar bench ep --tokens 4096\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    const int code = cli_parse(&command, argc, argv, NULL, &done);
    return code != 0 || done ? code : run(&o);
}
