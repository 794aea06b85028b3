/**
 * Bulk asynchronous copies (PTX ISA 9.7.9.25, cp.async.bulk) between global and shared memory: one
 * thread issues, addresses and sizes are multiples of 16 bytes. Code for sm_90 and newer.
 *
 * Order. A load is complete when its mbarrier's phase is (complete_tx), and then visible to threads that
 * have waited for the phase. A store belongs to a bulk group of the thread that issued it:
 * cp.async.bulk.wait_group.read says that shared memory has been read and may be overwritten,
 * cp.async.bulk.wait_group that the group is complete and its writes are visible to this thread (an
 * implicit generic-async proxy fence follows the completion). Only then does a release of this thread
 * cover them.
 */
#ifndef XP_EP_P2P_CUDA_BULK_CUH
#define XP_EP_P2P_CUDA_BULK_CUH

#include "ops/cuda/hopper.cuh"

static __device__ __forceinline__ void bulk_load(uint32_t to, const void *from, uint32_t n_bytes,
                                                 uint32_t bar) {
    mbarrier_expect_tx(bar, n_bytes);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(n_bytes), "r"(bar)
                 : "memory");
}

/** A bulk group of one store. */
static __device__ __forceinline__ void bulk_store(void *to, uint32_t from, uint32_t n_bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
                 "cp.async.bulk.commit_group;" ::"l"(__cvta_generic_to_global(to)),
                 "r"(from), "r"(n_bytes)
                 : "memory");
}

#endif
