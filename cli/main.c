#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "cli.h"
#include "commands.h"
#include "core/bus_error.h"
#include "device/gpu_environment.h"
#include "expar/version.h"
#include "ops/cpu/blas.h"

static void print_help(FILE *file) {
    fputs("expar " XP_VERSION ": pre-training of mixture-of-experts language models\n\n"
          "usage: expar COMMAND [ARGUMENTS]\n\ncommands:\n",
          file);
    for (int i = 0; cli_command_at(i); i++)
        fprintf(file, "  %-16s %s\n", cli_command_at(i)->name, cli_command_at(i)->help);
    fputs("\nexamples:\n"
          "  scripts/prepare_text.sh build/release/bin/expar    # text and tokenizer of the next "
          "two, as "
          "./run_train.sh prepares them\n"
          "  expar train --job.config_file configs/debug_moe.toml\n"
          "  NGPU=2 expar train --job.config_file configs/debug_moe.toml "
          "--parallelism.expert_parallel_degree 2\n"
          "  expar COMMAND --help\n\n"
          "exit codes: 0 done, 1 failed while running, 2 wrong usage or configuration\n",
          file);
}

static const char *name_at(int i) {
    return cli_command_at(i) ? cli_command_at(i)->name : NULL;
}

/* Results that did not reach their file are not results. */
static int check_output(int code) {
    bool lost = fflush(stdout) != 0 || ferror(stdout);
    if (!lost || code != XP_EXIT_OK)
        return code;
    fputs("error: cannot write to standard output\n", stderr);
    return XP_EXIT_FAILED;
}

/* A closed standard descriptor would be given to the next file that is opened, and what is printed
 * would end up there. */
static void fill_standard_files(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            _exit(XP_EXIT_FAILED);
}

/* Under a limit on its address space a thread of OpenBLAS may wait for its buffer for ever, and
 * OpenBLAS's exit for that thread: then nothing but the output is left to finish. */
static int leave(int code) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return code;
    fflush(NULL);
    _exit(code);
}

/* OpenBLAS chooses its kernels when the process starts, so the choice is mended by starting again. A choice that was
 * made by hand stays; where this fails the program goes on with what it has. */
static void start_with_fitting_blas(char **argv) {
    const char *better = xp_cpu_blas_better_kernel();
    char path[PATH_MAX];
    if (!better || getenv("OPENBLAS_CORETYPE"))
        return;
    const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0 || setenv("OPENBLAS_CORETYPE", better, 0) != 0)
        return;
    path[n] = '\0';
    execv(path, argv);
}

static int run(int argc, char **argv) {
    fill_standard_files();
    signal(SIGXFSZ, SIG_IGN); /* a file past the limit is an error with a message, not the end */
    xp_bus_error_report();
    xp_gpu_environment_set();
    if (argc < 2) {
        print_help(stderr);
        return XP_EXIT_USAGE;
    }
    if (argc == 3 && strcmp(argv[1], "help") == 0) { /* help COMMAND is COMMAND --help */
        argv[1] = argv[2];
        argv[2] = (char *)"--help";
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return XP_EXIT_OK;
    }
    if (strcmp(name, "--version") == 0) {
        printf("expar %s\n", xp_version());
        return XP_EXIT_OK;
    }
    start_with_fitting_blas(argv);
    for (int i = 0; cli_command_at(i); i++)
        if (strcmp(name, cli_command_at(i)->name) == 0)
            return check_output(cli_command_at(i)->run(argc - 1, argv + 1));
    return cli_no_such("command", name, name_at, "expar --help");
}

int main(int argc, char **argv) {
    return leave(run(argc, argv));
}
