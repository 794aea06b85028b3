/**
 * One MoE layer's computation: router, plan, dispatch, experts, combine, and back. The core holds
 * what the layers of a model share (EP group, streams, workspaces, the arena of saved expert rows);
 * a layer passes its weights and what it has saved. xp_moe (expar/moe.h) is one core with one
 * layer; a model is one core with many.
 *
 * A microbatch goes through in jobs: one a (part, round). There are two parts with
 * XP_OVERLAP_HALVES, else one; rounds as many as the plan says. A job's dispatch and combine run on
 * the exchange stream, its experts on the compute stream. With XP_OVERLAP_HALVES the next job's
 * dispatch is queued before this job's combine, so that it runs beside this job's experts. Where the
 * layer has no exchange stream, both are the same.
 *
 * The forward pass of a job, with an exchange stream (time runs down). Own rows are those of this
 * rank's own tokens: no rank sends them. On transports other than p2p both GEMMs of w2 are one, and the
 * whole combine runs on the compute stream.
 *
 *   compute stream                        exchange stream
 *   router, plan
 *   w13 of own rows                       dispatch: x -> recv
 *   w13 of the other ranks' rows
 *   activation
 *   w2 of the other ranks' rows
 *   w2 of own rows                        combine send: rows
 *   combine recv: rows -> out
 *
 * Later rounds, which only an unusual routing needs, run on the compute stream alone.
 *
 * The backward pass of a job, with an exchange stream:
 *
 *   compute stream                        exchange stream
 *   wgrad of w2 of the layer above,       combine backward: d_out -> d_recv
 *   wgrad of its attention
 *   [recompute of gate_up]                [dispatch again: x -> recv]
 *   dgrad of w2, activation, dgrad of w13
 *   wgrad of w13 [and of w2]              dispatch backward: rows, dp -> dx, d_topk_weight
 *   router backward
 *
 * The order of sums is the same with and without it.
 *
 * When one rank holds all experts, rows are not dispatched at all: the gather list points into the
 * tokens themselves.
 */
#ifndef XP_MODEL_MOE_CORE_H
#define XP_MODEL_MOE_CORE_H

#include "core/arena.h"
#include "expar/ep.h"
#include "model/side.h"
#include "model/spent_rows.h"
#include "ops/ops.h"

#define XP_MOE_MAX_PARTS 2

/** What the exchange of rows runs beside, where there are several ranks. */
typedef enum xp_overlap {
    XP_OVERLAP_NONE = 0, /* nothing: one stream */
    XP_OVERLAP_GEMMS,    /* forward GEMMs of own rows, backward weight gradients */
    XP_OVERLAP_HALVES,   /* the experts of the other half of the microbatch */
} xp_overlap;

/** What parallelism.expert_parallel_overlap means; < 0: auto, 0: false, 1: true. GEMMs hide an
 * exchange where both can run at the same time: not on a CPU, whose cores do both, and not where
 * ranks share GPUs, whose hosts make the barriers. */
xp_overlap xp_overlap_choose(int64_t asked, int n_ranks, bool on_gpu, bool shares_gpus);

typedef struct xp_moe_core_args {
    int64_t max_tokens; /* T at most */
    int64_t dim, moe_dim;
    int n_experts, top_k;
    int n_layers; /* that save rows for backward */
    xp_score_func score_func;
    bool route_norm;
    double route_scale;
    xp_dtype dtype, grad_dtype;
    bool inference;
    bool save_gate_up,
        save_recv; /* for backward; else it runs the first GEMM or the dispatch again */
    /* save_gate_up, several ranks: rows kept, over the balanced load of all layers; 0: as many as
     * the layers' capacity. */
    double saved_rows_factor;
    const xp_spent_rows
        *grads; /* gradients that may lie on spent rows; NULL: none. Borrowed by create */
    xp_forced_mode forced;
    xp_overlap overlap;
    double overlap_split; /* XP_OVERLAP_HALVES: share of the first half */
    int overlap_sms;      /* XP_OVERLAP_GEMMS on a GPU: SMs of the exchange; 0: chosen */
    double aux_coeff, z_coeff;
    xp_ep_config ep;  /* transport, capacity_factor, num_sms, timeout_s */
    xp_comm *comm;    /* NULL: one rank. Borrowed */
    int n_ranks;      /* of the EP group; on the null device there need be no communicator */
    bool shares_gpus; /* null device: ranks share GPUs, their collectives take no memory there */
    xp_device *device;
} xp_moe_core_args;

typedef struct xp_moe_weights {
    const void *gate, *w13, *w2; /* [E, D], [L, 2F, D], [L, D, F] */
    void *d_gate, *d_w13, *d_w2; /* of grad_dtype; NULL with inference */
    const float *bias;           /* [E] or NULL */
} xp_moe_weights;

/** What one part of a layer left for its backward. */
typedef struct xp_moe_part {
    xp_ep_plan *plan;
    int64_t n_rounds;  /* to run: those of the routing, or max_rounds when only the device knows */
    bool rounds_known; /* n_rounds are those of the routing */
    bool saves_all;    /* gate_up has the rows of all rounds, else of round 0 */
    void *gate_up, *recv; /* in the arenas; recv of round 0. NULL: not saved */
} xp_moe_part;

/** Rounds (of a layer's part) whose first GEMM ran again in backward although save_gate_up asks for
 * its rows, because the arena had no room. Rounds that only the device knows are not counted. */
typedef struct xp_moe_recomputed {
    int64_t n_rounds;
    int64_t n_overflow; /* of them, in parts whose rows exceed the capacity: several rounds */
} xp_moe_recomputed;

/** A layer's saved state: device arrays from the caller, the parts from xp_moe_core_layer_create().
 */
typedef struct xp_moe_saved {
    float *scores;      /* [T, E] */
    int32_t *topk_idx;  /* [T, K] */
    float *topk_weight; /* [T, K] */
    float *router_lse;  /* [T]; NULL without z-loss */
    float *aux_density; /* [T / S, E]; NULL without auxiliary loss */
    xp_moe_part parts[XP_MOE_MAX_PARTS];
} xp_moe_saved;

/** One pass of one layer over T tokens. */
typedef struct xp_moe_pass {
    int64_t n_tokens, seq_len; /* seq_len: of the auxiliary loss; divides n_tokens */
    const xp_moe_weights *weights;
    xp_moe_saved *saved;
    const void *x;     /* [T, D] */
    void *out;         /* forward: [T, D] */
    const void *d_out; /* backward: [T, D] */
    void *dx;          /* backward: [T, D], written; not d_out, not x */
    const int32_t
        *targets; /* [T] device; which tokens the extra losses count. NULL when both are off */
    float loss_scale;
    double *losses;  /* [2] device, added to; NULL: not wanted */
    int64_t *counts; /* [E] device, added to; NULL: not counted */
    bool accumulate; /* weight gradients += */
    bool defer;      /* backward: the gradient of w2 may wait for xp_moe_core_backward_end() */
    xp_side *side;   /* where weight gradients and counts go; NULL: one stream. See
                        xp_moe_core_has_one_job(); x need be there on the side stream alone in backward */
} xp_moe_pass;

typedef struct xp_moe_core xp_moe_core;

/** Collective over comm. Reserves under the tags "ep", "activations" and "workspace". */
XP_NODISCARD xp_status xp_moe_core_create(const xp_moe_core_args *args, xp_moe_core **core);
void xp_moe_core_destroy(xp_moe_core *core);
/** The plans of a layer; collective in order. Set the pointers of device arrays before or after. */
XP_NODISCARD xp_status xp_moe_core_layer_create(xp_moe_core *core, xp_moe_saved *saved);
void xp_moe_core_layer_destroy(xp_moe_saved *saved);

/** The memory of args.grads on spent rows; NULL where rows and gradients do not fit so. */
void *xp_moe_core_grads(const xp_moe_core *core);

/** Forget all saved rows: before the first layer's forward. */
void xp_moe_core_begin(xp_moe_core *core);
/** Collective. */
XP_NODISCARD xp_status xp_moe_core_forward(xp_moe_core *core, const xp_moe_pass *pass,
                                           xp_stream *stream);
/** Fill scores, assignments and the extra losses' gradients again from x; the plan stays. For layers that
 * did not save them. */
XP_NODISCARD xp_status xp_moe_core_reroute(xp_moe_core *core, const xp_moe_pass *pass,
                                           xp_stream *stream);
/**
 * The first exchange of the backward pass, as soon as pass.d_out is queued: what is queued on the
 * stream from here on runs beside it. pass.x need not be there yet. Collective, optional; the layer's
 * xp_moe_core_backward() must follow before another layer's calls. Does nothing where the exchange
 * has no stream of its own.
 */
XP_NODISCARD xp_status xp_moe_core_backward_begin(xp_moe_core *core, const xp_moe_pass *pass,
                                                  xp_stream *stream);
/** Collective. After it the layer's saved rows are spent. With pass.defer, xp_moe_core_is_deferred()
 * says whether the gradient of w2 is still to be computed. */
XP_NODISCARD xp_status xp_moe_core_backward(xp_moe_core *core, const xp_moe_pass *pass,
                                            xp_stream *stream);

bool xp_moe_core_is_deferred(const xp_moe_core *core);
/** Queue what backward has deferred, if it has. What it reads stays until then; the next layer's
 * xp_moe_core_backward_begin() may come before, its xp_moe_core_backward() may not. */
XP_NODISCARD xp_status xp_moe_core_backward_end(xp_moe_core *core, xp_stream *stream);

/** Since create, or added to what was set last. */
xp_moe_recomputed xp_moe_core_recomputed(const xp_moe_core *core);
void xp_moe_core_set_recomputed(xp_moe_core *core, xp_moe_recomputed recomputed);

/** Whether a pass is one job without an exchange whose rows are saved: a condition of pass.side. */
bool xp_moe_core_has_one_job(const xp_moe_core *core);

/** NULL on the null device. */
xp_ep_group *xp_moe_core_group(const xp_moe_core *core);

#endif
