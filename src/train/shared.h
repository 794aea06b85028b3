/** The inside of xp_train_shared, for the trainer's own files. */
#ifndef XP_TRAIN_SHARED_H
#define XP_TRAIN_SHARED_H

#include <stdatomic.h>
#include "train/trainer.h"

struct xp_train_shared {
    const xp_config *config;
    xp_arch arch;
    xp_tokenizer *tokenizer;       /* NULL when the data is token ids */
    xp_dataset *data, *validation; /* validation NULL when it is off */
    atomic_bool stop;
};

/** training.shuffle, or what it is by the kind of data. */
bool xp_train_shuffles(const xp_config *config);

#endif
