/** What the plan kernels and the row kernels share. */
#ifndef XP_EP_COMMON_CUDA_PLAN_COMMON_CUH
#define XP_EP_COMMON_CUDA_PLAN_COMMON_CUH

#include "ep/common/cuda/kernels.h"

enum {
    ROWS_IN_FLIGHT = 4,        /* loads in flight while a warp goes through rows one by one */
    SHARED_WANTED = 36 * 1024, /* dynamic shared memory of a block, unless one warp needs more */
    FIRST_ASSIGNMENT = (int)0x80000000u,
    TOTAL_ROUNDS = 0,
    TOTAL_ROWS = 1,
    TOTAL_ASSIGNMENTS = 2,
    TOTAL_REFUSED = 3,
    TOTAL_TO = 4
};

constexpr unsigned ALL_LANES = 0xffffffffu;

/** A barrier before has failed: nothing may be read or written any more. The same for all threads. */
static __device__ __forceinline__ bool is_aborted(const xp_ep_cuda_plan &p) {
    return p.aborted != nullptr && *p.aborted != 0;
}

/** The rank whose part of `base` [n + 1] holds `i`. */
static __device__ __forceinline__ int owner_of(const int32_t *base, int i) {
    int r = 0;
    while (i >= base[r + 1])
        r++;
    return r;
}

static __device__ __forceinline__ int lane_id() {
    return (int)threadIdx.x % 32;
}

/** The part of a tile's tokens (or rows) that a warp processes: consecutive, in warp order. */
struct warp_range {
    int64_t begin, end;
};
static __device__ __forceinline__ warp_range warp_range_of(int64_t first, int64_t n,
                                                           int64_t tile_size, int64_t tile) {
    const int64_t n_warps = blockDim.x / 32, warp = threadIdx.x / 32;
    const int64_t each = (tile_size + n_warps - 1) / n_warps;
    const int64_t tile_end = min((long long)((tile + 1) * tile_size), (long long)n);
    const int64_t begin = tile * tile_size + warp * each;
    return {first + begin, first + min((long long)(begin + each), (long long)tile_end)};
}

/** True in the block that is done last, for all its threads: it sees what the others have written. */
static __device__ __forceinline__ bool is_last_block(const xp_ep_cuda_plan &p) {
    __shared__ bool is_last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicInc(p.n_done, gridDim.x - 1) == gridDim.x - 1; /* the last leaves 0 */
        __threadfence();
    }
    __syncthreads();
    return is_last;
}

/** What a plan kernel does about other ranks when the hosts make the exchanges: nothing. See p2p_exchange
 * in p2p/cuda/plan.cu. */
struct no_exchange {
    enum { TELLS = 0 };
    /** All threads. False: in vain; the block returns. */
    __device__ bool wait(const xp_ep_cuda_plan &p) const {
        (void)p;
        return true;
    }
    /** The block that is done last: what the kernel has made is there for the others. */
    __device__ void tell(const xp_ep_cuda_plan &p) const {
        (void)p;
    }
};

/** Replace a warp's column of tile counts by its exclusive prefix; every lane gets the sum. */
static __device__ __forceinline__ int scan_column(int32_t *column, int64_t stride,
                                                  int64_t n_tiles) {
    int before = 0;
    for (int64_t base = 0; base < n_tiles; base += 32) {
        const int64_t tile = base + lane_id();
        const int own = tile < n_tiles ? column[tile * stride] : 0;
        int sum = own;
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(ALL_LANES, sum, step);
            sum += lane_id() >= step ? other : 0;
        }
        if (tile < n_tiles)
            column[tile * stride] = before + sum - own;
        before += __shfl_sync(ALL_LANES, sum, 31);
    }
    return before;
}

static inline int64_t tiles_of(int64_t n, int64_t tile) {
    return (n + tile - 1) / tile;
}

/** Warps of a block that each keep `width` counters in shared memory. */
static inline int warps_for(int64_t width) {
    int n_warps = 32;
    while (n_warps > 1 && n_warps * width * 4 > SHARED_WANTED)
        n_warps /= 2;
    return n_warps;
}

/** Blocks for so many tiles; the kernels loop. */
static inline unsigned plan_blocks(const xp_ep_cuda_plan *p, int64_t n_tiles) {
    const int64_t n = n_tiles < p->n_blocks ? n_tiles : p->n_blocks;
    return (unsigned)(n > 1 ? n : 1);
}

/** Blocks of 256 threads for n_assignments at most. */
static inline unsigned weight_blocks(int64_t n_assignments) {
    const int64_t n = tiles_of(n_assignments, 256);
    return (unsigned)(n < 1 ? 1 : n < 128 ? n : 128);
}

/** Load kernels now and not at their first launch: that would wait for kernels that run. */
template <typename... K> static inline xp_status load_kernels(K... kernels) {
    const void *const all[] = {(const void *)kernels...};
    for (const void *kernel : all) {
        struct cudaFuncAttributes attributes;
        XP_TRY(xp_cuda_check(cudaFuncGetAttributes(&attributes, kernel),
                             "loading the kernels of expert parallelism"));
    }
    return XP_OK;
}

/** The same for a kernel with dynamic shared memory, as much as the GPU has. */
static inline xp_status load_wide_kernel(const void *kernel) {
    struct cudaFuncAttributes attributes;
    int device, most;
    XP_TRY(xp_cuda_check(cudaFuncGetAttributes(&attributes, kernel),
                         "loading the kernels of expert parallelism"));
    XP_TRY(xp_cuda_check(cudaGetDevice(&device), "GPU"));
    XP_TRY(xp_cuda_check(
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "GPU"));
    return xp_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              most - (int)attributes.sharedSizeBytes),
                         "loading the kernels of expert parallelism");
}

#endif
