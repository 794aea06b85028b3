/** What a configuration leaves to files that it names. */
#ifndef XP_TRAIN_COMPLETE_H
#define XP_TRAIN_COMPLETE_H

#include "config/config.h"

/**
 * A custom model without model.vocab_size gets the size of the tokenizer in model.hf_assets_path.
 * @return XP_OK, also when nothing is missing or no tokenizer is named; an error of the tokenizer's file
 */
XP_NODISCARD xp_status xp_config_complete(xp_config_set *set);

#endif
