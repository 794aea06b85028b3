/**
 * The shapes of wgmma that attention needs: bf16 operands, fp32 accumulators. See
 * wgmma_64x256() in hopper.cuh for which thread holds which element; MN_A and MN_B are 1 when the
 * operand's contiguous dimension is m or n, 0 when it is k.
 */
#ifndef XP_OPS_CUDA_ATTENTION_WGMMA_CUH
#define XP_OPS_CUDA_ATTENTION_WGMMA_CUH

#include "ops/cuda/hopper.cuh"

#define XP_ACCUMULATORS_16(d, i) XP_ACCUMULATORS_8(d, i), XP_ACCUMULATORS_8(d, i + 8)
#define XP_RESULTS_8(d, i)                                                                         \
    "=f"(d[i]), "=f"(d[i + 1]), "=f"(d[i + 2]), "=f"(d[i + 3]), "=f"(d[i + 4]), "=f"(d[i + 5]),    \
        "=f"(d[i + 6]), "=f"(d[i + 7])
#define XP_RESULTS_16(d, i) XP_RESULTS_8(d, i), XP_RESULTS_8(d, i + 8)
#define XP_RESULTS_32(d, i) XP_RESULTS_16(d, i), XP_RESULTS_16(d, i + 16)

/** d[64, N] += a[64, 16] b[16, N]; both operands in shared memory. */
template <int MN_A, int MN_B>
static __device__ __forceinline__ void wgmma_shared(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, add, 1, 1, %34, %35;\n"
                 "}"
                 : XP_ACCUMULATORS_32(d, 0)
                 : "l"(a), "l"(b), "n"(MN_A), "n"(MN_B));
}

template <int MN_A, int MN_B>
static __device__ __forceinline__ void wgmma_shared(float (&d)[16], uint64_t a, uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "%16, %17, add, 1, 1, %18, %19;\n"
                 "}"
                 : XP_ACCUMULATORS_16(d, 0)
                 : "l"(a), "l"(b), "n"(MN_A), "n"(MN_B));
}

template <int MN_A, int MN_B>
static __device__ __forceinline__ void wgmma_shared(float (&d)[64], uint64_t a, uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "%64, %65, add, 1, 1, %66, %67;\n"
                 "}"
                 : XP_ACCUMULATORS_32(d, 0), XP_ACCUMULATORS_32(d, 32)
                 : "l"(a), "l"(b), "n"(MN_A), "n"(MN_B));
}

/** d = a b: what d was before is not read. */
template <int MN_A, int MN_B>
static __device__ __forceinline__ void wgmma_shared_zero(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, add, 1, 1, %34, %35;\n"
                 "}"
                 : XP_RESULTS_32(d, 0)
                 : "l"(a), "l"(b), "n"(MN_A), "n"(MN_B));
}

template <int MN_A, int MN_B>
static __device__ __forceinline__ void wgmma_shared_zero(float (&d)[16], uint64_t a, uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "%16, %17, add, 1, 1, %18, %19;\n"
                 "}"
                 : XP_RESULTS_16(d, 0)
                 : "l"(a), "l"(b), "n"(MN_A), "n"(MN_B));
}

template <int MN_A, int MN_B>
static __device__ __forceinline__ void wgmma_shared_zero(float (&d)[64], uint64_t a, uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "%64, %65, add, 1, 1, %66, %67;\n"
                 "}"
                 : XP_RESULTS_32(d, 0), XP_RESULTS_32(d, 32)
                 : "l"(a), "l"(b), "n"(MN_A), "n"(MN_B));
}

/** d[64, N] += a[64, 16] b[16, N]; a in registers, n contiguous in b. */
static __device__ __forceinline__ void wgmma_registers(float (&d)[64], const uint32_t *a,
                                                       uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "{%64, %65, %66, %67}, %68, add, 1, 1, 1;\n"
                 "}"
                 : XP_ACCUMULATORS_32(d, 0), XP_ACCUMULATORS_32(d, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

static __device__ __forceinline__ void wgmma_registers(float (&d)[32], const uint32_t *a,
                                                       uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, add, 1, 1, 1;\n"
                 "}"
                 : XP_ACCUMULATORS_32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/** Reads of accumulators below this line stay below it: the compiler does not know that a wait
 * completes them. */
template <int N> static __device__ __forceinline__ void accumulators_fence(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/** Four 8 x 8 blocks of bf16 to shared memory; lane l names row l % 8 of block l / 8. */
static __device__ __forceinline__ void store_matrices(uint32_t to, const uint32_t *w) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                 "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                 : "memory");
}

/* ---- bulk copies of contiguous bytes, multiples of 16 ---- */

static __device__ __forceinline__ void copy_bulk(uint32_t to, const void *from, uint32_t n_bytes,
                                                 uint32_t bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(n_bytes), "r"(bar)
                 : "memory");
}

static __device__ __forceinline__ void store_bulk(float *to, uint32_t from, uint32_t n_bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                     __cvta_generic_to_global(to)),
                 "r"(from), "r"(n_bytes)
                 : "memory");
}

static __device__ __forceinline__ void add_bulk(float *to, uint32_t from, uint32_t n_bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                     __cvta_generic_to_global(to)),
                 "r"(from), "r"(n_bytes)
                 : "memory");
}

/** What this thread knows to be written to global memory becomes visible to its bulk copies. */
static __device__ __forceinline__ void async_global_fence() {
    asm volatile("fence.proxy.async.global;" ::: "memory");
}
static __device__ __forceinline__ int load_acquire(const int32_t *from) {
    int32_t x;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                 : "=r"(x)
                 : "l"(__cvta_generic_to_global(from))
                 : "memory");
    return x;
}
static __device__ __forceinline__ void store_release(int32_t *to, int32_t x) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(x)
                 : "memory");
}

#endif
