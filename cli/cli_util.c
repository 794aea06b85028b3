#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"

int cli_fail(xp_status status) {
    const char *text = xp_last_error();
    bool color = isatty(fileno(stderr)) == 1;
    fflush(stdout);
    fprintf(stderr, "%serror:%s %s\n", color ? "\033[31m" : "", color ? "\033[0m" : "",
            text[0] ? text : xp_status_text(status));
    return status == XP_ECONFIG || status == XP_EINVAL ? XP_EXIT_USAGE : XP_EXIT_FAILED;
}

bool cli_wants_help(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}
