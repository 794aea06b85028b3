/** One row of `expar bench scaling`: a run in a process of its own, or in several. */
#ifndef XP_CLI_BENCH_SCALING_H
#define XP_CLI_BENCH_SCALING_H

#include <stdbool.h>
#include <stdint.h>
#include "config_words.h"

typedef struct scaling_options {
    const char *config, *ranks, *batch, *memory_limit, *modes;
    int64_t steps, warmup;
    int64_t limit_bytes; /* 0: none */
    bool json;
    cli_config_words words;
    int argc; /* of the command, from "scaling" on */
    char **argv;
} scaling_options;

typedef struct scaling_shape {
    bool weak;
    int64_t ranks, batch, global_batch; /* rows of a rank's pass; of a step */
} scaling_shape;

/** What a run tells the table. */
typedef struct scaling_result {
    bool ok;
    char error[600];
    double step_s, tokens, flops;
    double memory, memory_total; /* bytes of the host, all ranks; on GPUs of the GPU with most */
    int ep_size;
    bool on_gpus, processes;
} scaling_result;

/** Run it and wait. @param folder  for its files. @param[out] result  a failure is a result, too */
void scaling_run(const scaling_options *o, const scaling_shape *shape, const char *folder,
                 scaling_result *result);

/** Whether scaling_run() of another process has started this one as a rank. */
bool scaling_is_rank(void);
/** Be that rank. @return the exit code */
int scaling_run_rank(const scaling_options *o);

#endif
