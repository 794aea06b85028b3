/**
 * Attention for sm_90a: what the consumer warpgroups of forward and backward share.
 */
#ifndef XP_OPS_CUDA_ATTENTION_HOPPER_WARPGROUP_CUH
#define XP_OPS_CUDA_ATTENTION_HOPPER_WARPGROUP_CUH

#include "ops/cuda/attention_hopper_tiles.cuh"
#include "ops/cuda/hopper_epilogue.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* A wgmma descriptor whose low word alone changes from step to step: see xp_hopper_descriptor(). */
struct operand {
    uint32_t low, high;
    __device__ __forceinline__ uint64_t at(uint32_t n_bytes) const {
        uint64_t d;
        asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(low + (n_bytes >> 4)), "r"(high));
        return d;
    }
};
static __device__ __forceinline__ operand operand_of(uint32_t address, int k_contiguous) {
    const uint64_t d = xp_hopper_operand(address, 0, k_contiguous);
    return {(uint32_t)d, (uint32_t)(d >> 32)};
}
/* Bytes from a k16 step to the next: along a row, or 16 rows. */
enum { COLUMN_STEP = 32, ROW_STEP = 16 * XP_HOPPER_ROW_BYTES };

static __device__ __forceinline__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* A thread's number within its warpgroup, read anew wherever it is used: the compiler would keep
 * what follows from it in registers, which the loop does not have. */
static __device__ __forceinline__ uint32_t thread_in_group() {
    uint32_t thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread % GROUP;
}
/* The thread's first row of 64 accumulator rows; its first column of 8. */
static __device__ __forceinline__ int first_row(uint32_t thread) {
    return (int)(thread / 32 * 16 + thread % 32 / 4);
}
static __device__ __forceinline__ int first_column(uint32_t thread) {
    return (int)(thread % 4 * 2);
}

/* Accumulators as the A operand of N / 8 k16 steps. */
template <int N>
static __device__ __forceinline__ void round_all(const float (&x)[N], uint32_t (&w)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        w[i] = pack(x[2 * i], x[2 * i + 1]);
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        asm volatile("" : "+r"(w[i])); /* here, not later: x need not be kept */
}

struct consumer {
    uint32_t base;
    int group;
    bool elected; /* arrives for its warp */
};

static __device__ __forceinline__ void arrive(const consumer &c, uint32_t barrier) {
    __syncwarp();
    if (c.elected)
        mbarrier_arrive(barrier);
}

/* The warpgroups take turns at starting a tile, so that one computes weights while the other's
 * GEMMs run. Named barrier 1 + group: that group may start. */
static __device__ __forceinline__ void wait_turn(int group) {
    asm volatile("barrier.sync %0, %1;" ::"r"(1 + group), "n"(N_CONSUMERS * GROUP) : "memory");
}
static __device__ __forceinline__ void pass_turn(int group) {
    asm volatile("barrier.arrive %0, %1;" ::"r"(2 - group), "n"(N_CONSUMERS * GROUP) : "memory");
}

#endif
#endif
