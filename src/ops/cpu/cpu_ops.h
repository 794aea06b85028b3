/**
 * The CPU's op entries, family by family.
 *
 * _reference() fills a family with plain single-threaded code: one loop nest an op, what every
 * other table is tested against. _fast() then replaces the entries for which it has something
 * better on this machine: threaded code over the stream's pool, and vector kernels for the given
 * capabilities.
 *
 * Fast entries cut their work into tiles with borders that depend on the sizes only, and every sum
 * has a fixed order, so results are bitwise equal for any number of threads.
 */
#ifndef XP_OPS_CPU_CPU_OPS_H
#define XP_OPS_CPU_CPU_OPS_H

#include "device/cpu/cpu_device.h"
#include "ops/ops.h"

/* `caps` below: XP_CPU_AVX2, XP_CPU_AVX512 of device/cpu/cpu_device.h. */

void xp_cpu_gemm_reference(xp_ops *ops);
void xp_cpu_norm_reference(xp_ops *ops);
void xp_cpu_attention_reference(xp_ops *ops);
void xp_cpu_attention_decode(xp_ops *ops);
void xp_cpu_moe_reference(xp_ops *ops);
/** The plain entries of the two ops one after the other; on a CPU callers use these themselves. */
void xp_cpu_grouped_silu(xp_ops *ops);
void xp_cpu_loss_reference(xp_ops *ops);
void xp_cpu_optim_reference(xp_ops *ops);

/** The one entry of the router's extra losses: off by default and small beside the router's matrix
 * product. */
xp_status xp_cpu_router_losses(xp_stream *stream, const xp_router_losses_args *args);

/** The one entry of the bf16 router's gradients: CPUs train in fp32, through gemm. */
xp_status xp_cpu_router_linear_backward(xp_stream *stream, const xp_router_linear_args *args);

void xp_cpu_gemm_fast(xp_ops *ops, unsigned caps);
void xp_cpu_norm_fast(xp_ops *ops, unsigned caps);
void xp_cpu_attention_fast(xp_ops *ops, unsigned caps);
void xp_cpu_moe_fast(xp_ops *ops, unsigned caps);
void xp_cpu_loss_fast(xp_ops *ops, unsigned caps);
void xp_cpu_optim_fast(xp_ops *ops, unsigned caps);

/** Element i of an fp32 or bf16 array as float, and the way back (rounded to nearest even). For
 * reference code. */
float xp_cpu_load(const void *data, xp_dtype dtype, int64_t i);
void xp_cpu_store(void *data, xp_dtype dtype, int64_t i, float value);

/** XP_EINVAL names the first token whose id is outside the vocabulary. */
xp_status xp_cpu_embed_check_ids(const xp_embed_args *args);
/**
 * Fill args->scratch: [T] token numbers sorted by (id, token), then [V + 1] where the tokens of
 * each id end (they start where those of the id before end). Checks the ids first.
 */
xp_status xp_cpu_embed_sort(const xp_embed_args *args);

#endif
