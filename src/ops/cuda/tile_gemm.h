/**
 * Tiled GEMM, dense or grouped: what the kernels of grouped_*.cu and tile_gemm.cu share. Everything
 * about the groups is read on the device.
 */
#ifndef XP_OPS_CUDA_TILE_GEMM_H
#define XP_OPS_CUDA_TILE_GEMM_H

#include "device/cuda/cuda_device.h"
#include "ops/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/** The experts' activation in the epilogue of grouped_hopper: forward gives gate_up and h, dgrad of dh
 * replaces gate and up by their gradients and gives h and dp. */
typedef struct xp_tile_silu {
    int64_t width;  /* F; 0: no activation */
    const float *p; /* [m] or NULL: 1 */
    void *gate_up;  /* [m, 2 F] */
    void *h;        /* [m, F] */
    float *dp;      /* dgrad: [XP_SILU_PARTS(F), m], sums over so many columns; or NULL */
} xp_tile_silu;

/**
 * c = alpha * op(a) op(b) (+ c): op(a) is [m, k], op(b) is [k, n]. `trans_a`: a is stored [k, m];
 * `trans_b`: b is stored [n, k]. With offsets, expert e's rows are [offsets[e], offsets[e + 1]):
 * they are the rows of op(a) and c (forward and dgrad, rows_are_m), or the depth k of the GEMM
 * (wgrad); m or k then only bounds them.
 */
typedef struct xp_tile_args {
    const void *a, *b;
    void *c;
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    const int32_t *gather_a, *gather_b; /* stored row of an expert's row; NULL: itself */
    int64_t b_expert, c_expert;         /* elements between two experts' matrices; 0: rows */
    const int32_t *offsets;             /* [n_experts + 1] or NULL: one dense GEMM */
    int n_experts;
    const int32_t *row_range; /* [n_experts, 2] with rows_are_m, or NULL: all rows */
    xp_grouped_rows rows;     /* with row_range: which are computed */
    bool rows_are_m, trans_a, trans_b;
    bool trans_c; /* c is stored [n, m], rows ldc apart: grouped_hopper's wgrad alone */
    bool ab_f32, c_f32;
    float alpha;
    bool acc;
    xp_tile_silu silu; /* grouped_hopper; c is not used with it */
    int spare_sms;     /* SMs that a persistent kernel leaves to others */
    uint32_t *counter; /* grouped_hopper: the next tile, 0 before and after; NULL: static order */
} xp_tile_args;

/** The GEMM that a checked grouped call asks for. */
xp_tile_args xp_cuda_grouped_problem(const xp_grouped_args *args, xp_grouped_kind kind);
/** True when there is nothing to compute or write. */
bool xp_cuda_tile_is_empty(const xp_tile_args *problem);
/** Blocks that cover every tile of tile_m x tile_n, whatever the offsets are. */
int64_t xp_cuda_tile_blocks(const xp_tile_args *problem, int tile_m, int tile_n);

/**
 * The stream's counter for xp_tile_args.counter. Launches of a stream run one after the other, so one
 * counter serves them all, and our own graphs, which are launched on the stream that recorded them. NULL
 * while somebody else captures the stream, whose graph may run beside others of the stream, and for
 * streams past XP_CUDA_COUNTER_STREAMS. The device's first call allocates, unless it is recorded.
 */
xp_status xp_cuda_tile_counter(xp_stream *stream, uint32_t **counter);

/** SIMT fp32 FMA, any type and alignment: fp32 grouped GEMM, and dense GEMM that cuBLASLt has no
 * algorithm for. */
xp_status xp_cuda_tile_run(cudaStream_t stream, const xp_tile_args *problem);
/** bf16 through mma.sync (sm_80 and newer), any alignment. */
xp_status xp_cuda_grouped_mma(cudaStream_t stream, const xp_tile_args *problem);

/** bf16 through wgmma: whether the device and the operands allow it, where the build has the code
 * (xp_cuda_hopper_is_built). */
bool xp_cuda_hopper_fits(const xp_cuda_device *device, const xp_tile_args *problem);
xp_status xp_cuda_grouped_hopper(xp_cuda_device *device, cudaStream_t stream,
                                 const xp_tile_args *problem);

#ifdef __cplusplus
}
#endif
#endif
