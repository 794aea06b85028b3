/** Parts of the doctor in processes of their own, with a time limit: what crashes or hangs there does not end the doctor. */
#ifndef XP_CLI_DOCTOR_CHILD_H
#define XP_CLI_DOCTOR_CHILD_H

#include "doctor.h"

#define DOCTOR_CHILD_LINES 4

typedef struct doctor_child_line {
    doctor_finding state;
    char name[32], text[512];
} doctor_child_line;

typedef struct doctor_child {
    bool ended_well; /* exit code 0 */
    /* The error that it printed, else its last line that is no finding, else how it ended. */
    char last[512];
    int n_lines;
    doctor_child_line lines[DOCTOR_CHILD_LINES]; /* its findings */
} doctor_child;

/** NULL: the child has not come so far. */
const doctor_child_line *doctor_child_find(const doctor_child *child, const char *name);
/** In the child: a finding on a line. */
void doctor_child_tell(doctor_finding state, const char *name, const char *text);

typedef enum doctor_mpirun { NOT_WANTED = 0, NO_PROVIDER, NO_MPIRUN, TRIED } doctor_mpirun;

/** What the children have found. */
typedef struct doctor_tries {
    bool on_gpus; /* what each GPU computes was tried */
    doctor_child gpus;
    doctor_mpirun mpirun;
    int n_ranks;    /* that it started */
    bool with_gpus; /* each with a GPU of its own */
    doctor_child ranks;
} doctor_tries;

/** Run the children. Before this process uses a GPU: others may then not (compute mode exclusive). */
void doctor_run_tries(const doctor *d, doctor_tries *tries);
/** Self tests, also on each GPU, processes under mpirun and their GPUs, the dump folder. */
void doctor_works(doctor *d, const doctor_tries *tries);

/** In a child, doctor --on-gpus: each GPU of this machine computes, a finding on a line. @return exit code */
int doctor_on_gpus(void);
/** In a rank of a launcher: do the ranks reach each other, and their GPUs? @return exit code */
int doctor_as_rank(bool without_gpus);

/* The names of findings that children tell. */
#define DOCTOR_PROCESSES     "processes"
#define DOCTOR_GPU_OPS       "ops (GPU)"
#define DOCTOR_GPU_ATTENTION "attention (GPU)"
#define DOCTOR_GPUS_SUM      "all-reduce (GPUs)"
#define DOCTOR_GPUS_EP       "expert exchange (GPUs)"

#endif
