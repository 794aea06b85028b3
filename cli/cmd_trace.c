/* expar trace summary: where the time of traced steps went. */
#include <stdio.h>
#include <string.h>
#include "cli.h"
#include "options.h"
#include "report/trace.h"

#define MAX_FILES 1024

static xp_status print_file(const char *path, bool json, bool first) {
    xp_trace_sums sums;
    xp_text out = {0};
    XP_TRY(xp_trace_sums_read(path, &sums));
    if (json)
        xp_trace_sums_json(&sums, path, &out);
    else
        xp_trace_sums_print(&sums, path, &out);
    xp_trace_sums_free(&sums);
    const xp_status status = out.failed ? xp_error(XP_ENOMEM, "no memory for the output") : XP_OK;
    if (status == XP_OK)
        printf("%s%s", first ? "" : json ? ",\n" : "\n", out.data);
    xp_text_free(&out);
    return status;
}

static xp_status print_files(const char *const *paths, bool json) {
    if (json)
        fputs("[", stdout);
    for (int i = 0; paths[i]; i++)
        XP_TRY(print_file(paths[i], json, i == 0));
    if (json)
        fputs("]\n", stdout);
    return XP_OK;
}

static const char *action_at(int i) {
    return i == 0 ? "summary" : NULL;
}

int cmd_trace(int argc, char **argv) {
    bool json = false, done;
    const char *words[MAX_FILES + 2] = {0};
    const cli_option options[] = {
        {"--json", CLI_FLAG, &json, NULL, "JSON instead of tables", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar trace summary FILE... [--json]",
        .about =
            "Adds up traces of steps (profiling.enable_profiling writes "
            "DUMP/traces/step-N-rank-R.json), one\n"
            "step and rank a file: calls and time of every phase, layer and op, a table for each "
            "row of the\n"
            "trace, longest first; then by layer the time of its ops and of its communication, and "
            "how much of\n"
            "that is exposed: the compute stream runs nothing else. (none): outside of layers.",
        .examples = "  expar trace summary outputs/traces/step-100-rank-0.json\n"
                    "  expar trace summary outputs/traces/step-100-rank-*.json --json\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .max_positionals = MAX_FILES + 1};
    int code = cli_parse(&command, argc, argv, words, &done);
    if (code != 0 || done)
        return code;
    if (words[0] == NULL || (words[1] == NULL && strcmp(words[0], "summary") == 0)) {
        fprintf(stderr, "error: %s\nusage: %s\n", words[0] == NULL ? "say summary" : "name a trace",
                command.usage);
        return XP_EXIT_USAGE;
    }
    if (strcmp(words[0], "summary") != 0)
        return cli_no_such("action", words[0], action_at, "expar trace --help");
    const xp_status status = print_files(words + 1, json);
    return status == XP_OK ? XP_EXIT_OK : cli_fail(status);
}
