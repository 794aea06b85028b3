/* expar trace: where the time of traced steps went (summary), and how much of it the work needs (floors). */
#include <stdio.h>
#include <string.h>
#include "cli.h"
#include "options.h"
#include "report/trace_floors.h"
#include "train/complete.h"

#define MAX_FILES 1024

typedef struct trace_options {
    bool json, floors;
    const char *gpu, *config;
    int64_t ranks, nodes;
} trace_options;

/* ---- floors --------------------------------------------------------------------------------- */

static xp_status load_config(const trace_options *o, const char *path, const xp_trace_run *run,
                             xp_config_set **set) {
    char *words[] = {"--job.config_file", (char *)o->config};
    if (!o->config && !run->config)
        return xp_error(XP_EINVAL,
                        "%s does not hold its run's configuration (an older expar wrote it): name "
                        "it with --config, as RUN/config.toml",
                        path);
    XP_TRY(o->config ? xp_config_load(2, words, false, set)
                     : xp_config_load_text(path, run->config, set));
    const xp_status status = xp_config_complete(*set);
    if (status != XP_OK)
        xp_config_destroy(*set);
    return status;
}

static xp_status choose_hardware(const trace_options *o, const char *path, const xp_trace_run *run,
                                 xp_hardware *hardware) {
    if (o->gpu)
        return xp_hardware_read(o->gpu, hardware);
    if (!run->device)
        return xp_error(XP_EINVAL, "%s does not say what it ran on: name it with --gpu, as h200",
                        path);
    if (strcmp(run->device, "cpu") == 0)
        return xp_hardware_read("cpu", hardware);
    const xp_status status = xp_hardware_of_model(run->device, hardware);
    return status != XP_ENOENT
               ? status
               : xp_error(XP_ENOENT,
                          "%s: nothing is known about its GPU (%s): describe it in a file for "
                          "--gpu, as configs/hardware/h200.toml does",
                          path, run->device);
}

static int said_or(int64_t option, int said) {
    return option > 0 ? (int)option : said > 0 ? said : 1;
}

static xp_status put_floors(const trace_options *o, const char *path, const xp_trace_sums *sums,
                            xp_text *out) {
    xp_config_set *set = NULL;
    xp_hardware hardware;
    xp_trace_floors floors;
    const int n_ranks = said_or(o->ranks, sums->run.n_ranks),
              n_nodes = said_or(o->nodes, sums->run.n_nodes);
    XP_TRY(choose_hardware(o, path, &sums->run, &hardware));
    XP_TRY(load_config(o, path, &sums->run, &set));
    const xp_status status = xp_trace_floors_fill(sums, xp_config_get(set), &hardware, n_ranks,
                                                  n_nodes < n_ranks ? n_nodes : n_ranks, &floors);
    if (status == XP_OK && o->json)
        xp_trace_floors_json(&floors, sums, path, out);
    else if (status == XP_OK)
        xp_trace_floors_print(&floors, sums, path, out);
    else
        xp_error_context(status, "%s", path);
    xp_config_destroy(set);
    return status;
}

/* ---- files ---------------------------------------------------------------------------------- */

static xp_status put_file(const trace_options *o, const char *path, const xp_trace_sums *sums,
                          xp_text *out) {
    if (o->floors)
        return put_floors(o, path, sums, out);
    if (o->json)
        xp_trace_sums_json(sums, path, out);
    else
        xp_trace_sums_print(sums, path, out);
    return XP_OK;
}

static xp_status print_file(const trace_options *o, const char *path, bool first) {
    xp_trace_sums sums;
    xp_text out = {0};
    XP_TRY(xp_trace_sums_read(path, &sums));
    xp_status status = put_file(o, path, &sums, &out);
    xp_trace_sums_free(&sums);
    if (status == XP_OK && out.failed)
        status = xp_error(XP_ENOMEM, "no memory for the output");
    if (status == XP_OK)
        printf("%s%s", first ? "" : o->json ? ",\n" : "\n", out.data);
    xp_text_free(&out);
    return status;
}

static xp_status print_files(const trace_options *o, const char *const *paths) {
    if (o->json)
        fputs("[", stdout);
    for (int i = 0; paths[i]; i++)
        XP_TRY(print_file(o, paths[i], i == 0));
    if (o->json)
        fputs("]\n", stdout);
    return XP_OK;
}

/* ---- arguments ------------------------------------------------------------------------------ */

static const char *action_at(int i) {
    static const char *const actions[] = {"summary", "floors", NULL};
    return actions[i];
}

/* NULL: nothing is wrong. */
static const char *wrong_words(const trace_options *o, const char *const *words) {
    if (!words[0])
        return "say summary or floors";
    if (!o->floors && (o->gpu || o->config || o->ranks > 0 || o->nodes > 0))
        return "--gpu, --config, --ranks and --nodes are of floors";
    return words[1] ? NULL : "name a trace";
}

static int run(trace_options *o, const char *const *words, const char *usage) {
    if (words[0] && strcmp(words[0], "summary") != 0 && strcmp(words[0], "floors") != 0)
        return cli_no_such("action", words[0], action_at, "expar trace --help");
    o->floors = words[0] && strcmp(words[0], "floors") == 0;
    const char *wrong = wrong_words(o, words);
    if (wrong) {
        fprintf(stderr, "error: %s\nusage: %s\n", wrong, usage);
        return XP_EXIT_USAGE;
    }
    const xp_status status = print_files(o, words + 1);
    return status == XP_OK ? XP_EXIT_OK : cli_fail(status);
}

int cmd_trace(int argc, char **argv) {
    trace_options o = {.json = false};
    bool done;
    const char *words[MAX_FILES + 2] = {0};
    const cli_option options[] = {
        {"--gpu", CLI_STRING, &o.gpu, "NAME|FILE",
         "floors: the hardware, as of `expar plan` (what the trace says; a CPU: cpu)", 0, 0},
        {"--config", CLI_STRING, &o.config, "FILE",
         "floors: the run's configuration, for traces that do not hold it", 0, 0},
        {"--ranks", CLI_INT, &o.ranks, "N", "floors: ranks of the run (what the trace says; 1)", 1,
         1 << 20},
        {"--nodes", CLI_INT, &o.nodes, "N", "floors: its nodes (likewise)", 1, 1 << 20},
        {"--json", CLI_FLAG, &o.json, NULL, "JSON instead of tables", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar trace summary|floors FILE... [options]",
        .about =
            "Reads traces of steps (profiling.enable_profiling writes "
            "DUMP/traces/step-N-rank-R.json), one step\nand rank a file.\n\n"
            "summary: calls and time of every phase, layer and op, a table for each row of the "
            "trace, longest\nfirst; then by layer the time of its ops and of its communication, "
            "and how much of that is exposed:\nthe compute stream runs nothing else. (none): "
            "outside of layers.\n\n"
            "floors: the step by its parts, whose times add up to it, each beside its floor: FLOP "
            "and bytes of the\nmodel's shapes at the GEMM and copy rates that were measured on "
            "that hardware.",
        .examples = "  expar trace summary outputs/traces/step-100-rank-0.json\n"
                    "  expar trace summary outputs/traces/step-100-rank-*.json --json\n"
                    "  expar trace floors outputs/traces/step-100-rank-0.json\n"
                    "  expar trace floors outputs/traces/step-100-rank-0.json --gpu machine.toml\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .max_positionals = MAX_FILES + 1};
    const int code = cli_parse(&command, argc, argv, words, &done);
    return code != 0 || done ? code : run(&o, words, command.usage);
}
