/** `expar train`: a training run from the merged configuration. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"
#include "config/config.h"
#include "core/log.h"
#include "expar/comm.h"
#include "train/launch.h"

static const char usage[] =
    "usage: expar train [--job.config_file FILE] [--section.key value ...]\n"
    "\n"
    "Trains a model. Settings: defaults, then the file, then the environment, then the options.\n"
    "The run writes config.toml, metrics.jsonl, cache/ (token ids), checkpoint/, tb/ and traces/\n"
    "into job.dump_folder; started again with checkpoint.enable it resumes from the newest "
    "complete\n"
    "checkpoint there. SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGUSR1 finish the step, save, and "
    "exit\n"
    "with 0; a second signal ends the run at once. Under mpirun or srun each process is one rank.\n"
    "\n"
    "environment:\n"
    "  NGPU=N           ranks, as threads of this process (default 1; not under a launcher)\n"
    "  CONFIG_FILE=F    the TOML file\n"
    "  LOG_RANK=R       the rank that prints (default 0)\n"
    "  NO_COLOR=1       no colours on a terminal\n"
    "\n"
    "examples:\n"
    "  expar train --job.config_file configs/debug_moe.toml\n"
    "  NGPU=2 expar train --job.config_file configs/debug_moe.toml \\\n"
    "      --parallelism.expert_parallel_degree 2 --training.steps 100\n"
    "  expar train --job.config_file configs/debug_moe.toml --job.dump_folder runs/a \\\n"
    "      --optimizer.lr 1e-3 --checkpoint.enable --metrics.enable_tensorboard\n"
    "  mpirun --enable-recovery -n 4 expar train --job.config_file configs/debug_moe.toml\n"
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

/* mpirun gives its ranks a terminal of its own, wherever the output really goes. */
static bool wants_color(const xp_config *config) {
    return isatty(fileno(stdout)) == 1 && !xp_mpi_launched() && !getenv("NO_COLOR") &&
           !config->metrics.disable_color_printing;
}

static int run(const xp_config_set *config) {
    xp_log *log = NULL;
    xp_status status = xp_log_create(stdout, XP_LOG_INFO, wants_color(xp_config_get(config)), &log);
    if (status != XP_OK)
        return cli_fail(status);
    xp_train_result result;
    status = xp_train_launch(config, log, &result);
    xp_log_destroy(log);
    return status == XP_OK ? XP_EXIT_OK : cli_fail(status);
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
    if (argc > 1 || (file && file[0]))
        return XP_OK;
    xp_config_destroy(*config);
    return xp_error(XP_ECONFIG, "no configuration: give --job.config_file FILE, CONFIG_FILE in the "
                                "environment, or options; see expar train --help");
}

int cmd_train(int argc, char **argv) {
    if (cli_wants_help(argc, argv))
        return print_help(argc, argv);
    xp_config_set *config = NULL;
    xp_status status = load(argc, argv, &config);
    if (status != XP_OK) {
        xp_mpi_world_abort(NULL, NULL); /* it may be this rank alone */
        if (speaks_for_node())
            cli_fail(status);
        return XP_EXIT_USAGE;
    }
    int code = run(config);
    xp_config_destroy(config);
    if (code != XP_EXIT_OK && xp_mpi_launched()) {
        fflush(NULL);
        _exit(code); /* MPI waits for all ranks when a process ends in good order: they are not
                        coming */
    }
    return code;
}
