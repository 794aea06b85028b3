/**
 * What kernels of bf16 tiles share: asynchronous copies to shared memory (cp.async), matrices from
 * there to registers (ldmatrix) and mma.sync.m16n8k16 (PTX ISA 7.0, sm_80).
 */
#ifndef XP_OPS_CUDA_MMA_CUH
#define XP_OPS_CUDA_MMA_CUH

#include "ops/cuda/vector.cuh"

static __device__ __forceinline__ uint32_t shared_address(const void *at) {
    return (uint32_t)__cvta_generic_to_shared(at);
}

/** Copy 16 bytes to shared memory, or zeros when not `valid`: `from` is then not read. */
static __device__ __forceinline__ void copy_async(bf16 *to, const bf16 *from, bool valid) {
    const int n_bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(n_bytes)
                 : "memory");
}

/** What was copied since the last commit is one group; groups complete in order. */
static __device__ __forceinline__ void commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/** Until at most the newest N groups of this thread are under way. */
template <int N> static __device__ __forceinline__ void wait_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/** Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8. TRANS: each is
 * transposed on the way to registers. */
template <bool TRANS>
static __device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const bf16 *at) {
    if (TRANS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(at))
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(at))
                     : "memory");
}

/** c += a b: c [16, 8] fp32, a [16, 16] row-major, b [16, 8] column-major, spread over a warp. */
static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif
