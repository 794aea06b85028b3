/** Ranks of a bench: threads of this process, processes that the launcher of `expar train` starts, or what mpirun or srun has made
 * this process. */
#ifndef XP_CLI_BENCH_RANKS_H
#define XP_CLI_BENCH_RANKS_H

#include <stdbool.h>
#include "train/start_choice.h"

typedef struct bench_ranks_wanted {
    int n_ranks;         /* 0: as many as NGPU says, or GPUs, or `n_on_cpu` */
    int n_on_cpu;        /* at most */
    const char *kind;    /* as job.ranks: auto, threads, processes */
    const char *backend; /* as training.backend: auto, cpu, cuda */
} bench_ranks_wanted;

/** @param[out] cuda  whether the ranks use GPUs. @return XP_OK; XP_ECONFIG */
XP_NODISCARD xp_status bench_ranks_choose(const bench_ranks_wanted *wanted, xp_start *start,
                                          bool *cuda);

/**
 * Run `expar bench ARGV...` as so many ranks, and wait for them.
 * @param argv  [argc] from the bench's name on
 * @return XP_OK; XP_ECOMM with what went wrong; does not return after a signal that ended it
 */
XP_NODISCARD xp_status bench_ranks_launch(int n_ranks, int argc, char **argv);

/** The same for `expar ARGV...`. @param argv  [argc] from the command's name on */
XP_NODISCARD xp_status cli_ranks_launch(int n_ranks, int argc, char **argv);

/** Of a rank that bench_ranks_launch() started, before it exits with a failure. @param text  NULL: the last error */
void bench_rank_report(int code, const char *text);

#endif
