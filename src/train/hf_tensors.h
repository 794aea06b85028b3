/** Inside src/train: where a model's parameters stand in a Hugging Face folder. */
#ifndef XP_TRAIN_HF_TENSORS_H
#define XP_TRAIN_HF_TENSORS_H

#include "train/hf_io.h"

/**
 * The elements of one slice in the file: contiguous from `first` on (stride 0), or one expert of a fused
 * tensor that is stored transposed: [rows, n_columns] is element [column * stride + offset + row] of the
 * block of block_elements that starts at `first`.
 */
typedef struct xp_hf_source_view {
    const xp_st_tensor *tensor;
    int64_t index; /* in the reader */
    int64_t first;
    int64_t stride, offset, n_columns, block_elements;
} xp_hf_source_view;

/**
 * Find a slice: under its own name, or inside mlp.experts.gate_up_proj and down_proj, in which
 * transformers 5 keeps a layer's experts as [E, 2F, D] and [E, D, F] (also transposed, [E, D, 2F] and
 * [E, F, D], as other models do).
 * @return XP_OK; XP_EFORMAT: it is missing (with a hint where one can be given) or of another shape
 */
XP_NODISCARD xp_status xp_hf_locate(const xp_hf_reader *reader, const xp_arch *arch,
                                    const char *folder, const xp_param_slice *slice,
                                    xp_hf_source_view *view);

/** Warn about tensors of the folder that no parameter of the whole model uses. */
XP_NODISCARD xp_status xp_hf_report_unused(const xp_hf_load_args *args, const xp_hf_reader *reader);

/** "model.layers.3.mlp.gate.expert_bias". */
void xp_hf_bias_name(int64_t layer, char out[64]);

#endif
