/** Rows by bulk copies (sm_90 and newer), for rows and addresses that are multiples of 16 bytes. */
#ifndef XP_EP_P2P_CUDA_ROWS_BULK_H
#define XP_EP_P2P_CUDA_ROWS_BULK_H

#include "ep/p2p/cuda/kernels.h"

/** A block: warps with a ring of stages each, one block an SM. */
enum {
    XP_EP_BULK_WARPS = 8,
    XP_EP_BULK_STAGES = 7,
    XP_EP_BULK_STAGE_BYTES = 4096,
    XP_EP_BULK_SHARED_BYTES = XP_EP_BULK_WARPS * XP_EP_BULK_STAGES * XP_EP_BULK_STAGE_BYTES,
};

/** Blocks for n_rows rows at most. */
static inline unsigned bulk_blocks(const xp_ep_cuda_rows *rows, int64_t n_rows) {
    const int64_t n = (n_rows + XP_EP_BULK_WARPS - 1) / XP_EP_BULK_WARPS;
    return (unsigned)(n < 1 ? 1 : n < rows->n_blocks ? n : rows->n_blocks);
}

/** Load a kernel and allow it its shared memory. *usable becomes false where the GPU runs code that was
 * compiled for an older one. */
static inline xp_status load_bulk_kernel(const void *kernel, bool *usable) {
    struct cudaFuncAttributes attributes;
    XP_TRY(xp_cuda_check(cudaFuncGetAttributes(&attributes, kernel),
                         "loading the kernels of expert parallelism"));
    if (attributes.ptxVersion < 90)
        *usable = false;
    else
        XP_TRY(
            xp_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               XP_EP_BULK_SHARED_BYTES),
                          "loading the kernels of expert parallelism"));
    return XP_OK;
}

#ifdef __cplusplus
extern "C" {
#endif

/** As xp_ep_cuda_dispatch_rows() and xp_ep_cuda_push_sums(), with the same bits. */
xp_status xp_ep_cuda_dispatch_rows_bulk(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                        const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                                        const xp_ep_cuda_arrivals *arrivals, const void *x);
xp_status xp_ep_cuda_push_sums_bulk(cudaStream_t stream, const xp_ep_cuda_plan *plan,
                                    const xp_ep_cuda_rows *rows, const xp_ep_cuda_peers *peers,
                                    const xp_ep_cuda_arrivals *arrivals, const void *y, void *out);
xp_status xp_ep_cuda_load_dispatch_bulk(bool *usable);
xp_status xp_ep_cuda_load_sums_bulk(bool *usable);
xp_status xp_ep_cuda_load_tokens_bulk(bool *usable);

#ifdef __cplusplus
}
#endif

#endif
