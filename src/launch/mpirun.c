#include "launch/mpirun.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "launch/message.h"

/* ---- lists of words ---------------------------------------------------------------------- */

typedef struct words {
    char **items; /* NULL-terminated */
    int n;
    bool failed;
} words;

static void add(words *w, const char *word) {
    char **grown = realloc(w->items, ((size_t)w->n + 2) * sizeof *grown);
    char *copy = grown ? strdup(word) : NULL;
    if (grown)
        w->items = grown;
    if (!copy) {
        w->failed = true;
        return;
    }
    w->items[w->n++] = copy;
    w->items[w->n] = NULL;
}

static void add2(words *w, const char *first, const char *second) {
    add(w, first);
    add(w, second);
}

static void add_number(words *w, const char *option, int number) {
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    add2(w, option, text);
}

void xp_words_free(char **items) {
    for (int i = 0; items && items[i]; i++)
        free(items[i]);
    free(items);
}

static char **finish(words *w) {
    if (!w->failed)
        return w->items;
    xp_words_free(w->items);
    return NULL;
}

static bool starts_with(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* ---- which mpirun ------------------------------------------------------------------------ */

int xp_mpirun_parse_version(const char *line) {
    const char *at = strstr(line, "(Open MPI)");
    return at ? atoi(at + strlen("(Open MPI)")) : 0;
}

static bool is_program(const char *path) {
    struct stat s;
    return stat(path, &s) == 0 && S_ISREG(s.st_mode) && access(path, X_OK) == 0;
}

static bool look_up(const char *name, char *path, size_t n_bytes) {
    const char *at = getenv("PATH");
    while (at && *at) {
        const size_t n = strcspn(at, ":");
        if (n > 0 && snprintf(path, n_bytes, "%.*s/%s", (int)n, at, name) < (int)n_bytes &&
            is_program(path))
            return true;
        at += n + (at[n] == ':');
    }
    return false;
}

xp_status xp_mpirun_find(xp_mpirun *m) {
    char command[1200], line[256] = "";
    if (!look_up("mpirun", m->path, sizeof m->path))
        return xp_error(XP_ENOTSUP,
                        "several ranks as processes need Open MPI's mpirun, and there is none in "
                        "PATH: apt-get install openmpi-bin (or run them as threads of one process: "
                        "--job.ranks threads)");
    snprintf(command, sizeof command, "'%s' --version 2>/dev/null", m->path);
    FILE *pipe = popen(command, "re");
    if (pipe) {
        if (!fgets(line, sizeof line, pipe))
            line[0] = '\0';
        pclose(pipe);
    }
    line[strcspn(line, "\n")] = '\0';
    m->major = xp_mpirun_parse_version(line);
    if (m->major < 4)
        return xp_error(XP_ENOTSUP,
                        "%s is not the mpirun of Open MPI 4 or later (it says \"%s\"): apt-get "
                        "install openmpi-bin, or put its folder first in PATH",
                        m->path, line);
    return XP_OK;
}

/* ---- the command ------------------------------------------------------------------------- */

/* Variables that the ranks of other nodes need as well; Open MPI passes its own (OMPI_...). */
static bool goes_to_nodes(const char *variable) {
    static const char *const prefixes[] = {
        "EXPAR_",  "NCCL_", "CUDA_",       "UCX_",     "OPENBLAS_", "LOG_RANK",   "NGPU",
        "CONFIG_", "PATH",  "LD_LIBRARY_", "NO_COLOR", "TMPDIR",    "LD_PRELOAD", "XP_"};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++)
        if (starts_with(variable, prefixes[i]))
            return true;
    return false;
}

static void add_exports(words *w, char **environment) {
    for (char **at = environment; *at; at++) {
        char name[128];
        const size_t n = strcspn(*at, "=");
        if (n >= sizeof name || !goes_to_nodes(*at))
            continue;
        memcpy(name, *at, n);
        name[n] = '\0';
        add2(w, "-x", name);
    }
}

char **xp_mpirun_command(const xp_mpirun *m, const xp_mpirun_job *job, char **environment) {
    words w = {0};
    char map[64];
    add(&w, m->path);
    add_number(&w, "-n", job->n_ranks);
    add2(&w, "--bind-to", "none");
    if (m->major == 4) /* shims outlast failures; this is for daemons of other nodes */
        add(&w, "--enable-recovery");
    if (job->local) {
        snprintf(map, sizeof map, "slot:OVERSUBSCRIBE");
    } else {
        snprintf(map, sizeof map, "ppr:%d:node:OVERSUBSCRIBE", job->ranks_per_node);
        if (job->hostfile)
            add2(&w, "--hostfile", job->hostfile);
        if (job->hosts)
            add2(&w, "--host", job->hosts);
        add_exports(&w, environment);
    }
    add2(&w, "--map-by", map);
    for (int i = 0; job->argv[i]; i++)
        add(&w, job->argv[i]);
    return finish(&w);
}

/* ---- the environment --------------------------------------------------------------------- */

static bool has(const words *w, const char *name) {
    const size_t n = strlen(name);
    for (int i = 0; i < w->n; i++)
        if (strncmp(w->items[i], name, n) == 0 && w->items[i][n] == '=')
            return true;
    return false;
}

/* Unless it is set: what the user says counts. */
static void set(words *w, const char *name, const char *value) {
    char text[1400];
    if (has(w, name))
        return;
    snprintf(text, sizeof text, "%s=%s", name, value);
    add(w, text);
}

/* Of a batch system's step that this process happens to run in (srun --pty bash): mpirun would take
 * them for its own orders. */
static bool belongs_to_step(const char *variable) {
    return starts_with(variable, "SLURM_") || starts_with(variable, "PMI_") ||
           starts_with(variable, "PMIX_") || starts_with(variable, "PBS_");
}

static void set_local(words *w, const xp_mpirun *m, const xp_mpirun_job *job) {
    set(w, "OMPI_MCA_btl", m->major == 4 ? "self,vader,tcp" : "self,sm,tcp");
    set(w, "OMPI_MCA_pml", "ob1");
    /* Containers forbid reading another process's memory. */
    set(w, "OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    set(w, "OMPI_MCA_smsc", "^cma,xpmem,knem");
    if (m->major == 4) {
        set(w, "OMPI_MCA_plm", "isolated");
        set(w, "OMPI_MCA_oob_tcp_if_include", "lo");
    }
    set(w, "OMPI_MCA_btl_tcp_if_include", "lo");
    if (job->folder) {
        set(w, "OMPI_MCA_orte_tmpdir_base", job->folder);
        set(w, "PRTE_MCA_prte_tmpdir_base", job->folder);
        set(w, "PRTE_MCA_prte_top_session_dir", job->folder);
        set(w, XP_LAUNCH_FOLDER, job->folder);
    }
    if (job->memory) {
        set(w, "OMPI_MCA_btl_vader_backing_directory", job->memory);
        set(w, "OMPI_MCA_btl_sm_backing_directory", job->memory);
    }
}

char **xp_mpirun_environment(const xp_mpirun *m, const xp_mpirun_job *job, char **environment) {
    words w = {0};
    for (char **at = environment; *at; at++)
        if (!job->local || !belongs_to_step(*at))
            add(&w, *at);
    set(&w, XP_LAUNCH_SOCKET, job->socket);
    if (geteuid() == 0) {
        set(&w, "OMPI_ALLOW_RUN_AS_ROOT", "1");
        set(&w, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        set(&w, "PRTE_ALLOW_RUN_AS_ROOT", "1");
        set(&w, "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    }
    set(&w, "OMPI_MCA_btl_base_warn_component_unused", "0");
    set(&w, "OMPI_MCA_btl_openib_warn_no_device_params_found", "0");
    set(&w, "OMPI_MCA_mpi_warn_on_fork", "0");
    if (job->local)
        set_local(&w, m, job);
    return finish(&w);
}
