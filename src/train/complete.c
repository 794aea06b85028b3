#include "train/complete.h"

#include <stdio.h>
#include <string.h>
#include "data/tokenizer.h"

xp_status xp_config_complete(xp_config_set *set) {
    const xp_config *config = xp_config_get(set);
    const char *flavor = config->model.flavor, *assets = config->model.hf_assets_path;
    if (!flavor || strcmp(flavor, "custom") != 0 || config->model.vocab_size != 0 || !assets)
        return XP_OK;
    xp_tokenizer *tokenizer = NULL;
    xp_status status = xp_tokenizer_load(assets, &tokenizer);
    if (status != XP_OK)
        return xp_error_context(status, "model.vocab_size is not set, and model.hf_assets_path");
    char size[32];
    snprintf(size, sizeof size, "%lld", (long long)xp_tokenizer_vocab_size(tokenizer));
    xp_tokenizer_destroy(tokenizer);
    return xp_config_override(set, "model.vocab_size", size);
}
