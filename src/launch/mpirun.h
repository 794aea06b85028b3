/** The mpirun of this machine: which one it is, and how ranks are started with it. Open MPI 4.1 and
 * 5; what the user has set in the environment (OMPI_MCA_..., PRTE_MCA_...) stays. */
#ifndef XP_LAUNCH_MPIRUN_H
#define XP_LAUNCH_MPIRUN_H

#include <stdbool.h>
#include "expar/status.h"

typedef struct xp_mpirun {
    char path[1024];
    int major; /* of Open MPI */
} xp_mpirun;

/** @return XP_OK; XP_ENOTSUP: there is none, or it is another MPI's: the error says what to install
 */
XP_NODISCARD xp_status xp_mpirun_find(xp_mpirun *mpirun);
/** The major version in what `mpirun --version` prints; 0: not Open MPI. */
int xp_mpirun_parse_version(const char *line);

typedef struct xp_mpirun_job {
    int n_ranks;
    bool local;           /* all on this machine: no other node is asked, no allocation used */
    const char *hostfile; /* or NULL */
    const char *hosts;    /* "a:8,b:8", or NULL */
    int ranks_per_node;   /* not local */
    char **argv;          /* of a rank, argv[0] the program's path */
    const char *socket;   /* name, for the shims */
    const char *folder;   /* of this launch, or NULL */
    const char *memory;   /* likewise in /dev/shm, or NULL */
} xp_mpirun_job;

/** The environment for mpirun, made from `environment`. NULL-terminated, one block for each; free
 * with xp_words_free(). NULL: no memory. */
char **xp_mpirun_environment(const xp_mpirun *mpirun, const xp_mpirun_job *job, char **environment);
/** The command line, likewise. @param environment  mpirun's: what of it goes to other nodes */
char **xp_mpirun_command(const xp_mpirun *mpirun, const xp_mpirun_job *job, char **environment);
void xp_words_free(char **words);

#endif
