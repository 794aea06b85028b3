/** The model's insides: reserve.c makes it, layer.c and head.c compute, pass.c runs them in order,
 * decoder.c feeds tokens. */
#ifndef XP_MODEL_MODEL_INTERNAL_H
#define XP_MODEL_MODEL_INTERNAL_H

#include "model/acts.h"
#include "model/model.h"
#include "model/moe_core.h"

/** One parameter and its gradient in the flat buffers; both NULL when the model does not have it.
 */
typedef struct xp_weight {
    void *data, *grad;
} xp_weight;

typedef struct xp_layer {
    xp_weight input_norm, wqkv, q_norm, k_norm, wo, post_norm; /* see xp_param_table_find_in() */
    xp_weight w13, w2;                                         /* dense FFN */
    xp_moe_weights moe;
    xp_moe_saved saved;
    int dense_group, expert_group; /* -1: none */
} xp_layer;

/** Memory that layers and phases use one after the other. */
typedef struct xp_model_work {
    int32_t *tokens, *targets, *positions, *doc_start; /* [T] */
    float *loss_scale;                                 /* [1] */
    double *losses;                                    /* [XP_MODEL_N_LOSSES] */
    float *token_loss;                                 /* [T] */
    float *rope;                                       /* [S, C] */
    void *normed;                                      /* [T, D] rows that enter a projection */
    void *branch;         /* [T, D] what attention or the FFN adds to the residual stream */
    void *d_residual;     /* [T, D] */
    void *d_normed;       /* [T, D] */
    void *q, *k;          /* [T, H C], [T, G C] after norm and RoPE */
    void *dq, *dk, *dqkv; /* [T, H C], [T, G C], [T, (H + 2G) C] */
    void *d_attention;    /* [T, H C] */
    void *final_input;    /* [T, D] */
    float *final_rstd;    /* [T] */
    void *h;              /* [T, F] dense FFN */
    void *logits;         /* [chunk, V] */
    float *all_logits;    /* [T, V] with keep_logits */
    float *head_grad;     /* [V, D] sum over chunks of a bf16 gradient; NULL without large_head */
    float *norm_scratch;  /* of the two norms' backward */
    int32_t *embed_scratch;
    void *attention_scratch;
    size_t attention_scratch_bytes;
} xp_model_work;

/** Staging memory: what copies to and from the device read and write on the host. */
#define XP_MODEL_SCALE_SLOTS 8
typedef struct xp_model_staged {
    double losses[XP_MODEL_N_LOSSES];
    float loss_scales[XP_MODEL_SCALE_SLOTS]; /* of the passes whose copy may still be under way */
} xp_model_staged;

struct xp_model {
    xp_model_args args; /* args.arch points to arch */
    xp_arch arch;
    const xp_ops *ops;
    xp_device *device;
    xp_param_table *table;
    void *params, *grads;
    void *own_grads;                      /* grads where they have memory of their own, else NULL */
    float *bias;                          /* [n_layers, E] */
    int64_t *counts;                      /* [n_layers, E] */
    xp_weight embed, final_norm, lm_head; /* a tied head is the embedding */
    int embed_group, head_group;
    xp_layer *layers;
    xp_acts acts;
    xp_moe_core *core; /* NULL in a dense model */
    void *activations, *workspace, *balance;
    xp_model_work work;
    xp_model_staged *staged;
    xp_event *scale_copied[XP_MODEL_SCALE_SLOTS]; /* the stream has read staged->loss_scales[i] */
    struct xp_pass_graphs *graphs;                /* NULL: passes run as they are */
    xp_side *side_stream; /* of training passes; NULL: they use one stream */
    xp_side *side;        /* side_stream in a pass that uses it, else NULL */
    int64_t n_passes;
    int64_t chunk_rows; /* of the head */
    /* the pass that runs, or ran last */
    int64_t n_rows, seq_len, n_tokens;
    float loss_scale;
    bool training, accumulate, has_doc_start, has_logits;
    int64_t n_valid;
};

/** What a layer's forward does where attention's keys are: in the batch (NULL) or in a decoder's
 * cache. */
typedef struct xp_attend {
    xp_status (*attend)(void *context, int layer, const void *q, const void *k, const void *v,
                        int64_t ldv, void *out, xp_stream *stream);
    void *context;
    const float *rope; /* [n_positions, C] */
} xp_attend;

static inline char *xp_offset(const void *data, int64_t n_elements, xp_dtype dtype) {
    return (char *)data + n_elements * (int64_t)xp_dtype_bytes(dtype);
}

/** head_dim^-0.5. */
float xp_attention_scale(const xp_arch *arch);

/** pass_layers.c: behind the batch, up to what the head reads; all of a training pass. */
XP_NODISCARD xp_status xp_pass_forward(xp_model *model, const xp_model_hooks *hooks,
                                       xp_stream *stream);
XP_NODISCARD xp_status xp_pass_run(xp_model *model, const xp_model_hooks *hooks, xp_stream *stream);

/** Residual stream in and out: normed input from (input, branch), branch out. `layer`'s activations
 * are filled. */
XP_NODISCARD xp_status xp_layer_forward(xp_model *model, int layer, const xp_attend *attend,
                                        xp_stream *stream);
/** Gradient of the layer's output in work.d_residual -> of its input. Calls hooks.group_ready. */
XP_NODISCARD xp_status xp_layer_backward(xp_model *model, int layer, const xp_model_hooks *hooks,
                                         xp_stream *stream);

/** The weight gradients that are left: between the two, what they hide can be started. Nothing but the
 * layer below's xp_ffn_backward_begin() and what reads work.d_residual alone may stand there. */
XP_NODISCARD xp_status xp_layer_backward_end(xp_model *model, int layer,
                                             const xp_model_hooks *hooks, xp_stream *stream);

/** ffn.c: work.normed -> work.branch; and back: work.d_residual -> work.d_normed. */
XP_NODISCARD xp_status xp_ffn_forward(xp_model *model, int layer, xp_stream *stream);
XP_NODISCARD xp_status xp_ffn_backward(xp_model *model, int layer, xp_stream *stream);
/** Whether a weight gradient of the last xp_ffn_backward() is left to xp_ffn_backward_end(). */
bool xp_ffn_is_deferred(const xp_model *model);
XP_NODISCARD xp_status xp_ffn_backward_end(xp_model *model, xp_stream *stream);
/** Once work.d_residual of the layer is queued: what is queued from here on runs beside the first
 * exchange of xp_ffn_backward(), where the exchange has a stream of its own. */
XP_NODISCARD xp_status xp_ffn_backward_begin(xp_model *model, int layer, xp_stream *stream);
/** Fill what the recompute mode has not saved; work.normed holds the FFN's input. */
XP_NODISCARD xp_status xp_ffn_recompute(xp_model *model, int layer, xp_stream *stream);

/** Final norm, head and loss in chunks of rows; when training also their gradients, into
 * work.d_residual. */
XP_NODISCARD xp_status xp_head_pass(xp_model *model, xp_stream *stream);
/** Final norm, then fp32 logits of `n` tokens from token `first`. */
XP_NODISCARD xp_status xp_head_norm(xp_model *model, xp_stream *stream);
XP_NODISCARD xp_status xp_head_logits(xp_model *model, int64_t first, int64_t n, float *logits,
                                      xp_stream *stream);

/** c[m, n] (+)= a[m, k] b[n, k]^T; c[m, n] = a[m, k] b[k, n]; and c[m, n] of grad_dtype (+)= a[k,
 * m]^T b[k, n]. */
XP_NODISCARD xp_status xp_linear_forward(xp_model *model, int64_t m, int64_t n, int64_t k,
                                         const void *a, const void *b, void *c, xp_stream *stream);
XP_NODISCARD xp_status xp_linear_dgrad(xp_model *model, int64_t m, int64_t n, int64_t k,
                                       const void *a, const void *b, void *c, xp_stream *stream);
XP_NODISCARD xp_status xp_linear_wgrad(xp_model *model, int64_t m, int64_t n, int64_t k,
                                       const void *a, const void *b, void *c, bool acc,
                                       xp_stream *stream);
/** dx = d_residual + gradient through the norm; the weight's gradient too. s, rstd from the
 * forward. */
XP_NODISCARD xp_status xp_norm_backward(xp_model *model, const void *s, const float *rstd,
                                        const xp_weight *weight, const void *dy,
                                        const void *d_residual, void *dx, xp_stream *stream);
XP_NODISCARD xp_status xp_norm_apply(xp_model *model, const void *s, const float *rstd,
                                     const xp_weight *weight, void *y, xp_stream *stream);
/** sum = x + residual (residual NULL: x itself, sum unused), y = norm(sum). */
XP_NODISCARD xp_status xp_norm_forward(xp_model *model, const void *x, const void *residual,
                                       void *sum, const xp_weight *weight, void *y, float *rstd,
                                       xp_stream *stream);

#endif
