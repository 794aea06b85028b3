/**
 * Hopper's asynchronous instructions as small functions. References are to the PTX ISA 8.x:
 * mbarrier (9.7.13.15), cp.async and cp.async.bulk.tensor (9.7.9.25, 9.7.9.27), wgmma (9.7.15),
 * setmaxnreg (9.7.19.5). Only kernels compiled for sm_90a may call them.
 */
#ifndef XP_OPS_CUDA_HOPPER_CUH
#define XP_OPS_CUDA_HOPPER_CUH

#include <cuda.h>
#include <stdint.h>
#include "ops/cuda/hopper_layout.h"

static __device__ __forceinline__ uint32_t hopper_shared(const void *at) {
    return (uint32_t)__cvta_generic_to_shared(at);
}

/* ---- mbarrier: a phase completes when all expected arrivals and bytes are in ---- */

static __device__ __forceinline__ void mbarrier_init(uint32_t bar, int n_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(n_arrivals) : "memory");
}

/** Make initialised barriers visible to the async proxy too. */
static __device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void mbarrier_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/** One arrival that also adds n_bytes of bulk copies to the phase. */
static __device__ __forceinline__ void mbarrier_expect_tx(uint32_t bar, uint32_t n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(n_bytes)
                 : "memory");
}

/** Wait until the phase of this parity is complete. */
static __device__ __forceinline__ void mbarrier_wait(uint32_t bar, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra out;\n"
                 "bra again;\n"
                 "out:\n"
                 "}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}

/** The same where another CTA of the cluster completes the phase. */
static __device__ __forceinline__ void mbarrier_wait_cluster(uint32_t bar, uint32_t parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra out;\n"
                 "bra again;\n"
                 "out:\n"
                 "}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}

/** Named barrier 1 to 15 among n_threads, in whole warps. */
static __device__ __forceinline__ void named_barrier_sync(int barrier, int n_threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(barrier), "r"(n_threads) : "memory");
}

/* ---- copies ---- */

/** 16 bytes to shared memory, or zeros when not `valid`; `from` is then not read. */
static __device__ __forceinline__ void cp_async_16(uint32_t to, const void *from, bool valid) {
    const int n_bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n_bytes)
                 : "memory");
}

/** One arrival, counted like any other, once all cp.async of this thread are complete. */
static __device__ __forceinline__ void cp_async_arrive(uint32_t bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

/** Make shared-memory writes of this thread, and of those it has synchronised with, visible to the
 * async proxy (wgmma, bulk copies). */
static __device__ __forceinline__ void async_proxy_fence() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/** TMA load of one box of a three-dimensional tensor, multicast to the same shared-memory address in
 * each of the cluster's N_CTAS CTAs. Its bytes count towards each CTA's barrier, zeros outside the
 * tensor included. */
template <int N_CTAS>
static __device__ __forceinline__ void tma_load(uint32_t to, const CUtensorMap *map, uint32_t bar,
                                                int x, int y, int z) {
    if (N_CTAS == 1)
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
            "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z)
            : "memory");
    else
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
            ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
            "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "h"((uint16_t)((1 << N_CTAS) - 1))
            : "memory");
}

/** TMA store of one box of a three-dimensional tensor; what lies outside the tensor is left out. */
static __device__ __forceinline__ void tma_store(const CUtensorMap *map, uint32_t from, int x,
                                                 int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group "
                 "[%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(from), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

/** The same, adding: one rounding per element, to nearest; numbers below fp32's normal range count as
 * 0. */
static __device__ __forceinline__ void tma_add(const CUtensorMap *map, uint32_t from, int x, int y,
                                               int z) {
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group "
                 "[%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(from), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

static __device__ __forceinline__ void bulk_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/** All but the last N committed copies of this thread have read shared memory. */
template <int N = 0> static __device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
/** All but the last N committed copies of this thread are complete. */
template <int N = 0> static __device__ __forceinline__ void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- clusters: CTAs that can address each other's shared memory ---- */

static __device__ __forceinline__ int cta_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return (int)rank;
}

/** Barrier of all threads of the cluster. */
static __device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/** The shared::cluster address of `at` in CTA `block`. */
static __device__ __forceinline__ uint32_t cta_shared_address(uint32_t at, int block) {
    uint32_t remote;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(at), "r"(block));
    return remote;
}

/** Store 4 bytes to any CTA of the cluster; they count towards `bar`, a barrier of that CTA. */
static __device__ __forceinline__ void st_async(uint32_t to, uint32_t value, uint32_t bar) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
        "r"(value), "r"(bar)
        : "memory");
}

static __device__ __forceinline__ uint32_t load_shared(uint32_t from) {
    uint32_t value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
    return value;
}

static __device__ __forceinline__ void store_shared(uint32_t to, uint32_t value) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

static __device__ __forceinline__ void store_shared(uint32_t to, float value) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

/** Four 8 x 8 matrices of bf16, held as mma holds its results, to rows of 16 bytes: lane 8 i + r gives
 * the address of row r of matrix i. TRANSPOSED: of column r. */
template <bool TRANSPOSED>
static __device__ __forceinline__ void store_matrices(uint32_t to, const uint32_t (&w)[4]) {
    if (TRANSPOSED)
        asm volatile(
            "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
            "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
            : "memory");
    else
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
                     "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                     : "memory");
}

/** Arrive at a barrier of any CTA of the cluster. CTA-scope release on purpose: at cluster scope the
 * arrival would wait for all earlier stores of the thread, those to c included. */
static __device__ __forceinline__ void mbarrier_arrive_remote(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}

/* ---- wgmma: one warpgroup (128 threads), operands in shared memory ---- */

/** Needed before the first wgmma after registers or shared memory have changed. */
static __device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N> static __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#define XP_ACCUMULATORS_8(d, i)                                                                    \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define XP_ACCUMULATORS_32(d, i)                                                                   \
    XP_ACCUMULATORS_8(d, i), XP_ACCUMULATORS_8(d, i + 8), XP_ACCUMULATORS_8(d, i + 16),            \
        XP_ACCUMULATORS_8(d, i + 24)

#define XP_OUTPUTS_8(d, i)                                                                         \
    "=f"(d[i]), "=f"(d[i + 1]), "=f"(d[i + 2]), "=f"(d[i + 3]), "=f"(d[i + 4]), "=f"(d[i + 5]),    \
        "=f"(d[i + 6]), "=f"(d[i + 7])
#define XP_OUTPUTS_32(d, i)                                                                        \
    XP_OUTPUTS_8(d, i), XP_OUTPUTS_8(d, i + 8), XP_OUTPUTS_8(d, i + 16), XP_OUTPUTS_8(d, i + 24)

/**
 * d[64, 256] += a[64, 16] b[16, 256], bf16 in, fp32 sums. MN_A, MN_B: 1 when the operand's
 * contiguous direction is m or n, 0 when it is k. Thread t of the warpgroup holds
 * d[4 i + j] = element (16 (t / 32) + t % 32 / 4 + 8 (j / 2), 8 i + 2 (t % 4) + j % 2).
 */
template <int MN_A, int MN_B>
static __device__ __forceinline__ void wgmma_64x256(float (&d)[128], uint64_t a, uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "
                 "%110, %111, "
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "
                 "%125, %126, %127}, "
                 "%128, %129, add, 1, 1, %130, %131;\n"
                 "}"
                 : XP_ACCUMULATORS_32(d, 0), XP_ACCUMULATORS_32(d, 32), XP_ACCUMULATORS_32(d, 64),
                   XP_ACCUMULATORS_32(d, 96)
                 : "l"(a), "l"(b), "n"(MN_A), "n"(MN_B));
}

/** The same without the sum so far: d[64, 256] = a[64, 16] b[16, 256]. What d was is not read. */
template <int MN_A, int MN_B>
static __device__ __forceinline__ void wgmma_64x256_first(float (&d)[128], uint64_t a, uint64_t b) {
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, 0, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "
                 "%110, %111, "
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "
                 "%125, %126, %127}, "
                 "%128, %129, add, 1, 1, %130, %131;\n"
                 "}"
                 : XP_OUTPUTS_32(d, 0), XP_OUTPUTS_32(d, 32), XP_OUTPUTS_32(d, 64),
                   XP_OUTPUTS_32(d, 96)
                 : "l"(a), "l"(b), "n"(MN_A), "n"(MN_B));
}

/* ---- setmaxnreg: registers move from the producer to the consumers ---- */

template <int N> static __device__ __forceinline__ void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> static __device__ __forceinline__ void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#endif
