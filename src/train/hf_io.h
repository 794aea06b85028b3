/** Hugging Face weights into a run, and checkpoints out to Hugging Face folders. */
#ifndef XP_TRAIN_HF_IO_H
#define XP_TRAIN_HF_IO_H

#include <limits.h>
#include "checkpoint/hf.h"
#include "checkpoint/state.h"
#include "model/params.h"

/** Name of the file beside model.safetensors that holds a trained expert bias. */
#define XP_HF_EXTRA_FILE "expar_extra.safetensors"

typedef struct xp_hf_load_args {
    const char *folder;
    const xp_arch *arch;
    const xp_param_table *table;
    void *params; /* the model's flat buffer, device memory */
    xp_dtype dtype;
    xp_stream *stream;
    float *bias; /* [n_layers, E] host memory; NULL in a dense model */
    /** Gets one line about each kind of tensor in the folder that nothing uses; NULL: nobody listens. */
    void (*warn)(void *context, const char *text);
    void *warn_context;
} xp_hf_load_args;
/**
 * Fill a model's flat parameters from a Hugging Face folder, and the expert bias from
 * expar_extra.safetensors when it is there (left alone otherwise).
 * Experts may be stored one by one or fused, see xp_hf_locate().
 * @return XP_OK; XP_EFORMAT naming the tensor that is missing, has another shape, or holds NaN or Inf
 */
XP_NODISCARD xp_status xp_hf_load_params(const xp_hf_load_args *args);

typedef struct xp_hf_from_ckpt_args {
    const xp_ckpt *ckpt;
    const xp_arch *arch;   /* of the checkpoint */
    const char *folder;    /* to write */
    xp_dtype dtype;        /* XP_F32 or XP_BF16 */
    int64_t max_positions; /* trained with; config.json may say more, see xp_arch_hf_args */
    const char *assets;    /* the run's hf_assets_path: its config.json, generation_config.json and
                                     tokenizer, each when it is there; NULL = none */
    const char *tokenizer_folder; /* must hold a tokenizer; NULL = that of assets */
    bool fused_experts;           /* gate_up_proj and down_proj of all experts as one tensor each */
    void (*warn)(void *context, const char *text); /* about files that are not copied, or NULL */
    void *warn_context;
} xp_hf_from_ckpt_args;
/**
 * Write a training checkpoint as a Hugging Face folder; one process does it alone. An expert bias
 * that is not all zero goes into expar_extra.safetensors.
 * @param[out] has_bias  whether it did; may be NULL
 */
XP_NODISCARD xp_status xp_hf_export_ckpt(const xp_hf_from_ckpt_args *args, bool *has_bias);

/** Where the folder that a run took its tokenizer from stands now: as the manifest says, else below a folder above the
 * checkpoint; "" when it is nowhere. */
XP_NODISCARD xp_status xp_hf_find_assets(const xp_ckpt *ckpt, char out[PATH_MAX]);

#endif
