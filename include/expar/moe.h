/**
 * A whole mixture-of-experts layer: router, expert-parallel dispatch, SwiGLU experts, combine, and
 * the backward of all of it. For people who build their own model; expar's own model runs on the
 * same code.
 *
 *   logits = x gate^T (fp32);  scores = softmax or sigmoid
 *   a token's experts = the K largest of scores + bias
 *   weight = their scores (normalised to sum 1 with route_norm), times route_scale
 *   out[t] = sum over token t's experts e of w2[e] (silu(w1[e] x[t]) * (w3[e] x[t]) * weight)
 *
 * Letters: T tokens of this rank, D = dim, F = moe_dim, E experts, K = top_k, R ranks, L = E / R
 * experts of this rank. No token is dropped, whatever the load: rows beyond the reserved ones are
 * processed in further rounds. Results are deterministic. All memory is reserved by
 * xp_moe_create(). One forward may be outstanding: backward belongs to the last forward.
 *
 * See examples/custom_moe.c for a small model trained with it, docs/explanation/numerics.md for every formula.
 */
#ifndef EXPAR_MOE_H
#define EXPAR_MOE_H

#include "expar/ep.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct xp_moe xp_moe;

/** Zero every field first: 0, NULL and false are the defaults given here. */
typedef struct xp_moe_args {
    int num_experts;        /* E, a multiple of the number of ranks */
    int top_k;              /* K <= E */
    int64_t dim, moe_dim;   /* D, F */
    int64_t max_tokens;     /* largest T of any rank in any call */
    int64_t seq_len;        /* tokens of a sequence (auxiliary loss); divides every T. 0: T */
    const char *score_func; /* "softmax" (default) or "sigmoid" */
    bool route_norm;        /* weights of a token's assignments sum to route_scale */
    double route_scale;     /* default 1 */
    bool use_deepep; /* peer-to-peer dispatch; false: all-to-all of packed rows. The same bits */
    double capacity_factor; /* rows reserved relative to a balanced load; default 2 */
    double aux_loss_coeff;  /* Switch-style balance loss per sequence; default 0 = off */
    double z_loss_coeff;    /* mean squared log-sum-exp of the logits; default 0 = off */
    const char
        *force_load_balance; /* NULL; "modulo", "spread": ignore the scores, for benchmarks */
    bool overlap;        /* two halves of the tokens: one is dispatched while the other computes */
    bool recompute;      /* save less for backward: run the first expert GEMM and dispatch again */
    bool inference;      /* no backward: no gradients, nothing saved */
    xp_dtype dtype;      /* of x, out and the weights: XP_F32 (default) or XP_BF16 */
    xp_dtype grad_dtype; /* of weight gradients: XP_F32 (default), or XP_BF16 with bf16 weights */
    int num_sms;         /* GPU blocks for dispatch and combine; 0 = choose */
    double timeout_s;    /* of every wait for a peer; 0 = the communicator's */
} xp_moe_args;

/**
 * Collective over comm. Reserves everything under the tags "params", "grads", "activations", "ep"
 * and "workspace". Weights start as zeros: xp_moe_init_params(), or copy into xp_moe_param().
 *
 * @param comm   the EP group's ranks, borrowed, must outlive the layer. NULL: one rank
 * @param device borrowed
 * @return XP_OK; XP_EINVAL naming the argument that does not fit; XP_ENOMEM; XP_ENOTSUP; XP_ECOMM.
 * *moe is set on XP_OK only
 */
XP_API XP_NODISCARD xp_status xp_moe_create(const xp_moe_args *args, xp_comm *comm,
                                            xp_device *device, xp_moe **moe);
/** NULL is accepted. */
XP_API void xp_moe_destroy(xp_moe *moe);

typedef enum xp_moe_weight {
    XP_MOE_GATE = 0, /* [E, D] router; the same on every rank: sum its gradient over the ranks */
    XP_MOE_W13,      /* [L, 2F, D] this rank's experts: w1 (gate) rows, then w3 (up) rows */
    XP_MOE_W2,       /* [L, D, F] */
    XP_MOE_N_WEIGHTS
} xp_moe_weight;

/** A view of the weight, device memory; experts [rank * L, (rank + 1) * L) of the layer. */
XP_API xp_tensor xp_moe_param(const xp_moe *moe, xp_moe_weight which);
/** Its gradient, of grad_dtype; data is NULL with inference. */
XP_API xp_tensor xp_moe_grad(const xp_moe *moe, xp_moe_weight which);
/**
 * N(0, std) for the gate and w13, N(0, out_std) for w2, drawn by (seed, tensor, expert, element):
 * the same layer for every number of ranks. Waits until they are there.
 */
XP_API XP_NODISCARD xp_status xp_moe_init_params(xp_moe *moe, uint64_t seed, float std,
                                                 float out_std);

/**
 * out = layer(x). Collective: every rank calls, also with T = 0.
 *
 * @param x   [T, D] of dtype; must stay unchanged until backward has run
 * @param[out] out  [T, D]; must not overlap x
 * @param training  count the expert assignments for xp_moe_update_bias()
 * @return XP_OK once queued; XP_EINVAL: nothing done; XP_ECOMM: destroy the layer
 */
XP_API XP_NODISCARD xp_status xp_moe_forward(xp_moe *moe, const xp_tensor *x, xp_tensor *out,
                                             bool training, xp_stream *stream);
/**
 * Gradients of the last forward. Collective.
 *
 * @param x      the same as in forward
 * @param d_out  [T, D] gradient that reaches the layer's output
 * @param[out] dx  [T, D], through experts and router, extra losses included; must not overlap x or
 *                 d_out
 * @param accumulate  add to the weights' gradients instead of replacing them
 */
XP_API XP_NODISCARD xp_status xp_moe_backward(xp_moe *moe, const xp_tensor *x,
                                              const xp_tensor *d_out, xp_tensor *dx,
                                              bool accumulate, xp_stream *stream);
/**
 * Auxiliary and z-loss of the last forward, times their coefficients, averaged over this rank's
 * sequences and tokens; their gradients are in backward already. Waits for the stream.
 */
XP_API XP_NODISCARD xp_status xp_moe_read_losses(xp_moe *moe, xp_stream *stream, double *aux_loss,
                                                 double *z_loss);

/**
 * [E] int64 device memory: how often this rank's tokens were assigned to each expert in training
 * forwards since the last update.
 */
XP_API int64_t *xp_moe_expert_counts(const xp_moe *moe);
/** [E] fp32 device memory, added to the scores for the selection; zeros at first. Save it too. */
XP_API float *xp_moe_expert_bias(const xp_moe *moe);
/**
 * Balance without a loss: d = coeff * sign(mean - count), d -= mean(d), bias += d; then the counts
 * are set to zero. Call once a step. Collective when comm is given; waits for the stream.
 * @param comm  all ranks that see different data; NULL: this rank's counts alone
 */
XP_API XP_NODISCARD xp_status xp_moe_update_bias(xp_moe *moe, double coeff, xp_comm *comm,
                                                 xp_stream *stream);

/** The layer's EP group, for its statistics and sizes. */
XP_API xp_ep_group *xp_moe_ep_group(const xp_moe *moe);

#ifdef __cplusplus
}
#endif
#endif
