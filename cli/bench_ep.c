/* expar bench ep: arguments, and who runs what; bench/ep.c measures. */
#include "bench_ep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "bench.h"
#include "bench_ranks.h"
#include "cli.h"
#include "core/file.h"
#include "launch/shim.h"
#include "lists.h"
#include "options.h"

/** Set for ranks that this command has started: where the rows of JSON go. */
#define ROWS_FILE "EXPAR_BENCH_ROWS"

#define N_LISTS     6
#define MOST_ON_CPU 8
#define ROWS_MAX    ((size_t)64 << 20)
#define MAX_ERROR   1024

typedef struct ep_options {
    const char *tokens, *dims, *top_k, *experts, *ranks, *sms, *transports, *routings, *dtype,
        *device, *kind;
    double seconds, capacity_factor;
    bool json, host_synchronized, backward;
    int argc;
    char **argv;
} ep_options;

typedef struct ep_lists {
    cli_int_list tokens, dims, top_k, experts, ranks, sms;
    cli_choice_list transports, routings;
} ep_lists;

static const char *const routing_names[] = {"random", "skewed", "modulo", "spread", NULL};
static const char *const dtype_names[] = {"auto", "f32", "bf16", NULL};
static const char *const device_names[] = {"auto", "cpu", "cuda", NULL};
static const char *const kind_names[] = {"auto", "threads", "processes", NULL};

typedef struct run_state {
    xp_bench_host host;
    const ep_options *o;
    const ep_lists *lists;
    int n_ranks;
    bool cuda;
    xp_text json; /* rows, comma between them */
    int n_rows, n_failed;
    bool stop; /* processes cannot go on after a failure inside a rank */
    char error[MAX_ERROR];
} run_state;

/* ---- the rows of so many ranks ----------------------------------------------------------- */

static void add_json(run_state *s, const char *row) {
    xp_text_printf(&s->json, "%s\n  %s", s->json.length > 0 ? "," : "", row);
}

/* A rank's row of JSON goes to the process that has started it, a line each. */
static void hand_over(run_state *s, const char *path, const char *row) {
    FILE *file = fopen(path, "a");
    if (!file || fprintf(file, "%s\n", row) < 0 || fclose(file) != 0)
        s->n_failed++;
}

static void show_row(run_state *s, const xp_bench_ep_case *c, const xp_bench_ep_row *rows, int i) {
    const char *path = getenv(ROWS_FILE);
    if (!s->o->json) {
        bench_ep_print_row(c, rows, i);
        fflush(stdout);
        return;
    }
    xp_text row = {0};
    bench_ep_add_row(&row, c, &rows[i], i);
    if (row.failed)
        s->n_failed++;
    else if (path)
        hand_over(s, path, row.data);
    else
        add_json(s, row.data);
    xp_text_free(&row);
}

static void run_case(run_state *s, const xp_bench_ep_case *c) {
    xp_bench_ep_row rows[XP_BENCH_EP_MAX_TRANSPORTS];
    if (xp_bench_ep(&s->host, c, rows) != XP_OK) {
        bench_rank_report(XP_EXIT_FAILED, NULL);
        s->n_failed++;
        s->stop = s->host.world && xp_comm_async_error(s->host.world) != XP_OK;
        snprintf(s->error, sizeof s->error, "%s", rows[0].error);
    }
    for (int i = 0; i < c->n_transports && xp_bench_host_leads(&s->host); i++)
        show_row(s, c, rows, i);
    s->n_rows++;
}

static xp_dtype dtype_of(const run_state *s) {
    if (strcmp(s->o->dtype, "auto") == 0)
        return s->cuda ? XP_BF16 : XP_F32;
    return strcmp(s->o->dtype, "bf16") == 0 ? XP_BF16 : XP_F32;
}

static xp_bench_ep_case case_at(const run_state *s, const int at[N_LISTS]) {
    const ep_lists *l = s->lists;
    xp_bench_ep_case c = {.n_ranks = xp_bench_host_n_ranks(&s->host, s->n_ranks),
                          .dim = l->dims.values[at[0]],
                          .n_tokens = l->tokens.values[at[1]],
                          .top_k = (int)l->top_k.values[at[2]],
                          .n_experts = (int)l->experts.values[at[3]],
                          .num_sms = (int)l->sms.values[at[4]],
                          .routing = (xp_bench_routing)l->routings.values[at[5]],
                          .dtype = dtype_of(s),
                          .capacity_factor = s->o->capacity_factor,
                          .cuda = s->cuda,
                          .backward = s->o->backward,
                          .host_synchronized = s->o->host_synchronized,
                          .seconds = s->o->seconds};
    c.n_transports = c.n_ranks == 1 ? 1 : l->transports.n;
    for (int i = 0; i < c.n_transports; i++)
        c.transports[i] = (xp_ep_transport)l->transports.values[i];
    return c;
}

/* Every combination; the last list turns fastest. */
static void run_all(run_state *s) {
    const ep_lists *l = s->lists;
    const int sizes[N_LISTS] = {l->dims.n,    l->tokens.n, l->top_k.n,
                                l->experts.n, l->sms.n,    l->routings.n};
    int at[N_LISTS] = {0};
    while (!s->stop) {
        const xp_bench_ep_case c = case_at(s, at);
        run_case(s, &c);
        int digit = N_LISTS - 1;
        while (digit >= 0 && ++at[digit] == sizes[digit])
            at[digit--] = 0;
        if (digit < 0)
            break;
    }
}

/* ---- ranks ------------------------------------------------------------------------------- */

/* This process is a rank. */
static xp_status run_rank(run_state *s) {
    XP_TRY(xp_bench_host_open(&s->host));
    run_all(s);
    xp_bench_host_close(&s->host);
    if (s->n_failed > 0 && !s->stop) {
        char text[MAX_ERROR + 64];
        snprintf(text, sizeof text, "%d of %d cases failed; the last: %s", s->n_failed, s->n_rows,
                 s->error);
        bench_rank_report(XP_EXIT_FAILED, text);
    }
    return XP_OK;
}

static xp_status read_rows(run_state *s, const char *path) {
    char *data, *rest = NULL;
    size_t n_bytes;
    XP_TRY(xp_file_read(path, ROWS_MAX, &data, &n_bytes));
    for (char *line = strtok_r(data, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        add_json(s, line);
    free(data);
    return XP_OK;
}

/* The ranks print their rows themselves, but JSON is one array. */
static xp_status run_processes(run_state *s) {
    char path[] = "/tmp/expar-bench-XXXXXX";
    const int fd = mkstemp(path);
    if (fd < 0 || close(fd) != 0 || setenv(ROWS_FILE, path, 1) != 0)
        return xp_error(XP_EIO, "cannot make a file in /tmp");
    xp_status status = bench_ranks_launch(s->n_ranks, s->o->argc, s->o->argv);
    if (status != XP_OK) {
        s->n_failed++;
        cli_fail(status);
    }
    unsetenv(ROWS_FILE);
    status = read_rows(s, path);
    unlink(path);
    return status;
}

static xp_status run_ranks(run_state *s, int asked) {
    const bench_ranks_wanted wanted = {
        .n_ranks = asked, .n_on_cpu = MOST_ON_CPU, .kind = s->o->kind, .backend = s->o->device};
    xp_start start;
    XP_TRY(bench_ranks_choose(&wanted, &start, &s->cuda));
    s->n_ranks = start.n_ranks;
    if (start.kind == XP_START_RANK)
        return run_rank(s);
    if (start.kind == XP_START_PROCESSES)
        return run_processes(s);
    run_all(s);
    return XP_OK;
}

static xp_status run_lists(run_state *s) {
    const cli_int_list *ranks = &s->lists->ranks;
    const int n = xp_mpi_launched() || ranks->n == 0 ? 1 : ranks->n;
    for (int i = 0; i < n; i++)
        XP_TRY(run_ranks(s, ranks->n == 0 ? 0 : (int)ranks->values[i]));
    return XP_OK;
}

/* Of several processes under the user's own launcher one prints. */
static bool prints(void) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    rank = rank ? rank : getenv("SLURM_PROCID");
    return !xp_rank_has_shim() && (!xp_mpi_launched() || !rank || strcmp(rank, "0") == 0);
}

static bool parse_word(const char *option, const char *word, const char *const *names) {
    cli_choice_list list;
    return cli_parse_choices(option, word, names, 1, &list);
}

static bool parse_lists(const ep_options *o, ep_lists *l) {
    return cli_parse_ints("--tokens", o->tokens, 0, 1 << 24, &l->tokens) &&
           cli_parse_ints("--dim", o->dims, 1, 1 << 20, &l->dims) &&
           cli_parse_ints("--top-k", o->top_k, 1, 1024, &l->top_k) &&
           cli_parse_ints("--experts", o->experts, 1, 65536, &l->experts) &&
           (!o->ranks || cli_parse_ints("--ranks", o->ranks, 1, 1024, &l->ranks)) &&
           cli_parse_ints("--sms", o->sms, 0, 4096, &l->sms) &&
           cli_parse_choices("--transport", o->transports, bench_ep_transport_names,
                             XP_BENCH_EP_MAX_TRANSPORTS, &l->transports) &&
           cli_parse_choices("--routing", o->routings, routing_names, CLI_LIST_MAX, &l->routings) &&
           parse_word("--dtype", o->dtype, dtype_names) &&
           parse_word("--device", o->device, device_names) &&
           parse_word("--job.ranks", o->kind, kind_names);
}

static int run(const ep_options *o) {
    ep_lists lists = {0};
    if (!parse_lists(o, &lists))
        return XP_EXIT_USAGE;
    run_state s = {.o = o, .lists = &lists};
    const bool speaks = prints();
    if (speaks && !o->json)
        bench_ep_print_head(o->backward);
    const xp_status status = run_lists(&s);
    if (speaks && o->json)
        printf("[%s\n]\n", s.json.failed || s.json.length == 0 ? "" : s.json.data);
    else if (speaks && status == XP_OK)
        bench_ep_print_notes();
    xp_text_free(&s.json);
    if (status == XP_OK)
        return s.n_failed > 0 ? XP_EXIT_FAILED : XP_EXIT_OK;
    if (!xp_rank_has_shim())
        return cli_fail(status);
    bench_rank_report(cli_exit_code(status), NULL);
    return cli_exit_code(status);
}

int bench_ep(int argc, char **argv) {
    ep_options o = {.tokens = "64,512,4096",
                    .dims = "2048",
                    .top_k = "8",
                    .experts = "128",
                    .sms = "0",
                    .transports = "p2p,a2a",
                    .routings = "random,skewed,modulo,spread",
                    .dtype = "auto",
                    .device = "auto",
                    .kind = "auto",
                    .seconds = 0.5,
                    .capacity_factor = 2,
                    .argc = argc,
                    .argv = argv};
    bool done;
    const cli_option options[] = {
        {"--tokens", CLI_STRING, &o.tokens, "LIST", "T, tokens of a rank (64,512,4096)", 0, 0},
        {"--dim", CLI_STRING, &o.dims, "LIST", "D, row width (2048)", 0, 0},
        {"--top-k", CLI_STRING, &o.top_k, "LIST", "K, experts of a token (8)", 0, 0},
        {"--experts", CLI_STRING, &o.experts, "LIST", "E, a multiple of the ranks (128)", 0, 0},
        {"--ranks", CLI_STRING, &o.ranks, "LIST",
         "R (NGPU; else all GPUs; else the cores, at most 8)", 0, 0},
        {"--job.ranks", CLI_STRING, &o.kind, "KIND",
         "auto, threads or processes; auto: processes where each rank has a GPU of its own, else "
         "threads",
         0, 0},
        {"--transport", CLI_STRING, &o.transports, "LIST", "p2p, a2a, hierarchical (p2p,a2a)", 0,
         0},
        {"--routing", CLI_STRING, &o.routings, "LIST", "random, skewed, modulo, spread (all)", 0,
         0},
        {"--dtype", CLI_STRING, &o.dtype, "TYPE", "f32 or bf16 rows (bf16 on GPUs, f32 on the CPU)",
         0, 0},
        {"--device", CLI_STRING, &o.device, "KIND", "cpu or cuda (cuda where there is a GPU)", 0,
         0},
        {"--sms", CLI_STRING, &o.sms, "LIST",
         "on a GPU: blocks of each rank, an SM each (0: half of the GPU for all)", 0, 0},
        {"--backward", CLI_FLAG, &o.backward, NULL, "combine's and dispatch's backward as well", 0,
         0},
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
        .about = "Times plan, dispatch and combine for every combination of the lists, the "
                 "transports of "
                 "a shape in turns; between "
                 "them the\nlink (each rank copies into the next one's memory) and a memcpy. On "
                 "GPUs each rank is a process "
                 "with a GPU of its own,\nstarted as for training; more ranks than GPUs are "
                 "threads that share them. On the "
                 "CPU ranks are threads that share the\ncores. Under mpirun or srun they are its "
                 "processes.",
        .examples =
            "  expar bench ep\n"
            "  expar bench ep --ranks 2 --tokens 4096 --dim 2048,7168 --routing random --json\n"
            "  expar bench ep --tokens 16384 --sms 16,24 --transport p2p --backward\n"
            "  expar bench ep --device cpu --ranks 2 --job.ranks processes\n"
            "  mpirun -n 2 expar bench ep --tokens 4096\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    const int code = cli_parse(&command, argc, argv, NULL, &done);
    return code != 0 || done ? code : run(&o);
}
