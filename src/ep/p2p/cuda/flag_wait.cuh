/** Waiting for flags that other ranks set, and how a failure is put into a word. */
#ifndef XP_EP_P2P_CUDA_FLAG_WAIT_CUH
#define XP_EP_P2P_CUDA_FLAG_WAIT_CUH

#include "ep/common/cuda/plan_common.cuh"
#include "ep/p2p/cuda/kernels.h"

enum { POLL_NS = 100 };

static __device__ __forceinline__ void store_release(uint32_t *word, uint32_t value) {
    asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

/** Behind a fence of system scope: a release, too. */
static __device__ __forceinline__ void store_relaxed(uint32_t *word, uint32_t value) {
    asm volatile("st.relaxed.sys.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

static __device__ __forceinline__ uint32_t load_acquire(const uint32_t *word) {
    uint32_t value;
    asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}

static __device__ __forceinline__ uint64_t now_ns() {
    uint64_t value;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value));
    return value;
}

static __device__ __forceinline__ void pause_poll() {
    __nanosleep(POLL_NS);
}

#define XP_EP_WAIT_FN static __device__ __forceinline__
#include "ep/p2p/barrier_wait.h"

/** What a failed rank reports: who missed whom where. */
enum { FAILED = (int)0x80000000u, BY_HOST = 0x40000000 };
static __device__ __forceinline__ uint32_t encode(int point, int reporter, int missing) {
    return (uint32_t)FAILED | (uint32_t)point << 16 | (uint32_t)reporter << 8 | (uint32_t)missing;
}

/** What was written before an arrival that this thread has acquired comes before its bulk loads. */
static __device__ __forceinline__ void arrival_fence() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

/** Wait until rank `source` has told that rows have arrived. False: in vain; the next barrier fails
 * (barrier.cu). */
static __device__ __forceinline__ bool wait_for_arrival(const xp_ep_cuda_plan &p,
                                                        const xp_ep_cuda_arrivals &arrivals,
                                                        const uint32_t *arrived, int source) {
    const xp_ep_wait_args args = {arrived,
                                  arrivals.epoch,
                                  &arrivals.abort->failed,
                                  &p.status->host_abort,
                                  arrivals.timeout_ns,
                                  true};
    uint32_t report = 0;
    const xp_ep_wait_result result = xp_ep_wait_for_flag(&args, &report);
    if (result == XP_EP_WAIT_REACHED) {
        arrival_fence();
        return true;
    }
    if (result != XP_EP_WAIT_REPORTED)
        report = encode(arrivals.point, p.rank, source) |
                 (result == XP_EP_WAIT_HOST_ABORT ? (uint32_t)BY_HOST : 0u);
    arrivals.abort->gave_up = report;
    return false;
}

#endif
