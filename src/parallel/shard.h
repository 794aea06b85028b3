/**
 * Sharded optimizer state over the flat buffers of the model.
 *
 * Each parameter group is cut into N equal chunks (rounded up to XP_GROUP_ALIGN elements; the tail
 * is padding), N = ranks of the group's shard communicator; rank i owns chunk i: first and second moment
 * and, where parameters are bf16, what is missing of their fp32 masters: 16 bits and the sign of the second
 * moment (core/remainder.h). Nothing but this file's calls may change a rank's own parameters then. Gradients of
 * a group are reduce-scattered (then all-reduced over replicas) when backward says the group is
 * ready, on a stream of their own while backward goes on; after the update parameters are
 * all-gathered there, while the next forward goes on. With one rank nothing is copied and nothing is sent.
 *
 * The gradients are sums over ranks: loss_scale must hold the mean's divisor already.
 */
#ifndef XP_PARALLEL_SHARD_H
#define XP_PARALLEL_SHARD_H

#include "model/params.h"
#include "parallel/mesh.h"

/** Gradients are reduced beside GEMMs that fill the GPU: a collective that waits for another rank keeps
 * its SMs from them. Fewer do not keep up with the backward pass (docs/performance-log.md). */
#define XP_SHARD_BESIDE_CTAS 16

typedef struct xp_shard_args {
    const xp_param_table *table; /* borrowed */
    const xp_mesh *mesh; /* borrowed; a layout without communicators only reserves (null device) */
    xp_device *device;
    void *params, *grads; /* the model's flat buffers */
    xp_dtype param_dtype, grad_dtype;
    int64_t bucket_bytes; /* neighbouring small groups are reduced together up to this size */
} xp_shard_args;

typedef struct xp_shard xp_shard;

/** Reserves under the tags "optimizer" and "staging". Collective over the mesh's world. */
XP_NODISCARD xp_status xp_shard_create(const xp_shard_args *args, xp_shard **shard);
void xp_shard_destroy(xp_shard *shard);

/** The flat parameters are the masters (after a weights-only load); zero moments. */
XP_NODISCARD xp_status xp_shard_adopt_params(xp_shard *shard, xp_stream *stream);
/** Draw the masters' initial values, every rank its own chunks, and gather the parameters. After
 * xp_shard_adopt_params(), when moments are zero; they stay so. */
XP_NODISCARD xp_status xp_shard_draw_params(xp_shard *shard, uint64_t seed, xp_stream *stream);
/** For xp_model_hooks.group_ready in the last microbatch: starts the reduction. */
XP_NODISCARD xp_status xp_shard_group_ready(xp_shard *shard, int group, xp_stream *stream);
/** False where one rank owns everything: nothing is reduced or gathered, and nobody need say when groups
 * are ready or needed. */
bool xp_shard_has_peers(const xp_shard *shard);
/** Wait (on the stream) for all reductions of this step. */
XP_NODISCARD xp_status xp_shard_finish_reduce(xp_shard *shard, xp_stream *stream);

/**
 * Global L2 norm over all ranks, each parameter counted once; fp64. Waits for the result.
 * @return XP_OK; XP_ENUMERIC on every rank, naming the first parameter (in table order) whose
 *         gradient is not finite; XP_ECOMM
 */
XP_NODISCARD xp_status xp_shard_grad_norm(xp_shard *shard, xp_stream *stream, double *norm);
/** The same in two halves: queue it; read it once the stream has been waited for, or an event
 * recorded right behind it. */
XP_NODISCARD xp_status xp_shard_queue_norm(xp_shard *shard, xp_stream *stream);
XP_NODISCARD xp_status xp_shard_read_norm(xp_shard *shard, xp_stream *stream, double *norm);
/**
 * The first parameter with a value that is not finite: for messages after a loss that is not.
 * Collective, waits. @param[out] name NULL when all are finite; owned by the parameter table
 */
XP_NODISCARD xp_status xp_shard_find_bad_param(xp_shard *shard, xp_stream *stream,
                                               const char **name);

typedef struct xp_adam_step {
    float lr, beta1, beta2, eps, weight_decay;
    bool decay_matrices_only; /* parameters with one dimension (norms) do not decay */
    int64_t step;             /* 1-based */
    double max_norm;          /* gradients with a larger norm are scaled down to it; 0: never */
    const int32_t *stop[2];   /* see xp_clip_scale_args */
} xp_adam_step;
/**
 * Update this rank's chunks, and start to gather the parameters of every rank on the worker stream: before
 * a group's parameters are read, xp_shard_group_needed(). After xp_shard_queue_norm(), whose result
 * only the device looks at: nothing changes when the norm is not finite.
 */
XP_NODISCARD xp_status xp_shard_update(xp_shard *shard, const xp_adam_step *step,
                                       xp_stream *stream);
/** For xp_model_hooks.group_needed: later work of the stream finds the group's parameters gathered. */
XP_NODISCARD xp_status xp_shard_group_needed(xp_shard *shard, int group, xp_stream *stream);
/** The same for all groups. Does nothing when nothing is on its way. */
XP_NODISCARD xp_status xp_shard_finish_gather(xp_shard *shard, xp_stream *stream);

/**
 * This rank's chunk of a group: [n] elements from flat offset `first`; parameters, m, v, reduced
 * gradient in device memory.
 */
typedef struct xp_shard_chunk {
    int64_t first, n;    /* n excludes padding; may be 0 */
    void *param;         /* fp32 masters where remainder is NULL */
    uint16_t *remainder; /* bf16 parameters: see core/remainder.h */
    float *m, *v;        /* with a remainder the sign of v is the master's */
    void *grad;
} xp_shard_chunk;
xp_shard_chunk xp_shard_get_chunk(const xp_shard *shard, int group);
/** Whether this rank writes its chunks into checkpoints: false on replicas other than the first. */
bool xp_shard_is_writer(const xp_shard *shard);
/** All-gather the parameters (after a checkpoint was loaded into the chunks). */
XP_NODISCARD xp_status xp_shard_publish_params(xp_shard *shard, xp_stream *stream);

#endif
