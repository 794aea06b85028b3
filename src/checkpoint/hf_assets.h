/** Inside src/checkpoint: the files of an export that are neither weights nor config.json. */
#ifndef XP_CHECKPOINT_HF_ASSETS_H
#define XP_CHECKPOINT_HF_ASSETS_H

#include "checkpoint/hf.h"

/**
 * Copy the tokenizer's files and generation_config.json into `target`. A symbolic link that leads out of the folder is
 * not followed, but for the links of a Hugging Face cache into its own blobs: a warning names it.
 * @return XP_OK; XP_ENOENT when tokenizer_folder is given and has no tokenizer.json
 */
XP_NODISCARD xp_status xp_hf_copy_assets(const xp_hf_export_args *args, const char *target);

#endif
