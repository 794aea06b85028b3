/**
 * The list of all ops. What exists once per op is made from it:
 *
 *   ops.h         the function pointers of xp_ops
 *   ops_check.h   the prototypes of the argument checks
 *   ops.c         the entries that callers get: check the arguments, queue on the stream, record
 *   cuda/         the prototypes of the CUDA entries (cuda_ops.h) and the CUDA table (table.c)
 *   checkop       the list of ops that must have a case
 *
 * Columns of OP(entry, queued, args, check, cuda):
 *
 *   entry    member of xp_ops; also the op's name in traces, errors and checkop
 *   queued   function of ops.c that runs when the stream reaches the op and calls the device's
 *     entry
 *   args     argument struct; the contract stands beside it in the op_*.h header of the family
 *   check    argument check, in ops_check.c: XP_EINVAL with a text that names op and argument
 *   cuda     CUDA entry, in ops/cuda
 *
 * docs/howto/add-an-op.md shows how to add one.
 */
#ifndef XP_OPS_OP_LIST_H
#define XP_OPS_OP_LIST_H

/* clang-format off */
#define XP_OP_LIST(OP) \
    OP(gemm,                    run_gemm,                    xp_gemm_args,                    xp_check_gemm,                    xp_cuda_gemm) \
    OP(grouped_forward,         run_grouped_forward,         xp_grouped_args,                 xp_check_grouped_forward,         xp_cuda_grouped_forward) \
    OP(grouped_dgrad,           run_grouped_dgrad,           xp_grouped_args,                 xp_check_grouped_dgrad,           xp_cuda_grouped_dgrad) \
    OP(grouped_wgrad,           run_grouped_wgrad,           xp_grouped_args,                 xp_check_grouped_wgrad,           xp_cuda_grouped_wgrad) \
    OP(grouped_silu_forward,    run_grouped_silu_forward,    xp_grouped_silu_args,            xp_check_grouped_silu_forward,    xp_cuda_grouped_silu_forward) \
    OP(grouped_silu_backward,   run_grouped_silu_backward,   xp_grouped_silu_args,            xp_check_grouped_silu_backward,   xp_cuda_grouped_silu_backward) \
    OP(embed_forward,           run_embed_forward,           xp_embed_args,                   xp_check_embed_forward,           xp_cuda_embed_forward) \
    OP(embed_backward,          run_embed_backward,          xp_embed_args,                   xp_check_embed_backward,          xp_cuda_embed_backward) \
    OP(rmsnorm_forward,         run_rmsnorm_forward,         xp_rmsnorm_args,                 xp_check_rmsnorm_forward,         xp_cuda_rmsnorm_forward) \
    OP(rmsnorm_apply,           run_rmsnorm_apply,           xp_rmsnorm_apply_args,           xp_check_rmsnorm_apply,           xp_cuda_rmsnorm_apply) \
    OP(rmsnorm_backward,        run_rmsnorm_backward,        xp_rmsnorm_backward_args,        xp_check_rmsnorm_backward,        xp_cuda_rmsnorm_backward) \
    OP(qknorm_rope_forward,     run_qknorm_rope_forward,     xp_qknorm_rope_args,             xp_check_qknorm_rope_forward,     xp_cuda_qknorm_rope_forward) \
    OP(qknorm_rope_backward,    run_qknorm_rope_backward,    xp_qknorm_rope_backward_args,    xp_check_qknorm_rope_backward,    xp_cuda_qknorm_rope_backward) \
    OP(attention_forward,       run_attention_forward,       xp_attention_args,               xp_check_attention_forward,       xp_cuda_attention_forward) \
    OP(attention_backward,      run_attention_backward,      xp_attention_backward_args,      xp_check_attention_backward,      xp_cuda_attention_backward) \
    OP(attention_decode,        run_attention_decode,        xp_attention_decode_args,        xp_check_attention_decode,        xp_cuda_attention_decode) \
    OP(router_forward,          run_router_forward,          xp_router_args,                  xp_check_router_forward,          xp_cuda_router_forward) \
    OP(router_backward,         run_router_backward,         xp_router_backward_args,         xp_check_router_backward,         xp_cuda_router_backward) \
    OP(router_linear_backward,  run_router_linear_backward,  xp_router_linear_args,           xp_check_router_linear_backward,  xp_cuda_router_linear_backward) \
    OP(router_losses,           run_router_losses,           xp_router_losses_args,           xp_check_router_losses,           xp_cuda_router_losses) \
    OP(histogram,               run_histogram,               xp_histogram_args,               xp_check_histogram,               xp_cuda_histogram) \
    OP(silu_gate_prob_forward,  run_silu_gate_prob_forward,  xp_silu_gate_prob_args,          xp_check_silu_gate_prob_forward,  xp_cuda_silu_gate_prob_forward) \
    OP(silu_gate_prob_backward, run_silu_gate_prob_backward, xp_silu_gate_prob_backward_args, xp_check_silu_gate_prob_backward, xp_cuda_silu_gate_prob_backward) \
    OP(cross_entropy,           run_cross_entropy,           xp_cross_entropy_args,           xp_check_cross_entropy,           xp_cuda_cross_entropy) \
    OP(adamw,                   run_adamw,                   xp_adamw_args,                   xp_check_adamw,                   xp_cuda_adamw) \
    OP(remainder_split,         run_remainder_split,         xp_remainder_args,               xp_check_remainder,               xp_cuda_remainder_split) \
    OP(remainder_join,          run_remainder_join,          xp_remainder_args,               xp_check_remainder,               xp_cuda_remainder_join) \
    OP(clip_scale,              run_clip_scale,              xp_clip_scale_args,              xp_check_clip_scale,              xp_cuda_clip_scale) \
    OP(sum_squares,             run_sum_squares,             xp_sum_squares_args,             xp_check_sum_squares,             xp_cuda_sum_squares) \
    OP(sum_squares_parts,       run_sum_squares_parts,       xp_sum_squares_parts_args,       xp_check_sum_squares_parts,       xp_cuda_sum_squares_parts) \
    OP(axpy,                    run_axpy,                    xp_axpy_args,                    xp_check_axpy,                    xp_cuda_axpy) \
    OP(sum,                     run_sum,                     xp_sum_args,                     xp_check_sum,                     xp_cuda_sum) \
    OP(draw,                    run_draw,                    xp_draw_args,                    xp_check_draw,                    xp_cuda_draw)
/* clang-format on */

#endif
