/** The table of commands: one row a command; `expar --help` and name suggestions come from it. */
#ifndef XP_CLI_COMMANDS_H
#define XP_CLI_COMMANDS_H

typedef struct cli_command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help; /* one line */
} cli_command;

/** The i-th command, NULL past the last. */
const cli_command *cli_command_at(int i);

#endif
