/** `expar train`: a training run from the merged configuration. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"
#include "config/config.h"
#include "core/error.h"
#include "core/log.h"
#include "expar/comm.h"
#include "launch/shim.h"
#include "launch/supervise.h"
#include "nodes.h"
#include "train/complete.h"
#include "train/launch.h"

/* How much longer than the ranks' own time limit the launcher waits for them after a failure. */
#define FAILURE_MARGIN_S 10

static const char usage[] =
    "usage: expar train [FILE.toml] [--section.key value ...]\n"
    "\n"
    "Trains a model. FILE.toml may also be given as --job.config_file or --config. Settings: "
    "defaults, then the file, then the environment, then the options.\n"
    "The run writes config.toml, metrics.jsonl, cache/ (token ids), checkpoint/, tb/ and traces/\n"
    "into job.dump_folder; started again with checkpoint.enable it resumes from the newest "
    "complete\n"
    "checkpoint there. SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGUSR1 finish the step, save, and "
    "exit\n"
    "with 0; a second signal ends the run at once.\n"
    "\n"
    "On a machine with GPUs each of several ranks is a process with a GPU of its own, started\n"
    "through Open MPI's mpirun; elsewhere ranks are threads of this process (job.ranks). Under\n"
    "mpirun or srun each process is one rank.\n"
    "\n"
    "environment:\n"
    "  NGPU=N           ranks of this machine, of each node with --hostfile (default: all GPUs,\n"
    "                   without GPUs 1; not under mpirun or srun)\n"
    "  CONFIG_FILE=F    the TOML file\n"
    "  LOG_RANK=R       the rank that prints (default 0)\n"
    "  NO_COLOR=1       no colours on a terminal\n"
    "\n"
    "several nodes (the same path to expar on each; mpirun connects by ssh or the batch system):\n"
    "  --hostfile FILE  a node a line, as for mpirun\n"
    "  --host LIST      node1,node2\n"
    "  --nodes N        so many of them, or of the batch system's allocation\n"
    "\n"
    "examples (scripts/prepare_text.sh build/release/bin/expar prepares their text and tokenizer, "
    "as ./run_train.sh does):\n"
    "  expar train --job.config_file configs/debug_moe.toml\n"
    "  NGPU=2 expar train --job.config_file configs/debug_moe.toml \\\n"
    "      --parallelism.expert_parallel_degree 2 --training.steps 100\n"
    "  expar train --job.config_file configs/debug_moe.toml --job.dump_folder runs/a \\\n"
    "      --optimizer.lr 1e-3 --checkpoint.enable --metrics.enable_tensorboard\n"
    "  NGPU=8 expar train --hostfile nodes.txt --job.config_file configs/debug_moe.toml\n"
    "  srun --mpi=pmix -n 16 expar train --job.config_file configs/debug_moe.toml\n"
    "\n"
    "expar train --help SECTION lists the keys of a section (training, optimizer, checkpoint, "
    "...);\n"
    "expar config --help lists all.\n"
    "\n"
    "exit codes: 0 done or stopped by a signal, 1 failed while running, 2 wrong configuration\n";

static int print_help(int argc, char **argv) {
    if (argc < 3) {
        fputs(usage, stdout);
        return XP_EXIT_OK;
    }
    char *text = NULL;
    xp_status status = xp_config_help(argv[2], false, &text);
    if (status != XP_OK)
        return cli_fail(status);
    fputs(text, stdout);
    free(text);
    return XP_EXIT_OK;
}

/* The user's mpirun gives its ranks a terminal of its own, wherever the output really goes. */
static bool wants_color(const xp_config *config) {
    return isatty(fileno(stdout)) == 1 && (!xp_mpi_launched() || xp_rank_has_shim()) &&
           !getenv("NO_COLOR") && !config->metrics.disable_color_printing;
}

/* The launcher tells the user, once. */
static int fail(xp_status status) {
    if (!xp_rank_has_shim())
        return cli_fail(status);
    const int code = cli_exit_code(status);
    xp_rank_report_failure(code, xp_last_error_rank() >= 0, xp_last_error());
    return code;
}

static int run_here(xp_config_set *config, const xp_start *start) {
    xp_log *log = NULL;
    xp_status status = xp_log_create(stdout, XP_LOG_INFO, wants_color(xp_config_get(config)), &log);
    if (status != XP_OK)
        return fail(status);
    xp_train_result result;
    status = xp_train_launch(config, start, log, &result);
    xp_log_destroy(log);
    return status == XP_OK ? XP_EXIT_OK : fail(status);
}

static int run_processes(const xp_config *config, const xp_start *start, const cli_nodes *nodes,
                         char **argv) {
    const xp_launch_args args = {.n_ranks = start->n_ranks,
                                 .n_nodes = start->n_nodes,
                                 .hostfile = nodes->hostfile,
                                 .hosts = nodes->hosts,
                                 .argv = argv,
                                 .start_s = (double)config->comm.init_timeout_seconds,
                                 .failure_s =
                                     (double)config->comm.train_timeout_seconds + FAILURE_MARGIN_S};
    xp_launch_result result;
    fflush(NULL);
    xp_status status = xp_launch_run(&args, &result);
    if (status != XP_OK)
        return cli_fail(status);
    if (result.ended_by != 0)
        raise(result.ended_by); /* as if it had met one process */
    if (result.text[0])
        cli_fail(xp_error(XP_ECOMM, "%s", result.text));
    return result.code;
}

static int run(xp_config_set *set, const cli_nodes *nodes, int argc, char **argv) {
    const xp_config *config = xp_config_get(set);
    xp_start start;
    xp_status status = xp_start_choose(config, nodes->n, nodes->given, &start);
    if (status == XP_OK && start.kind == XP_START_PROCESSES)
        status = xp_start_check(config, &start);
    if (status != XP_OK)
        return fail(status);
    if (start.kind != XP_START_PROCESSES)
        return run_here(set, &start);
    char **command = cli_own_command(argc, argv);
    const int code = command ? run_processes(config, &start, nodes, command)
                             : fail(xp_error(XP_ENOMEM, "no memory for the ranks' command line"));
    cli_command_free(command);
    return code;
}

/* Under a launcher every rank reads the same words and files: one of each node says what is wrong
 * with them. */
static bool speaks_for_node(void) {
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_RANK");
    if (!local)
        local = getenv("SLURM_LOCALID");
    return !xp_mpi_launched() || !local || strcmp(local, "0") == 0;
}

/* Nothing at all was given: better said at once than by the first key without which nothing goes.
 */
static xp_status load(int argc, char **argv, xp_config_set **config) {
    XP_TRY(xp_config_load(argc - 1, argv + 1, true, config));
    const char *file = xp_config_get(*config)->job.config_file;
    if (argc > 1 || (file && file[0])) {
        xp_status status = xp_config_complete(*config);
        if (status != XP_OK)
            xp_config_destroy(*config);
        return status;
    }
    xp_config_destroy(*config);
    return xp_error(XP_ECONFIG,
                    "no configuration: give a file (expar train FILE.toml, or --job.config_file), "
                    "CONFIG_FILE in the "
                    "environment, or options; see expar train --help");
}

int cmd_train(int argc, char **argv) {
    if (cli_wants_help(argc, argv))
        return print_help(argc, argv);
    if (xp_shim_wanted()) {
        char **command = cli_own_command(argc, argv);
        return command ? xp_shim_run(command) : XP_EXIT_FAILED;
    }
    cli_nodes nodes;
    xp_config_set *config = NULL;
    xp_status status = cli_take_nodes(&argc, argv, &nodes);
    if (status == XP_OK)
        status = load(argc, argv, &config);
    if (status != XP_OK) {
        xp_mpi_world_abort(NULL, NULL); /* it may be this rank alone */
        if (xp_rank_has_shim())
            fail(status);
        else if (speaks_for_node())
            cli_fail(status);
        return XP_EXIT_USAGE;
    }
    int code = run(config, &nodes, argc, argv);
    xp_config_destroy(config);
    if (code != XP_EXIT_OK && xp_mpi_launched()) {
        fflush(NULL);
        _exit(code); /* MPI waits for all ranks when a process ends in good order: they are not
                        coming */
    }
    return code;
}
