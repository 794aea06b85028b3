#include "ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"
#include "comm/provider.h"
#include "core/error.h"
#include "launch/message.h"
#include "launch/shim.h"
#include "launch/supervise.h"

#define START_S   300.0
#define TIMEOUT_S 600.0 /* one pass, and the reading of the weights */

/* The command line of a rank. NULL: no memory. Freed with the process. */
static char **rank_command(int argc, char **argv) {
    char **words = calloc((size_t)argc + 2, sizeof *words);
    char *exe = calloc(1, 4096);
    if (!words || !exe || readlink("/proc/self/exe", exe, 4095) <= 0)
        return NULL;
    words[0] = exe;
    for (int i = 0; i < argc; i++)
        words[i + 1] = argv[i];
    return words;
}

static int start(char **command, int n_ranks) {
    const xp_launch_args args = {.n_ranks = n_ranks,
                                 .n_nodes = 1,
                                 .argv = command,
                                 .start_s = START_S,
                                 .failure_s = TIMEOUT_S + 10};
    xp_launch_result result;
    fflush(NULL);
    xp_status status = xp_launch_run(&args, &result);
    if (status != XP_OK)
        return cli_fail(status);
    if (result.text[0])
        cli_fail(xp_error(XP_ECOMM, "%s", result.text));
    return result.ended_by != 0 ? XP_EXIT_FAILED : result.code;
}

static xp_status join(cli_ranks *ranks) {
    const char *folder = getenv(XP_LAUNCH_FOLDER);
    const xp_mpi_args args = {.init_timeout_s = START_S,
                              .timeout_s = TIMEOUT_S,
                              .rendezvous_folder = folder ? folder : "."};
    XP_TRY(xp_mpi_world_create(&args, &ranks->comm));
    ranks->speaks = xp_comm_rank(ranks->comm) == 0;
    if (xp_rank_has_shim())
        xp_rank_report_begun();
    return XP_OK;
}

bool cli_ranks_join(int argc, char **argv, int64_t n_ranks, cli_ranks *ranks, int *code) {
    *ranks = (cli_ranks){.speaks = true};
    const bool starts = n_ranks > 1 && !xp_mpi_launched();
    if (xp_shim_wanted() || starts) {
        char **command = rank_command(argc, argv);
        if (!command)
            *code = cli_fail(xp_error(XP_ENOMEM, "no memory for the ranks' command line"));
        else
            *code = xp_shim_wanted() ? xp_shim_run(command) : start(command, (int)n_ranks);
        return false;
    }
    if (!xp_mpi_launched())
        return true;
    xp_status status = join(ranks);
    if (status == XP_OK)
        return true;
    *code = cli_ranks_end(ranks, status);
    return false;
}

int cli_ranks_end(cli_ranks *ranks, xp_status status) {
    int code = status == XP_OK ? XP_EXIT_OK : cli_exit_code(status);
    if (status != XP_OK && ranks->comm) {
        xp_comm_abort(ranks->comm, NULL);
        status = xp_comm_final_error(ranks->comm, status);
    }
    if (status != XP_OK && xp_rank_has_shim())
        xp_rank_report_failure(code, xp_last_error_rank() >= 0, xp_last_error());
    else if (status != XP_OK)
        cli_fail(status);
    xp_comm_destroy(ranks->comm);
    ranks->comm = NULL;
    fflush(NULL);
    if (code != XP_EXIT_OK && xp_mpi_launched())
        _exit(code); /* MPI waits for all ranks when a process ends in good order */
    return code;
}
