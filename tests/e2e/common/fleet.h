/**
 * Training ranks as threads of a test: each opens the product's own trainer over its own
 * configuration, and the test steps them from outside and looks at what they hold.
 */
#ifndef XP_TESTS_E2E_FLEET_H
#define XP_TESTS_E2E_FLEET_H

#include "tensor_set.h"
#include "train/run_state.h"

#define FLEET_MAX_STEPS 64

/** What one rank does with its trainer, which has started. An error ends all ranks. */
typedef xp_status (*fleet_body)(xp_trainer *t, void *context);

typedef struct fleet_args {
    int n_ranks;
    const char *options; /* "--training.steps 4 --model.dim 32 ...": words between single spaces */
    fleet_body body;     /* on every rank, each in its thread */
    void *context;
    bool not_started; /* the body gets a trainer before xp_trainer_start() */
} fleet_args;

/** @return the status of the first rank that failed, with its error as the last error. */
XP_NODISCARD xp_status fleet_run(const fleet_args *args);

/** The last reduced gradients of this rank's chunks, by Hugging Face name. A device on the CPU. */
XP_NODISCARD xp_status fleet_collect_gradients(const xp_trainer *t, tensor_set *set);
/** What a checkpoint would hold of this rank: parameters, moments, expert bias. */
XP_NODISCARD xp_status fleet_collect_state(const xp_trainer *t, tensor_set *set);

/** A whole training as a record. */
typedef struct fleet_record {
    int n_steps;
    double losses[FLEET_MAX_STEPS], norms[FLEET_MAX_STEPS];
    tensor_set gradients; /* of the first step */
    tensor_set state;     /* after the last */
} fleet_record;

/** Train `n_steps` and record; the test fails with the error when it does not work. */
void fleet_train(int n_ranks, const char *options, int n_steps, fleet_record *record);
void fleet_record_free(fleet_record *record);

/** A folder under /tmp with tokens.bin in it (`n` ids below `vocab`, learnable). Caller frees and
 * removes. NULL: it cannot be made. */
char *fleet_make_data(long n, unsigned vocab);
/** The largest relative difference of the losses of steps [first, last], 1-based. */
double fleet_loss_distance(const fleet_record *a, const fleet_record *b, int first, int last);

#endif
