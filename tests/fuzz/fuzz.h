/** One mutator for every reader of foreign bytes: `fuzz TARGET` mutates a corpus of small valid files and hands each
 * to the target. What a target must do is the same everywhere: accept or refuse with a message, and stay inside its memory
 * (AddressSanitizer and UBSan watch in the asan build). */
#ifndef XP_TESTS_FUZZ_H
#define XP_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/text.h"
#include "data/tokenizer.h"
#include "expar/status.h"

#define FUZZ_MAX_BYTES 16384

typedef enum fuzz_verdict { FUZZ_ACCEPTED = 0, FUZZ_REFUSED, FUZZ_WRONG } fuzz_verdict;

typedef struct fuzz_state {
    uint64_t seed, n_draws;
    const char *folder;      /* scratch of this process */
    char path[256];          /* where the input lies */
    xp_tokenizer *tokenizer; /* of the targets that need one */
    char why[256];           /* of FUZZ_WRONG */
} fuzz_state;

typedef struct fuzz_target {
    const char *name, *file;  /* the input's file name, for readers that look at it */
    const char *const *words; /* NULL-terminated: what blind bytes would rarely make */
    xp_status (*set_up)(fuzz_state *state); /* or NULL */
    /** The input before it is written: checksums made to fit, so that what stands behind them is reached. Or NULL. */
    size_t (*repair)(fuzz_state *state, unsigned char *data, size_t n);
    fuzz_verdict (*run)(fuzz_state *state, const unsigned char *data, size_t n);
} fuzz_target;

/** The i-th target, NULL past the last. */
const fuzz_target *fuzz_config_target(int i);
const fuzz_target *fuzz_data_target(int i);
const fuzz_target *fuzz_checkpoint_target(int i);
const fuzz_target *fuzz_report_target(int i);

uint64_t fuzz_draw(fuzz_state *state, uint64_t n);
/** A refusal needs one of the codes that a file can be refused with, and words. */
fuzz_verdict fuzz_judge(fuzz_state *state, xp_status status);
fuzz_verdict fuzz_wrong(fuzz_state *state, const char *why);

/** Change data in place. @param other another input of the corpus, to cross with @return the new size */
size_t fuzz_mutate(fuzz_state *state, const fuzz_target *target, unsigned char *data, size_t n,
                   const unsigned char *other, size_t n_other);

#endif
