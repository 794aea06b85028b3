/**
 * The parameter table: the one list of a model's tensors. Allocation, initialisation, sharding,
 * checkpoints, export and the memory plan all read it; nothing else lists tensors.
 *
 * Parameters live in one flat buffer, in this order: groups one after the other, a group's
 * parameters one after the other. A group is what becomes ready together in backward and is
 * reduced, updated and gathered together: the embedding, each layer's dense part, each layer's
 * experts, the final norm and head. Dense groups are replicated over all ranks; expert groups hold
 * this rank's L = E / R experts.
 *
 * Hugging Face tensors are contiguous slices of parameters (gate_proj and up_proj of an expert are
 * the two halves of its w13; q, k and v are row blocks of wqkv).
 */
#ifndef XP_MODEL_PARAMS_H
#define XP_MODEL_PARAMS_H

#include "expar/device.h"
#include "model/arch.h"

typedef struct xp_param {
    char name[64]; /* "layers.3.experts.w13" */
    int n_dims;
    int64_t shape[3]; /* of this rank */
    int64_t offset;   /* first element in the flat buffer */
    int64_t n_elements;
    int group;
    float init_std; /* 0: filled with ones */
    int n_slices;   /* Hugging Face tensors in it */
} xp_param;

typedef struct xp_param_group {
    char name[64]; /* "layers.3.experts", for messages and metrics */
    int layer;     /* -1: embedding; n_layers: final norm and head */
    bool is_expert;
    int64_t offset,
        n_elements; /* in the flat buffer; a group starts at a multiple of XP_GROUP_ALIGN */
    int first_param, n_params;
} xp_param_group;

#define XP_GROUP_ALIGN 64 /* elements */
#define XP_PARAM_ALIGN 64 /* elements: 16-byte aligned operands whatever the type */

typedef struct xp_param_slice {
    char hf_name[128]; /* "model.layers.3.mlp.experts.17.gate_proj.weight" */
    int n_dims;
    int64_t shape[2];
    int64_t offset, n_elements; /* in the flat buffer, contiguous */
} xp_param_slice;

typedef struct xp_param_table xp_param_table;

/** @param ep_rank, ep_size  which experts this rank holds */
XP_NODISCARD xp_status xp_param_table_create(const xp_arch *arch, int ep_rank, int ep_size,
                                             xp_param_table **table);
void xp_param_table_destroy(xp_param_table *table);
int xp_param_table_n_params(const xp_param_table *table);
const xp_param *xp_param_table_param(const xp_param_table *table, int i);
int xp_param_table_n_groups(const xp_param_table *table);
const xp_param_group *xp_param_table_group(const xp_param_table *table, int i);
/** Elements of the flat buffer (with the groups' alignment). */
int64_t xp_param_table_n_elements(const xp_param_table *table);
/**
 * Index by name, -1 when absent. Names: "embed", "final_norm", "lm_head" (untied), and in layer N,
 * after "layers.N.": input_norm [D]  wqkv [(H+2G)C, D]  q_norm [C]  k_norm [C]  wo [D, HC]
 * post_norm [D] dense: w13 [2F, D]  w2 [D, F]     MoE: gate [E, D]  experts.w13 [L, 2F, D]
 * experts.w2 [L, D, F]
 */
int xp_param_table_find(const xp_param_table *table, const char *name);
/** Index by layer and the name behind "layers.N."; layer < 0: of a parameter outside the layers. */
int xp_param_table_find_in(const xp_param_table *table, int64_t layer, const char *name);
/** The i-th Hugging Face tensor of a parameter, 0 <= i < n_slices. */
void xp_param_table_slice(const xp_param_table *table, int param, int i, xp_param_slice *slice);

/**
 * Queue: initial values of elements [first, first + n) of the flat buffer into `out` (fp32 memory
 * of the stream's device): N(0, std) or ones, drawn per Hugging Face tensor by (seed, name,
 * element), so the same bits whatever the rank count and the device; padding is zero.
 */
XP_NODISCARD xp_status xp_param_table_draw(const xp_param_table *table, uint64_t seed,
                                           int64_t first, int64_t n, xp_stream *stream, float *out);

#endif
