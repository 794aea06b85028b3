/**
 * Op tables: every computation of the model is a function pointer in a table.
 *
 * xp_ops_get() gives a device's table. Its entries check the arguments, queue the op on the stream
 * and record it; the device's own entries behind them are the plain reference, replaced by faster
 * ones where the machine can run them. op_list.h lists the ops; the contract of each stands beside
 * its argument struct:
 *
 *   op_gemm.h        gemm, grouped_forward, grouped_dgrad, grouped_wgrad, grouped_silu_*
 *   op_norm.h        embed_*, rmsnorm_*, qknorm_rope_*
 *   op_attention.h   attention_forward, attention_backward, attention_decode
 *   op_moe.h         router_*, histogram, silu_gate_prob_*
 *   op_optim.h       cross_entropy, adamw, remainder_*, clip_scale, sum_squares, axpy, sum, draw
 *
 * True of all ops:
 *   - Pointers are device memory of the stream's device, 16-byte aligned, borrowed until the op has
 *     run. Argument structs are copied.
 *   - Rows are contiguous unless a leading dimension is given. Outputs do not overlap inputs unless
 *     the contract says so.
 *   - A size of 0 is legal and does nothing; pointers may then be NULL.
 *   - A call returns XP_OK once the op is queued, or XP_EINVAL with nothing queued.
 *   - Sums are fp32 or better, whatever the row type, in a fixed order: results are deterministic.
 *   - "acc" adds to what the output holds instead of replacing it.
 *
 * Letters: T tokens, N rows, D width, H query heads, G key/value heads, C head_dim, E experts,
 * K experts of a token, F expert width, V vocabulary, S tokens of a sequence.
 */
#ifndef XP_OPS_OPS_H
#define XP_OPS_OPS_H

#include "ops/op_attention.h"
#include "ops/op_gemm.h"
#include "ops/op_list.h"
#include "ops/op_moe.h"
#include "ops/op_norm.h"
#include "ops/op_optim.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct xp_ops {
    const char *name; /* "cpu avx512", "cpu reference", "cuda" */
#define XP_OPS_ENTRY(entry, queued, args_type, check, cuda)                                        \
    xp_status (*entry)(xp_stream * stream, const args_type *args);
    XP_OP_LIST(XP_OPS_ENTRY)
#undef XP_OPS_ENTRY
    /**
     * Bytes of scratch that attention_forward (backward) needs for these sizes on this device. Of
     * the pointers only one counts: whether doc_start is NULL.
     */
    size_t (*attention_scratch)(const xp_device *device, const xp_attention_args *args,
                                bool backward);
    /**
     * Whether grouped_silu_* of these sizes are the faster way on this device: one kernel instead of
     * two.
     */
    bool (*fuses_silu)(const xp_device *device, const xp_silu_sizes *sizes);
} xp_ops;

/**
 * The device's table. The null device gets one whose entries check their arguments and do nothing.
 * Static storage; capabilities are those of the device (xp_device_args.caps).
 * @return XP_OK; XP_ENOTSUP: this build has no ops for the device
 */
XP_NODISCARD xp_status xp_ops_get(const xp_device *device, const xp_ops **ops);
/**
 * Bytes that libraries behind the table keep on a device of this kind whatever the sizes (null
 * devices: of the kind they stand for); accounted under "workspace".
 */
size_t xp_ops_library_bytes(const xp_device *device);
/** Open what the entries would open at first use, so that no step allocates. Nothing on a CPU. */
XP_NODISCARD xp_status xp_ops_prepare(xp_device *device);
/** The plain CPU entries, without checks: what every other table is tested against. */
const xp_ops *xp_ops_reference(void);

#ifdef __cplusplus
}
#endif
#endif
