/* expar report: runs as a page, as a page that follows them, and in the terminal. */
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "cli.h"
#include "core/file.h"
#include "core/text.h"
#include "options.h"
#include "report/data.h"
#include "report/page.h"
#include "report/serve.h"
#include "report/terminal.h"

#define MAX_RUNS        64
#define NO_SERVE        (-2)
#define DEFAULT_PORT    8384
#define DEFAULT_COLUMNS 80

typedef struct report_options {
    const char *out;
    int64_t port; /* NO_SERVE, or -1: DEFAULT_PORT */
    bool text;
} report_options;

static void close_all(xp_report_run **runs, int n) {
    for (int i = 0; i < n; i++)
        xp_report_run_close(runs[i]);
}

static xp_status open_all(const char *const *paths, int n, bool follow, xp_report_run **runs) {
    for (int i = 0; i < n; i++) {
        const xp_status status = xp_report_run_open(paths[i], follow, &runs[i]);
        if (status == XP_OK)
            continue;
        close_all(runs, i);
        return status;
    }
    return XP_OK;
}

static void tell_damage(xp_report_run *const *runs, int n) {
    char text[512];
    for (int i = 0; i < n; i++) {
        if (runs[i]->n_damaged == 0)
            continue;
        snprintf(text, sizeof text, "%s: %lld damaged line%s left out (first: line %lld)",
                 runs[i]->metrics_path, (long long)runs[i]->n_damaged,
                 runs[i]->n_damaged == 1 ? "" : "s", (long long)runs[i]->first_damaged);
        cli_warn(NULL, text);
    }
}

/* ---- the page ---------------------------------------------------------------------------- */

static xp_status write_page(xp_report_run *const *runs, int n, const char *path) {
    xp_text data = {0}, page = {0};
    XP_TRY(cli_check_replaces(path, "<!doctype html>"));
    xp_status status = xp_report_data(runs, n, 0, &data);
    if (status == XP_OK)
        status = xp_report_page(&data, false, &page);
    if (status == XP_OK)
        status = xp_file_write_atomic(path, page.data, page.length);
    if (status == XP_OK) {
        int64_t steps = 0;
        for (int i = 0; i < n; i++)
            steps += runs[i]->n_steps;
        printf("%s: %d run%s, %lld steps, %.1f MB\n", path, n, n == 1 ? "" : "s", (long long)steps,
               (double)page.length / 1e6);
    }
    xp_text_free(&data);
    xp_text_free(&page);
    return status;
}

/* ---- the terminal ------------------------------------------------------------------------ */

static xp_report_terminal terminal(void) {
    struct winsize size;
    xp_report_terminal t = {.columns = DEFAULT_COLUMNS};
    int64_t columns = 0;
    const char *wanted = getenv("COLUMNS"), *no_color = getenv("NO_COLOR");
    const bool is_terminal = isatty(STDOUT_FILENO) == 1;
    setlocale(LC_CTYPE, "");
    t.utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    if (is_terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        t.columns = size.ws_col;
    else if (wanted && xp_parse_i64(wanted, &columns) && columns > 0 && columns < 10000)
        t.columns = (int)columns;
    t.color = is_terminal && !(no_color && no_color[0]);
    return t;
}

static xp_status print_text(xp_report_run *const *runs, int n) {
    const xp_report_terminal t = terminal();
    for (int i = 0; i < n; i++) {
        xp_text out = {0};
        const xp_status status = xp_report_draw(runs[i], &t, &out);
        if (status == XP_OK)
            printf("%s%s", i > 0 ? "\n" : "", out.data);
        xp_text_free(&out);
        XP_TRY(status);
    }
    return XP_OK;
}

/* ---- following --------------------------------------------------------------------------- */

static volatile sig_atomic_t stop_asked;

static void ask_stop(int signal_number) {
    (void)signal_number;
    stop_asked = 1;
}

static void tell_address(const char *address) {
    printf("%s follows the run; Ctrl-C ends it\n", address);
    fflush(stdout);
}

static xp_status serve(xp_report_run *const *runs, int n, int port) {
    const struct sigaction action = {.sa_handler = ask_stop}; /* no SA_RESTART: waits end */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    return xp_report_serve(runs, n, port, &stop_asked, tell_address);
}

/* ---- the command ------------------------------------------------------------------------- */

static xp_status report(const char *const *paths, int n, const report_options *o) {
    xp_report_run *runs[MAX_RUNS];
    XP_TRY(open_all(paths, n, o->port != NO_SERVE, runs));
    tell_damage(runs, n);
    xp_status status;
    if (o->port != NO_SERVE)
        status = serve(runs, n, o->port < 0 ? DEFAULT_PORT : (int)o->port);
    else if (o->text)
        status = print_text(runs, n);
    else
        status = write_page(runs, n, o->out ? o->out : "report.html");
    close_all(runs, n);
    return status;
}

int cmd_report(int argc, char **argv) {
    report_options o = {.port = NO_SERVE};
    const char *paths[MAX_RUNS + 1] = {0};
    bool done;
    const cli_option options[] = {
        {"--out", CLI_STRING, &o.out, "FILE", "the HTML file; default report.html", 0, 0},
        {"--serve", CLI_OPTIONAL_INT, &o.port, "[PORT]",
         "a page that follows runs, at http://127.0.0.1:8384/; PORT 0: a free port", 0, 65535},
        {"--text", CLI_FLAG, &o.text, NULL, "curves in the terminal", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar report RUN [RUN...] [--out FILE | --serve [PORT] | --text]",
        .about = "The curves of runs: loss and validation, gradient norm, learning rate, speed, "
                 "memory, time by\n"
                 "phase, expert load by layer, expert-parallel traffic, restarts, and how the "
                 "configurations of\n"
                 "several runs differ. RUN is a dump folder or a metrics file (metrics.jsonl, "
                 "metrics-1.jsonl).\n"
                 "The HTML file holds all it needs: it makes no request, and opens offline and on "
                 "a phone.",
        .examples = "  expar report outputs --out run.html\n"
                    "  expar report runs/a runs/b runs/c --out compared.html\n"
                    "  expar report outputs --serve\n"
                    "  expar report --text outputs\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .max_positionals = MAX_RUNS};
    int code = cli_parse(&command, argc, argv, paths, &done);
    if (code != 0 || done)
        return code;
    int n = 0;
    while (paths[n])
        n++;
    if (n == 0 || (o.out != NULL) + (o.port != NO_SERVE) + o.text > 1) {
        fprintf(stderr, "error: %s\nusage: %s\n",
                n == 0 ? "name a dump folder or a metrics file"
                       : "--out, --serve and --text are three different reports: give one",
                command.usage);
        return XP_EXIT_USAGE;
    }
    const xp_status status = report(paths, n, &o);
    return status == XP_OK ? XP_EXIT_OK : cli_fail(status);
}
