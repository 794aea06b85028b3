/** Waiting for flags that other ranks set, and how a failure is put into a word. */
#ifndef XP_EP_P2P_CUDA_FLAG_WAIT_CUH
#define XP_EP_P2P_CUDA_FLAG_WAIT_CUH

#include "ep/common/cuda/plan_common.cuh"
#include "ep/p2p/cuda/kernels.h"

enum { POLL_NS = 100 };

static __device__ __forceinline__ void store_release(uint32_t *word, uint32_t value) {
    asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
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

#endif
