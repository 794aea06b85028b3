/* expar bench: speed beside the machine's own limits, measured in the same run. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "bench.h"
#include "cli.h"
#include "expar/comm.h"
#include "launch/shim.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} kinds[] = {
    {"step", bench_step, "whole training steps beside OpenBLAS's GEMM, and time by phase"},
    {"ops", bench_ops, "each op beside its floor; a table of shapes that users have"},
    {"ep", bench_ep, "dispatch and combine beside memcpy and the link between the GPUs"},
    {"decode", bench_decode, "tokens a second of text generation beside the memory's rate"},
    {"scaling", bench_scaling, "strong and weak scaling of training, a row a run"},
};
#define N_KINDS ((int)(sizeof kinds / sizeof kinds[0]))

static const char *name_at(int i) {
    return i < N_KINDS ? kinds[i].name : NULL;
}

static void print_help(FILE *file) {
    fputs("usage: expar bench KIND [options]\n\n"
          "Measures this machine. Each figure stands beside its limit, taken in the same run.\n\n"
          "kinds:\n",
          file);
    for (int i = 0; i < N_KINDS; i++)
        fprintf(file, "  %-10s %s\n", kinds[i].name, kinds[i].help);
    fputs(
        "\n`expar bench --write-profile FILE` measures this machine for `expar plan --gpu FILE`.\n"
        "\nexamples:\n"
        "  expar bench step\n"
        "  expar bench step --ep --json\n"
        "  expar bench ops --op 'grouped_*'\n"
        "  expar bench ep --ranks 2\n"
        "  expar bench decode --flavor 10B-A1B\n"
        "  expar bench scaling --ranks 1,2 --batch 1,2,4\n"
        "  expar bench --write-profile machine.toml\n"
        "  expar bench KIND --help; expar bench --write-profile --help\n",
        file);
}

static int run_kind(int kind, int argc, char **argv) {
    const int code = kinds[kind].run(argc, argv);
    if (code != XP_EXIT_OK && xp_mpi_launched()) {
        fflush(NULL);
        _exit(code); /* MPI waits for all ranks when a process ends in good order */
    }
    return code;
}

int cmd_bench(int argc, char **argv) {
    if (xp_shim_wanted()) {
        char **command = cli_own_command(argc, argv);
        return command ? xp_shim_run(command) : XP_EXIT_FAILED;
    }
    if (argc < 2) {
        print_help(stderr);
        return XP_EXIT_USAGE;
    }
    if (strncmp(argv[1], "--write-profile", strlen("--write-profile")) == 0)
        return bench_profile(argc, argv);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help(stdout);
        return XP_EXIT_OK;
    }
    for (int i = 0; i < N_KINDS; i++)
        if (strcmp(argv[1], kinds[i].name) == 0)
            return run_kind(i, argc - 1, argv + 1);
    return cli_no_such("bench", argv[1], name_at, "expar bench --help");
}
