/** Options that take several values: "1,2,4" and "p2p,a2a". */
#ifndef XP_CLI_LISTS_H
#define XP_CLI_LISTS_H

#include <stdbool.h>
#include <stdint.h>

#define CLI_LIST_MAX 32

typedef struct cli_int_list {
    int n;
    int64_t values[CLI_LIST_MAX];
} cli_int_list;

/** @return false after an error was printed: no whole number, out of [low, high], too many, none */
bool cli_parse_ints(const char *option, const char *text, int64_t low, int64_t high,
                    cli_int_list *list);

typedef struct cli_choice_list {
    int n;
    int values[CLI_LIST_MAX]; /* indices into the names */
} cli_choice_list;

/** @param names  ends with NULL. @param max  values at most. @return as above */
bool cli_parse_choices(const char *option, const char *text, const char *const *names, int max,
                       cli_choice_list *list);

#endif
