/**
 * Qwen3 and Qwen3-MoE: forward and backward of one microbatch on one rank.
 *
 * The model sees an EP group and op tables, never the data-parallel world: the trainer hands it
 * hooks. All memory comes from the device before the first step (xp_model_reserve); forward and
 * backward allocate nothing and never wait for the host on a GPU.
 */
#ifndef XP_MODEL_MODEL_H
#define XP_MODEL_MODEL_H

#include "model/moe_core.h"
#include "model/params.h"

typedef enum xp_recompute {
    XP_RECOMPUTE_NONE = 0,
    XP_RECOMPUTE_SELECTIVE,
    XP_RECOMPUTE_FULL
} xp_recompute;

/** Keep the rows a rank received, or dispatch them again in backward. */
typedef enum xp_save_dispatched {
    XP_SAVE_DISPATCHED_AUTO = 0, /* kept when nothing is recomputed */
    XP_SAVE_DISPATCHED_YES,
    XP_SAVE_DISPATCHED_NO,
} xp_save_dispatched;

/** Whether received rows are kept for the backward pass, else dispatched again. */
static inline bool xp_saves_recv(xp_recompute recompute, xp_save_dispatched save) {
    return save == XP_SAVE_DISPATCHED_AUTO ? recompute == XP_RECOMPUTE_NONE
                                           : save == XP_SAVE_DISPATCHED_YES;
}

typedef struct xp_model_args {
    const xp_arch *arch;     /* copied */
    int64_t n_rows, seq_len; /* B, S of a microbatch, at most */
    xp_dtype dtype;          /* of parameters and activations */
    xp_dtype grad_dtype;     /* of parameter gradients: fp32, or bf16 without accumulation */
    bool document_attention;
    xp_recompute recompute;
    xp_forced_mode forced_balance;
    xp_overlap overlap; /* this and the next two: see xp_moe_core_args */
    double overlap_split;
    int overlap_sms;
    double aux_loss_coeff, z_loss_coeff;
    bool inference;   /* forward only: no gradients, no saved activations */
    bool keep_logits; /* with inference: reserve [T, V] fp32, so that a batch may ask for logits */
    xp_save_dispatched save_dispatched; /* rows received from other ranks, for backward */
    double saved_rows_factor;           /* experts over several ranks: see xp_moe_core_args */
    bool large_head; /* GPU: logits in twice as large chunks, and a bf16 gradient of the head is
                         summed over chunks in fp32: [V, D] fp32 more */
    bool reuse_for_grads; /* gradients lie on expert rows that backward has read, where they can
                             (spent_rows.h): they last until the next pass begins, which may not accumulate */
    xp_ep_config ep;  /* transport, capacity_factor, num_sms; sizes are filled in by the model */
    xp_comm *ep_comm; /* the EP group's ranks; NULL = 1. Borrowed */
    int ep_size, ep_rank; /* null device only, with ep_comm NULL: reserve as rank ep_rank of
                             ep_size; ep_size 0 = as ep_comm says */
    bool shares_gpus;     /* null device: ranks share GPUs */
    xp_device *device;    /* borrowed */
} xp_model_args;

/** Called by forward_backward; any may be NULL. A non-XP_OK result ends the pass with it. */
typedef struct xp_model_hooks {
    void *context;
    xp_status (*before_layer)(void *context, int layer, bool backward);
    xp_status (*after_layer)(void *context, int layer, bool backward);
    /** This group's parameters are read by what is queued from here on. Forward order; a tied head's
     * are the embedding's. */
    xp_status (*group_needed)(void *context, int group);
    /** This group's gradient is complete for this microbatch (queued on the compute stream).
     * Backward order, but the embedding's stands before the lowest layer's dense one. */
    xp_status (*group_ready)(void *context, int group);
} xp_model_hooks;

typedef struct xp_model xp_model;

/** Reserves everything under the tags "params", "grads", "activations", "ep", "workspace".
 * Collective over ep_comm. */
XP_NODISCARD xp_status xp_model_create(const xp_model_args *args, xp_model **model);
void xp_model_destroy(xp_model *model);
const xp_param_table *xp_model_params(const xp_model *model);
/** The flat buffers: [n_elements] of dtype, and of grad_dtype (NULL with inference). Device memory.
 */
void *xp_model_param_data(const xp_model *model);
void *xp_model_grad_data(const xp_model *model);
/** Whether reuse_for_grads was asked for, and could be done. */
bool xp_model_reuses_for_grads(const xp_model *model);
/** [n_layers, E] fp32 device memory; all zero until balanced. NULL in a dense model. */
float *xp_model_expert_bias(const xp_model *model);
/** [n_layers, E] assignments of all experts by this rank's tokens since the last reset (training passes,
 * once also under recomputation). Device memory. */
int64_t *xp_model_expert_counts(const xp_model *model);

typedef struct xp_model_batch {
    int64_t n_rows, seq_len;
    /** Host memory, borrowed until the pass has run; doc_start may be NULL. Memory from
     * xp_host_alloc() lets a GPU copy it without waiting. */
    const int32_t *tokens, *targets, *positions, *doc_start;
    /** 1 / valid tokens of the whole global batch (all ranks, all microbatches). */
    float loss_scale;
    bool accumulate;  /* gradients += (second and later microbatches) */
    bool want_logits; /* forward only: keep fp32 logits [T, V] for xp_model_logits (inference
                         models) */
} xp_model_batch;

typedef struct xp_model_loss {
    double loss_sum; /* sum over valid tokens of the cross-entropy, this rank, this microbatch */
    int64_t n_valid;
    double aux_loss,
        z_loss; /* already times their coefficients and loss_scale's share; 0 when off */
} xp_model_loss;

XP_NODISCARD xp_status xp_model_forward_backward(xp_model *model, const xp_model_batch *batch,
                                                 const xp_model_hooks *hooks, xp_stream *stream);
/** No gradients, no counting for the balance. */
XP_NODISCARD xp_status xp_model_forward(xp_model *model, const xp_model_batch *batch,
                                        xp_stream *stream);
/**
 * From now on training passes are recorded as device graphs, once a kind (rows, tokens, accumulation) after
 * two passes of it, and launched again: the same ops on the same memory, the same bits.
 * @return XP_OK; XP_ENOTSUP with the reason: passes run as they did
 */
XP_NODISCARD xp_status xp_model_use_graphs(xp_model *model);
/** Passes that were launched from a recording; why a recording failed and passes run without, or NULL. */
int64_t xp_model_n_graph_passes(const xp_model *model);
const char *xp_model_graph_failure(const xp_model *model);
/** What xp_model_queue_loss() reads: sums over this rank's tokens of this microbatch, as in
 * xp_model_loss. */
enum { XP_MODEL_LOSS = 0, XP_MODEL_AUX, XP_MODEL_Z, XP_MODEL_N_LOSSES };
/** Queue the copy of the last pass's losses; `sums` (from xp_host_alloc()) holds them once the
 * stream has been waited for. */
XP_NODISCARD xp_status xp_model_queue_loss(xp_model *model, xp_stream *stream,
                                           double sums[XP_MODEL_N_LOSSES]);
/** Waits for the stream and reads the losses of the last pass. */
XP_NODISCARD xp_status xp_model_read_loss(xp_model *model, xp_stream *stream, xp_model_loss *loss);
/** [T, V] fp32, after a pass with want_logits; NULL otherwise. */
const float *xp_model_logits(const xp_model *model);

/** Abort flags that the device can read, set when expert parallelism failed in work queued before;
 * NULL where the host knows at once. */
void xp_model_abort_flags(const xp_model *model, const int32_t *flags[2]);
/** EP numbers of the last step for the metrics. */
XP_NODISCARD xp_status xp_model_ep_stats(const xp_model *model, xp_ep_stats *stats);
/** Since the last reset: see xp_moe_recomputed. 0 in a dense model. */
xp_moe_recomputed xp_model_recomputed(const xp_model *model);
/** Both of them. */
void xp_model_reset_stats(xp_model *model);

/**
 * Text generation: a decoder with a KV cache over the same parameters, one sequence, plain. It uses
 * the model's buffers, so a pass of the model must not run at the same time; with an EP group every
 * rank feeds the same number of tokens.
 */
typedef struct xp_decoder xp_decoder;
/** @param max_tokens  room of the cache, reserved under the tag "decoder" on the model's device */
XP_NODISCARD xp_status xp_decoder_create(xp_model *model, int64_t max_tokens, xp_decoder **decoder);
void xp_decoder_destroy(xp_decoder *decoder);
/**
 * Append n >= 1 tokens.
 * @param logits [V] fp32 host memory for the token after the fed ones
 * @return XP_OK; XP_EINVAL when the cache has no room or an id is not in the vocabulary: nothing
 * was fed
 */
XP_NODISCARD xp_status xp_decoder_feed(xp_decoder *decoder, const int32_t *tokens, int64_t n,
                                       float *logits);
/** Forget all tokens. */
void xp_decoder_reset(xp_decoder *decoder);

#endif
