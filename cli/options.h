/** Options of a command from one table: parsing, errors with the nearest name, and --help. */
#ifndef XP_CLI_OPTIONS_H
#define XP_CLI_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

/* CLI_OPTIONAL_INT: a whole number after it is its value; without one it is -1. */
typedef enum cli_kind { CLI_STRING, CLI_INT, CLI_FLOAT, CLI_FLAG, CLI_OPTIONAL_INT } cli_kind;

typedef struct cli_option {
    const char *name; /* "--max-tokens" */
    cli_kind kind;
    void *value; /* const char **, int64_t *, double *, bool *; holds the default */
    const char *metavar, *help;
    double low, high; /* of numbers; both 0: any */
} cli_option;

typedef struct cli_syntax {
    const char *usage;    /* "expar generate (--checkpoint DIR | --hf DIR) [options]" */
    const char *about;    /* what it does, one sentence or two */
    const char *examples; /* a line each */
    const cli_option *options;
    int n_options;
    int max_positionals;
} cli_syntax;

/**
 * Parse argv[1..]. --name value and --name=value; --help prints and sets *done.
 * @param positionals  [max_positionals] words that are no options; NULL-terminated when there is
 * room
 * @return 0 to go on (or *done), XP_EXIT_USAGE after an error was printed
 */
int cli_parse(const cli_syntax *command, int argc, char **argv, const char **positionals,
              bool *done);

#endif
