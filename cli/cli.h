/** The commands: arguments and printing only. Each returns the process's exit code: 0 done, 1
 * failed while running, 2 wrong usage. */
#ifndef XP_CLI_CLI_H
#define XP_CLI_CLI_H

#include <stdbool.h>
#include "expar/status.h"

#define XP_EXIT_OK     0
#define XP_EXIT_FAILED 1
#define XP_EXIT_USAGE  2

/* argv[0] is the command's name. A command that exists has a row in commands.c. */
int cmd_train(int argc, char **argv);
int cmd_config(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_tune(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_tokenizer_train(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_checkpoint(int argc, char **argv);
int cmd_report(int argc, char **argv);
int cmd_trace(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_doctor(int argc, char **argv);

/** "error: <last error>" on stderr; the exit code for the status (XP_ECONFIG and XP_EINVAL: usage,
 * else failed). */
int cli_fail(xp_status status);
/** The exit code for the status. */
int cli_exit_code(xp_status status);
/** "warning: <text>" on stderr, for functions that report to a callback. */
void cli_warn(void *context, const char *text);
/**
 * "error: there is no <what> "<name>"", with the nearest name or with the help that lists them.
 * @param name_at  the i-th name, NULL past the last
 * @return XP_EXIT_USAGE
 */
int cli_no_such(const char *what, const char *name, const char *(*name_at)(int i),
                const char *help);
/** The command line that runs this program again: its path, then the words. NULL: no memory.
 * cli_command_free() it; the words are borrowed. */
char **cli_own_command(int argc, char **argv);
void cli_command_free(char **command);
/** Whether this machine has a GPU that expar can use. */
bool cli_has_gpu(void);
/** --device and --dtype of a command that computes, each NULL or a word; false after an error was printed. */
bool cli_check_device(const char *device, const char *dtype);
/**
 * Whether a command may write `path` over: nothing lies there, an empty file, or a file whose first
 * line holds `mark`, as what the command writes does.
 * @return XP_OK; XP_ECONFIG: another file, or no file at all; it is untouched
 */
xp_status cli_check_replaces(const char *path, const char *mark);
/** Whether --help or -h is among the arguments. */
bool cli_wants_help(int argc, char **argv);

#endif
