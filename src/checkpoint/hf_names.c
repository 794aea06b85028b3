/* Tensor names of a Hugging Face folder without what wrappers put around them. */
#include <string.h>
#include "checkpoint/hf.h"

/* Modules that wrap another one, and so stand as a component in every name below them:
 * torch.compile, FSDP, activation checkpointing. */
static const char *const wrappers[] = {"_orig_mod.", "_fsdp_wrapped_module.",
                                       "_checkpoint_wrapped_module."};

/* What stands in front of a language model inside a larger model, a trainer's module, or a model
 * saved without its head; and the plain form. The first that fits counts. */
static const struct {
    const char *from, *to;
} prefixes[] = {
    {"module.", ""},
    {"model.language_model.model.", "model."},
    {"model.language_model.lm_head.", "lm_head."},
    {"model.language_model.", "model."},
    {"language_model.model.", "model."},
    {"language_model.lm_head.", "lm_head."},
    {"model.model.", "model."},
    {"model.lm_head.", "lm_head."},
    {"embed_tokens.", "model.embed_tokens."},
    {"layers.", "model.layers."},
    {"norm.", "model.norm."},
};

static bool starts_with(const char *name, const char *prefix) {
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

static void drop_wrappers(char *name) {
    for (size_t i = 0; i < sizeof wrappers / sizeof wrappers[0]; i++) {
        size_t n = strlen(wrappers[i]);
        for (char *at = name; (at = strstr(at, wrappers[i])) != NULL;)
            if (at == name || at[-1] == '.')
                memmove(at, at + n, strlen(at + n) + 1);
            else
                at += n;
    }
}

bool xp_hf_plain_name(const char *name, size_t room, char *out) {
    size_t n = strlen(name);
    if (n + 8 > room) /* room for "model." in front */
        return false;
    memcpy(out, name, n + 1);
    drop_wrappers(out);
    for (bool again = true; again;) {
        again = false;
        for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0] && !again; i++) {
            size_t from = strlen(prefixes[i].from), to = strlen(prefixes[i].to);
            if (!starts_with(out, prefixes[i].from))
                continue;
            memmove(out + to, out + from, strlen(out + from) + 1);
            memcpy(out, prefixes[i].to, to);
            again = true;
        }
    }
    return strcmp(out, name) != 0;
}
