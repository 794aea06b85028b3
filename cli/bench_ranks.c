#include "bench_ranks.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli.h"
#include "core/error.h"
#include "core/text.h"
#include "launch/shim.h"
#include "launch/supervise.h"
#include "parallel/run.h"
#include "train/trainer.h"

#define START_S   120.0 /* ranks are there, and their GPUs open */
#define FAILURE_S 30.0  /* after the first failure the others have heard of it */

static xp_status from_environment(int *n_ranks) {
    const char *text = getenv("NGPU");
    int64_t n = 0;
    if (text && text[0] && (!xp_parse_i64(text, &n) || n < 1 || n > 1024))
        return xp_error(XP_ECONFIG, "NGPU=%s is not a number of ranks", text);
    *n_ranks = (int)n;
    return XP_OK;
}

static xp_status choose(const bench_ranks_wanted *wanted, xp_config_set *set, xp_start *start,
                        bool *cuda) {
    char number[16];
    int n = wanted->n_ranks;
    XP_TRY(xp_config_override(set, "job.ranks", wanted->kind));
    XP_TRY(xp_config_override(set, "training.backend", wanted->backend));
    *cuda = xp_run_device_kind(xp_config_get(set)) == XP_DEVICE_CUDA;
    if (n == 0)
        XP_TRY(from_environment(&n));
    if (n == 0 && !*cuda)
        n = xp_train_n_cores() < wanted->n_on_cpu ? xp_train_n_cores() : wanted->n_on_cpu;
    snprintf(number, sizeof number, "%d", n);
    if (n > 0)
        XP_TRY(xp_config_override(set, "job.ngpu", number));
    return xp_start_choose(xp_config_get(set), 1, false, start);
}

xp_status bench_ranks_choose(const bench_ranks_wanted *wanted, xp_start *start, bool *cuda) {
    xp_config_set *set = NULL;
    XP_TRY(xp_config_load(0, NULL, false, &set));
    const xp_status status = choose(wanted, set, start, cuda);
    xp_config_destroy(set);
    return status;
}

static xp_status launch(int n_ranks, char **command) {
    const xp_launch_args args = {.n_ranks = n_ranks,
                                 .n_nodes = 1,
                                 .argv = command,
                                 .start_s = START_S,
                                 .failure_s = FAILURE_S};
    xp_launch_result result;
    fflush(NULL);
    XP_TRY(xp_launch_run(&args, &result));
    if (result.ended_by != 0)
        raise(result.ended_by); /* as if it had met one process */
    if (result.code == 0)
        return XP_OK;
    return xp_error(XP_ECOMM, "%s", result.text[0] ? result.text : "the run was stopped");
}

xp_status cli_ranks_launch(int n_ranks, int argc, char **argv) {
    char **command = cli_own_command(argc, argv);
    const xp_status status = command ? launch(n_ranks, command)
                                     : xp_error(XP_ENOMEM, "no memory for the ranks' command line");
    cli_command_free(command);
    return status;
}

xp_status bench_ranks_launch(int n_ranks, int argc, char **argv) {
    char **words = calloc((size_t)argc + 2, sizeof *words), bench[] = "bench";
    if (!words)
        return xp_error(XP_ENOMEM, "no memory for the ranks' command line");
    words[0] = bench;
    memcpy(words + 1, argv, (size_t)argc * sizeof *words);
    const xp_status status = cli_ranks_launch(n_ranks, argc + 1, words);
    free(words);
    return status;
}

void bench_rank_report(int code, const char *text) {
    xp_rank_report_failure(code, xp_last_error_rank() >= 0, text ? text : xp_last_error());
}
