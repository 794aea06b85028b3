/** Hugging Face folders: model.safetensors or sharded files with model.safetensors.index.json; in
 * and out. */
#ifndef XP_CHECKPOINT_HF_H
#define XP_CHECKPOINT_HF_H

#include <stdbool.h>
#include "checkpoint/safetensors.h"

typedef struct xp_hf_reader xp_hf_reader;
/**
 * Opens and validates every file of the folder; model.safetensors goes before an index, as in
 * transformers. Names in the index are checked, never used as paths outside the folder: every entry
 * must be in the file it names.
 * @param folder  or the path of one .safetensors file
 */
XP_NODISCARD xp_status xp_hf_open(const char *folder, xp_hf_reader **reader);
void xp_hf_close(xp_hf_reader *reader);
/** By its plain name (xp_hf_plain_name); NULL when absent. */
const xp_st_tensor *xp_hf_find(const xp_hf_reader *reader, const char *name);
int64_t xp_hf_n_tensors(const xp_hf_reader *reader);
const xp_st_tensor *xp_hf_tensor_at(const xp_hf_reader *reader,
                                    int64_t i); /* sorted by plain name */
/** Place of a tensor in that order, -1 when absent. */
int64_t xp_hf_index(const xp_hf_reader *reader, const char *name);
const char *xp_hf_name_at(const xp_hf_reader *reader, int64_t i); /* the plain name */

/**
 * A tensor's name without what torch.compile, FSDP, DDP and activation checkpointing put into it, and as
 * transformers' plain Qwen3ForCausalLM calls it: "model.language_model.layers.0.x" and "layers.0.x" are
 * "model.layers.0.x".
 * @return whether `out` differs from `name`; false, and out unset, when `room` is too small
 */
bool xp_hf_plain_name(const char *name, size_t room, char *out);

/** One tensor to export; `fill` writes elements [first, first + n) as fp32 into out. */
typedef struct xp_hf_source {
    const char *name;
    int n_dims;
    int64_t shape[3];
    xp_status (*fill)(void *context, int64_t first, int64_t n, float *out);
    void *context;
} xp_hf_source;

/** Whether a file of this name may stand in an export beside config.json and the weights. */
bool xp_hf_is_asset(const char *name);
typedef struct xp_hf_export_args {
    const char *folder;      /* its parents are made when missing; it appears when it is complete */
    xp_dtype dtype;          /* XP_F32 or XP_BF16; extra tensors are XP_F32 always */
    int64_t max_shard_bytes; /* 0 = 5 GB as transformers */
    const char *config_json; /* written as config.json */
    const char *generation_json;  /* written as generation_config.json where source_folder has none;
                                    NULL = none */
    const char *tokenizer_folder; /* tokenizer.json and the files that belong to it are copied; NULL
                                     = none */
    const char *source_folder; /* generation_config.json of the model that the run started from is
                                     copied when it is there; NULL = none */
    void (*warn)(void *context, const char *text); /* about files that are not copied, or NULL */
    void *warn_context;
    const xp_hf_source *tensors;
    int64_t n_tensors;
    const xp_hf_source *extra; /* goes into a second file, expar_extra.safetensors (expert bias);
                                  n_extra may be 0 */
    int64_t n_extra;
} xp_hf_export_args;
/**
 * Stream the tensors into shards in the given order; memory stays small. An earlier export of that
 * name is replaced as a whole; a folder that holds anything else is refused (XP_EINVAL) and left
 * alone, as it is after any error.
 */
XP_NODISCARD xp_status xp_hf_export(const xp_hf_export_args *args);

#endif
