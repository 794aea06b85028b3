#include "nodes.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/text.h"

/* A host a line, as mpirun reads it; the same host twice is one node. */
static xp_status count_hosts(const char *path, int *n) {
    enum { MOST = 4096 };
    char line[1024];
    char(*seen)[256] = calloc(MOST, sizeof *seen);
    FILE *file = fopen(path, "re");
    *n = 0;
    while (file && seen && fgets(line, sizeof line, file)) {
        char name[256];
        int i = 0;
        if (sscanf(line, " %255[^ \t\r\n#]", name) != 1)
            continue;
        while (i < *n && strcmp(seen[i], name) != 0)
            i++;
        if (i == *n && *n < MOST)
            snprintf(seen[(*n)++], sizeof seen[0], "%s", name);
    }
    free(seen);
    if (!file)
        return xp_error(XP_ECONFIG, "--hostfile: cannot read %s", path);
    fclose(file);
    return *n > 0 ? XP_OK : xp_error(XP_ECONFIG, "--hostfile: %s names no host", path);
}

static int count_list(const char *list) {
    int n = 1;
    for (; *list; list++)
        n += *list == ',';
    return n;
}

xp_status cli_take_nodes(int *argc, char **argv, cli_nodes *nodes) {
    static const char *const names[] = {"--hostfile", "--host", "--nodes"};
    const char *values[3] = {0};
    int n_left = 0;
    for (int i = 0; i < *argc; i++) {
        int k = 0;
        size_t length = 0;
        for (; k < 3; k++) {
            length = strlen(names[k]);
            if (strncmp(argv[i], names[k], length) == 0 &&
                (argv[i][length] == '\0' || argv[i][length] == '='))
                break;
        }
        if (k == 3) {
            argv[n_left++] = argv[i];
            continue;
        }
        if (argv[i][length] == '\0' && i + 1 == *argc)
            return xp_error(XP_ECONFIG, "%s needs a value", names[k]);
        values[k] = argv[i][length] == '=' ? argv[i] + length + 1 : argv[++i];
    }
    *argc = n_left;
    *nodes = (cli_nodes){.hostfile = values[0], .hosts = values[1], .n = 1};
    nodes->given = values[0] || values[1] || values[2];
    int64_t n = 1;
    if (values[2] && (!xp_parse_i64(values[2], &n) || n < 1 || n > 65536))
        return xp_error(XP_ECONFIG, "--nodes is %s, must be a number from 1", values[2]);
    if (values[0] && values[1])
        return xp_error(XP_ECONFIG, "--hostfile and --host name nodes twice: give one of them");
    nodes->n = (int)n;
    if (values[0] && !values[2])
        XP_TRY(count_hosts(values[0], &nodes->n));
    if (values[1] && !values[2])
        nodes->n = count_list(values[1]);
    return XP_OK;
}
