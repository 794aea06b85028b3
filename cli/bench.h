/** `expar bench KIND`: one file a kind. */
#ifndef XP_CLI_BENCH_H
#define XP_CLI_BENCH_H

/* argv[0] is the kind's name; the exit code of the process. */
int bench_step(int argc, char **argv);
int bench_ops(int argc, char **argv);
int bench_ep(int argc, char **argv);
int bench_decode(int argc, char **argv);
int bench_scaling(int argc, char **argv);

/** `expar bench --write-profile FILE`; argv[0] is "bench". */
int bench_profile(int argc, char **argv);

#endif
