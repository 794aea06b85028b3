/** What `expar doctor` looks at, and how it says what it found. */
#ifndef XP_CLI_DOCTOR_H
#define XP_CLI_DOCTOR_H

#include <stdbool.h>
#include "core/text.h"

/** MISSING: training here does without. BROKEN: training here needs it, or the user asked for it. */
typedef enum doctor_finding { FOUND = 0, MISSING, BROKEN } doctor_finding;

typedef struct doctor {
    bool json, skip_mpirun, skip_gpus;
    int64_t n_ranks;    /* that mpirun starts; 0: the GPUs, at least 2 */
    const char *folder; /* job.dump_folder */
    const char *section;
    int n_broken;
    int n_gpus;  /* usable, after doctor_gpu_libraries() */
    xp_text out; /* JSON findings */
} doctor;

void doctor_begin_section(doctor *d, const char *name);
/** One line: found, or not and why, and then what to do about it (NULL: nothing to do). */
void doctor_report(doctor *d, doctor_finding state, const char *name, const char *advice,
                   const char *format, ...) XP_PRINTF(5, 6);
/** A line below the last one, of the text output alone. */
void doctor_add_line(const doctor *d, const char *format, ...) XP_PRINTF(2, 3);

/** The driver, the CUDA backend and the libraries it opens. Counts the GPUs. */
void doctor_gpu_libraries(doctor *d);
/** The GPUs, and between several of them NVLink, peer access and the rate of copies. */
void doctor_gpus(doctor *d);
/** Cores, memory, shared memory, limits. */
void doctor_machine(doctor *d);

#endif
