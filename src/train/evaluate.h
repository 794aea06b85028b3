/** Loss and perplexity of a model over a dataset, and the logits when they are wanted. */
#ifndef XP_TRAIN_EVALUATE_H
#define XP_TRAIN_EVALUATE_H

#include <stdio.h>
#include "data/loader.h"
#include "train/inference.h"

typedef struct xp_evaluate_args {
    xp_inference *inference; /* opened for n_rows rows of the dataset's seq_len */
    const xp_dataset *dataset;
    int64_t n_rows;   /* rows of a batch */
    int64_t max_rows; /* of the dataset; -1 = all of one epoch */
    FILE *logits;     /* fp32 [rows, seq_len, vocab] is appended, or NULL; the model keeps logits */
    void (*progress)(void *context, int64_t rows_done, int64_t rows); /* or NULL */
    void *context;
} xp_evaluate_args;

typedef struct xp_evaluation {
    double loss; /* mean over the counted tokens */
    int64_t n_tokens, n_rows;
} xp_evaluation;

XP_NODISCARD xp_status xp_evaluate(const xp_evaluate_args *args, xp_evaluation *evaluation);

#endif
