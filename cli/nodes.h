/** The nodes that the user names: --hostfile FILE, --host LIST, --nodes N. */
#ifndef XP_CLI_NODES_H
#define XP_CLI_NODES_H

#include <stdbool.h>
#include "expar/status.h"

typedef struct cli_nodes {
    const char *hostfile, *hosts; /* as given, or NULL */
    int n;                        /* 1 when nothing was given */
    bool given;
} cli_nodes;

/** Take these options out of the words; the rest is configuration. @return XP_OK; XP_ECONFIG */
XP_NODISCARD xp_status cli_take_nodes(int *argc, char **argv, cli_nodes *nodes);

#endif
