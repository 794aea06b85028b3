/**
 * Everything of a rank that occupies device memory for a whole training run, made by one function
 * for real and predicted runs alike.
 */
#ifndef XP_PARALLEL_RUN_H
#define XP_PARALLEL_RUN_H

#include "model/model.h"
#include "parallel/shard.h"

/** What a run does with memory that is left. */
typedef struct xp_run_memory {
    double saved_rows_factor; /* see xp_moe_core_args */
    bool large_head;          /* see xp_model_args */
    bool reuse_for_grads;     /* likewise */
} xp_run_memory;

typedef struct xp_run {
    xp_device *device; /* borrowed */
    xp_arch arch;
    xp_mesh mesh;
    xp_model *model;
    xp_shard *shard;
    xp_stream *stream;
    int64_t local_batch, n_microbatches, global_batch, seq_len;
    int64_t validation_batch, validation_seq_len; /* 0 when validation is off */
    int n_data_ranks;
    bool document_attention; /* a token sees its own document alone */
    xp_run_memory memory;
    xp_dtype dtype, grad_dtype; /* of parameters and activations; of gradients */
    void *library_bytes;        /* null device: what a GPU's libraries would hold */
} xp_run;

/**
 * Reserve all device memory of a run: parameters, gradients, optimizer, activations, EP buffers,
 * workspaces. Called by the trainer on the real device and by the planner on the null device.
 * Collective over `world`.
 *
 * @param world   NULL: one rank, or with `layout` one rank of many, without communicators
 * @param layout  from xp_mesh_layout(), for the null device only; NULL otherwise
 * @return XP_OK; XP_ECONFIG when batch sizes or degrees do not fit; XP_ENOMEM with the tag.
 *         After an error *run holds nothing
 */
XP_NODISCARD xp_status xp_run_reserve(const xp_config *config, xp_device *device, xp_comm *world,
                                      const xp_mesh *layout, xp_run *run);
void xp_run_release(xp_run *run);

/**
 * Microbatches of a step and the global batch, from training.local_batch_size and
 * training.global_batch_size (-1: one microbatch a rank).
 */
XP_NODISCARD xp_status xp_run_batch_sizes(const xp_config *config, int n_data_ranks,
                                          int64_t *n_microbatches, int64_t *global_batch);

/** What training.backend means: "auto" is a GPU when the CUDA backend finds one, else the CPU. */
xp_device_kind xp_run_device_kind(const xp_config *config);

/** What training.attention means. */
typedef enum xp_attention_mode {
    XP_ATTENTION_CAUSAL = 0, /* a token sees all tokens of its row before it */
    XP_ATTENTION_DOCUMENT,   /* those of its own document only */
} xp_attention_mode;
xp_attention_mode xp_run_attention(const xp_config *config);

/** The configuration's transport of expert parallelism (XP_EP_AUTO: the group decides), and what
 * activation_checkpoint.mode and moe.save_dispatched mean. */
xp_ep_transport xp_run_transport(const xp_config *config, const xp_arch *arch);
xp_recompute xp_run_recompute(const char *mode);
xp_save_dispatched xp_run_save_dispatched(const char *name);
/** How load is forced to be even, if it is. */
xp_forced_mode xp_run_forced(const xp_config *config);

/** Whether the expert bias is trained: a MoE model whose load_balance_coeff is not 0. */
bool xp_run_has_balance(const xp_config *config, const xp_arch *arch);

#endif
