/*
 * The second half of a combine that was sent early, with one round: warps on all SMs combine this rank's
 * tokens as the other ranks' sums arrive (tokens_bulk.cuh). One block an SM, one warp for each ring of
 * stages; nothing synchronises warps. This rank's own senders have ended before, and those of other
 * ranks, past the barrier that this rank's have passed too, wait for nobody: every wait ends. With
 * several slots the host leaves SMs for the senders of the others.
 */
#include "ep/p2p/cuda/tokens_bulk.cuh"

template <typename T>
static __global__ void __launch_bounds__(WARPS * 32, 1)
    tokens_bulk_kernel(const xp_ep_cuda_plan p, const xp_ep_cuda_arrivals arrivals,
                       const char *combine_rows, int64_t row_bytes, const char *y, char *out) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) char shared[];
    __shared__ uint64_t bars[WARPS][LOAD_STAGES];
    const int warp = (int)threadIdx.x / 32;
    if (is_aborted(p) || p.totals[TOTAL_ROUNDS] != 1)
        return;
    /* Another block's wait was in vain: one that starts later need not wait as long again. */
    if (*(volatile uint32_t *)&arrivals.abort->gave_up != 0)
        return;
    if (lane_id() == 0) {
        for (int i = 0; i < LOAD_STAGES; i++)
            mbarrier_init(hopper_shared(&bars[warp][i]), 1);
        mbarrier_init_fence();
    }
    __syncwarp();
    const token_work work = {y, combine_rows, out, pieces_of(row_bytes), lanes_a_token(p.top_k)};
    token_ring ring = {shared + warp * XP_EP_BULK_STAGES * STAGE_BYTES, hopper_shared(bars[warp]),
                       0, 0};
    combine_tokens<T>(p, arrivals, work, (int)blockIdx.x * WARPS + warp, (int)gridDim.x * WARPS,
                      ring);
#endif
}

template <typename T>
static void launch(cudaStream_t stream, const xp_ep_cuda_plan *p, const xp_ep_cuda_rows *rows,
                   const xp_ep_cuda_arrivals *arrivals, const void *combine_rows, const void *y,
                   void *out) {
    const int64_t n_pieces = (int64_t)((rows->row_bytes + STAGE_BYTES - 1) / STAGE_BYTES);
    const int64_t n_warps = tiles_of(p->n_tokens, 32 / lanes_a_token(p->top_k)) * n_pieces;
    const int64_t n_blocks = tiles_of(n_warps, WARPS), n_most = rows->n_waiting_blocks;
    tokens_bulk_kernel<T>
        <<<(unsigned)(n_blocks < n_most ? n_blocks : n_most), WARPS * 32, XP_EP_BULK_SHARED_BYTES,
           stream>>>(*p, *arrivals, (const char *)combine_rows, (int64_t)rows->row_bytes,
                     (const char *)y, (char *)out);
}

xp_status xp_ep_cuda_combine_tokens(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                    const xp_ep_cuda_rows *rows,
                                    const xp_ep_cuda_arrivals *arrivals, const void *combine_rows,
                                    const void *y, void *out) {
    if (p->n_tokens == 0)
        return XP_OK;
    if (rows->bf16)
        launch<bf16>(stream, p, rows, arrivals, combine_rows, y, out);
    else
        launch<float>(stream, p, rows, arrivals, combine_rows, y, out);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine");
}

xp_status xp_ep_cuda_load_tokens_bulk(bool *usable) {
    XP_TRY(load_bulk_kernel((const void *)tokens_bulk_kernel<bf16>, usable));
    return load_bulk_kernel((const void *)tokens_bulk_kernel<float>, usable);
}
