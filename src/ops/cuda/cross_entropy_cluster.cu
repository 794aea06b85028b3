/*
 * Cross-entropy of bf16 rows on Hopper: every logit is read from device memory once and replaced by its
 * gradient.
 *
 * A cluster takes every n_clusters-th row, each of its CTAs a contiguous part. A CTA is alone on its SM
 * and has parts of BUFFERS rows in shared memory: while it takes the statistics of row j + 1 (maximum
 * and sum of exponentials: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018)
 * and writes the gradient of row j, row j + 2 is on its way. The CTAs exchange their statistics through
 * distributed shared memory; the exchange of row j + 1 runs while the gradient of row j is written. All
 * sums are in a fixed order.
 */
#include "ops/cuda/cross_entropy_cluster.h"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/vector.cuh"

namespace {

constexpr int THREADS = 1024, BUFFERS = 3, MOST_CTAS = 8;
constexpr int N = 8; /* logits of a vector */
constexpr int64_t STATIC_BYTES = 1024;
/* For shorter rows the kernel of a block a row is faster. */
constexpr int64_t LEAST_VECTORS = 4096;

struct loss_args {
    bf16 *logits;
    const int32_t *targets;
    float *loss;
    const float *grad_scale;
    int n_rows, n_vectors, part; /* vectors of a row, of a CTA's part */
    int n_ctas, n_clusters;      /* CTAs of a cluster */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr int WARPS = THREADS / 32;
constexpr int ROUNDS = 5;              /* vectors that a thread has in registers at a time */
constexpr uint32_t LOAD_BYTES = 16384; /* of one bulk load */
constexpr float LOG2_E = 1.44269504f;

/* The sum of exp(x) is sum * 2^base, base the largest x times LOG2_E: exponentials to base 2 take one
 * instruction, and a product that is fused with the subtraction rounds once. */
struct running {
    float base, sum;
};

static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* A base of -Inf belongs to a sum of 0 (or NaN): no Inf - Inf. */
static __device__ __forceinline__ running merged(running a, running b) {
    const float base = fmaxf(a.base, b.base);
    const float of_a = a.base == base ? a.sum : a.sum * exp2_fast(a.base - base);
    const float of_b = b.base == base ? b.sum : b.sum * exp2_fast(b.base - base);
    return running{base, of_a + of_b};
}

/* The largest of eight bf16; NaN counts only where all are. */
static __device__ __forceinline__ __nv_bfloat162 largest(const vec<bf16, N> &v) {
    const __nv_bfloat162 *w = (const __nv_bfloat162 *)&v;
    return __hmax2(__hmax2(w[0], w[1]), __hmax2(w[2], w[3]));
}

static __device__ __forceinline__ float exp_sum(const vec<bf16, N> &v, float base) {
    float x[N];
    unpack(v, x);
#pragma unroll
    for (int k = 0; k < N; k++)
        x[k] = exp2_fast(fmaf(x[k], LOG2_E, -base));
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

/* Statistics of this thread's vectors of a part. */
static __device__ __forceinline__ running part_statistics(const vec<bf16, N> *part, int n) {
    running r = {-INFINITY, 0};
    for (int first = (int)threadIdx.x; first < n; first += ROUNDS * THREADS) {
        vec<bf16, N> v[ROUNDS];
        v[0] = part[first];
        __nv_bfloat162 most = largest(v[0]);
#pragma unroll
        for (int i = 1; i < ROUNDS; i++)
            if (first + i * THREADS < n) {
                v[i] = part[first + i * THREADS];
                most = __hmax2(most, largest(v[i]));
            }
        const float base = fmaxf(__low2float(most), __high2float(most)) * LOG2_E;
        if (base > r.base)
            r = running{base, r.sum * exp2_fast(r.base - base)};
        const float from = r.base == -INFINITY ? 0.0f : r.base;
#pragma unroll
        for (int i = 0; i < ROUNDS; i++)
            if (first + i * THREADS < n)
                r.sum += exp_sum(v[i], from);
    }
    return r;
}

/* Over the warp's lanes below `width`, a power of two. */
static __device__ __forceinline__ running over_lanes(running r, int width) {
    for (int step = width / 2; step > 0; step /= 2)
        r = merged(r, running{__shfl_xor_sync(0xffffffffu, r.base, step),
                              __shfl_xor_sync(0xffffffffu, r.sum, step)});
    return r;
}

static __device__ __forceinline__ void bulk_load(uint32_t to, const void *from, uint32_t n_bytes,
                                                 uint32_t bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(n_bytes), "r"(bar)
                 : "memory");
}

static __device__ __forceinline__ void store_remote(uint32_t to, float value) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

/* What a CTA works on: its part of the rows of its cluster, row j in buffer j % BUFFERS. */
struct work {
    int rank, cluster, n, n_rows; /* vectors of the part, rows of the cluster */
    bf16 *logits;                 /* of row 0 of the cluster */
    int64_t row_step;             /* logits from one row of the cluster to the next */
    vec<bf16, N> *buffers;
    uint64_t *full;
};

static __device__ __forceinline__ work work_of(const loss_args &args, uint4 *buffers,
                                               uint64_t *full) {
    work w;
    w.rank = cta_rank();
    w.cluster = (int)blockIdx.x / args.n_ctas;
    const int first = w.rank * args.part;
    w.n = max(0, min(args.part, args.n_vectors - first));
    w.n_rows = (args.n_rows - w.cluster + args.n_clusters - 1) / args.n_clusters;
    w.logits = args.logits + ((int64_t)w.cluster * args.n_vectors + first) * N;
    w.row_step = (int64_t)args.n_clusters * args.n_vectors * N;
    w.buffers = (vec<bf16, N> *)buffers;
    w.full = full;
    return w;
}

static __device__ __forceinline__ vec<bf16, N> *buffer_of(const loss_args &args, const work &w,
                                                          int j) {
    return w.buffers + j % BUFFERS * args.part;
}

/* The target of row j of the cluster; -1 past the last row. */
static __device__ __forceinline__ int target_of(const loss_args &args, const work &w, int j) {
    return j < w.n_rows ? args.targets[w.cluster + j * args.n_clusters] : -1;
}

static __device__ __forceinline__ bool is_known(const loss_args &args, int target) {
    return target >= 0 && target < args.n_vectors * N;
}

/* Thread 0: queue the loads of row j. A row without a target of the vocabulary is not read, but its
 * buffer's phase completes as well. */
static __device__ void load_row(const loss_args &args, const work &w, int j, int target) {
    if (j >= w.n_rows)
        return;
    const uint32_t bar = hopper_shared(&w.full[j % BUFFERS]);
    if (!is_known(args, target) || w.n == 0) {
        mbarrier_arrive(bar);
        return;
    }
    const uint32_t all = (uint32_t)w.n * 16, to = hopper_shared(buffer_of(args, w, j));
    const char *from = (const char *)(w.logits + j * w.row_step);
    mbarrier_expect_tx(bar, all);
    for (uint32_t at = 0; at < all; at += LOAD_BYTES)
        bulk_load(to + at, from + at, all - at < LOAD_BYTES ? all - at : LOAD_BYTES, bar);
}

/* The statistics of the CTA's part of row j, in warp 0; ends behind a barrier of the block. */
static __device__ running row_statistics(const loss_args &args, const work &w, int j, int target,
                                         running *by_warp) {
    running r = {-INFINITY, 0};
    mbarrier_wait(hopper_shared(&w.full[j % BUFFERS]), (uint32_t)(j / BUFFERS % 2));
    if (is_known(args, target))
        r = part_statistics(buffer_of(args, w, j), w.n);
    r = over_lanes(r, 32);
    if (threadIdx.x % 32 == 0)
        by_warp[threadIdx.x / 32] = r;
    __syncthreads();
    return threadIdx.x < 32 ? over_lanes(by_warp[threadIdx.x], 32) : r;
}

/* Warp 0 writes the CTA's statistics to all CTAs; every thread arrives at the cluster's barrier. */
static __device__ __forceinline__ void post(const work &w, int n_ctas, running r, running *by_cta) {
    if (threadIdx.x < n_ctas) {
        const uint32_t to = cta_shared_address(hopper_shared(&by_cta[w.rank]), (int)threadIdx.x);
        store_remote(to, r.base);
        store_remote(to + 4, r.sum);
    }
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

/* Wait for the posts of all CTAs, and merge them. */
static __device__ __forceinline__ running collect(int n_ctas, const running *by_cta) {
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
    running r = by_cta[0];
    for (int i = 1; i < n_ctas; i++)
        r = merged(r, by_cta[i]);
    return r;
}

/* dlogits = softmax * scale, less scale at the target; `target` counts from the part's start. */
static __device__ void write_gradient(bf16 *to, int n, const vec<bf16, N> *part, running r,
                                      float scale, int64_t target) {
    const float inverse = scale / r.sum;
    const int64_t target_vector = target >= 0 ? target / N : -1;
#pragma unroll 2
    for (int v = (int)threadIdx.x; v < n; v += THREADS) {
        float x[N];
        unpack(part[v], x);
#pragma unroll
        for (int k = 0; k < N; k++)
            x[k] = exp2_fast(fmaf(x[k], LOG2_E, -r.base)) * inverse;
        if (v == target_vector)
#pragma unroll
            for (int k = 0; k < N; k++)
                x[k] -= k == (int)(target % N) ? scale : 0.0f;
        store_vec<bf16, N>(to + (int64_t)v * N, x);
    }
}

/* Loss and gradient of row j from its statistics. */
static __device__ void finish_row(const loss_args &args, const work &w, int j, int row_target,
                                  running r, float scale) {
    const int row = w.cluster + j * args.n_clusters;
    bf16 *logits = w.logits + j * w.row_step;
    if (!is_known(args, row_target)) {
        if (w.rank == 0 && threadIdx.x == 0)
            args.loss[row] = row_target < 0 ? 0.0f : NAN;
        for (int v = (int)threadIdx.x; v < w.n; v += THREADS)
            store_vec<bf16, N>(logits + (int64_t)v * N, {});
        return;
    }
    const vec<bf16, N> *part = buffer_of(args, w, j);
    const int target = row_target - w.rank * args.part * N;
    /* by a thread that has fewer vectors than others */
    if (threadIdx.x == THREADS - 1 && target >= 0 && target < w.n * N)
        args.loss[row] = (float)((double)r.base / (double)LOG2_E + log((double)r.sum) -
                                 (double)to_float(((const bf16 *)part)[target]));
    write_gradient(logits, w.n, part, r, scale, target);
}
#endif

/*
 * Barriers. full[b]: the loads into buffer b; thread 0 queues the next ones after the barrier of the
 * block behind the gradient that was read from it. Cluster: arrival j says that this CTA has posted the
 * statistics of row j and has read those of row j - 1, so two sets of slots are enough.
 */
__global__ void __launch_bounds__(THREADS, 1) cross_entropy_cluster(loss_args args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint4 buffers[];
    __shared__ __align__(8) uint64_t full[BUFFERS];
    __shared__ running by_warp[WARPS], by_cta[2][MOST_CTAS];
    const work w = work_of(args, buffers, full);
    int target[BUFFERS + 1]; /* of rows j to j + BUFFERS */
#pragma unroll
    for (int i = 0; i <= BUFFERS; i++)
        target[i] = target_of(args, w, i);
    if (threadIdx.x == 0) {
        for (int i = 0; i < BUFFERS; i++)
            mbarrier_init(hopper_shared(&full[i]), 1);
        mbarrier_init_fence();
        for (int i = 0; i < BUFFERS; i++)
            load_row(args, w, i, target[i]);
    }
    __syncthreads();
    cluster_sync(); /* all CTAs have started: their shared memory may be written */
    const float scale = *args.grad_scale;
    running r = row_statistics(args, w, 0, target[0], by_warp);
    post(w, args.n_ctas, r, by_cta[0]);
    __syncthreads(); /* warp 0 has read by_warp */
    for (int j = 0; j < w.n_rows; j++) {
        const bool more = j + 1 < w.n_rows;
        const int next_target = target_of(args, w, j + BUFFERS + 1);
        running next = {-INFINITY, 0};
        if (more)
            next = row_statistics(args, w, j + 1, target[1], by_warp);
        r = collect(args.n_ctas, by_cta[j % 2]);
        if (more)
            post(w, args.n_ctas, next, by_cta[(j + 1) % 2]);
        finish_row(args, w, j, target[0], r, scale);
        __syncthreads();
        if (threadIdx.x == 0)
            load_row(args, w, j + BUFFERS, target[BUFFERS]);
#pragma unroll
        for (int i = 0; i < BUFFERS; i++)
            target[i] = target[i + 1];
        target[BUFFERS] = next_target;
    }
#endif
}

/* The fewest CTAs whose buffers fit in shared memory. */
int ctas_for(const xp_cuda_device *device, int64_t n_vectors) {
    const int64_t room = ((int64_t)device->shared_bytes - STATIC_BYTES) / (16 * BUFFERS);
    int n_ctas = 1;
    while (n_ctas < MOST_CTAS && n_ctas * room < n_vectors)
        n_ctas *= 2;
    return n_ctas;
}

} // namespace

extern "C" bool xp_cuda_cross_entropy_cluster_serves(const xp_cuda_device *device,
                                                     const xp_cross_entropy_args *a) {
    const int64_t n_vectors = a->vocab / N;
    if (!device->wgmma || !device->bulk || a->dtype != XP_BF16 || !a->write_grad ||
        a->vocab % N != 0 || !xp_is_aligned(a->logits) || n_vectors < LEAST_VECTORS ||
        !xp_cuda_hopper_is_built())
        return false;
    const int n_ctas = ctas_for(device, n_vectors);
    const int64_t part = xp_ceil_div(n_vectors, n_ctas);
    return part * 16 * BUFFERS + STATIC_BYTES <= (int64_t)device->shared_bytes &&
           a->n_rows <= XP_CUDA_MAX_GRID / n_ctas && a->vocab <= INT32_MAX / 2;
}

extern "C" xp_status xp_cuda_cross_entropy_cluster(cudaStream_t stream,
                                                   const xp_cuda_device *device,
                                                   const xp_cross_entropy_args *a) {
    const int64_t n_vectors = a->vocab / N;
    const int n_ctas = ctas_for(device, n_vectors);
    loss_args args = {.logits = (bf16 *)a->logits,
                      .targets = a->targets,
                      .loss = a->loss,
                      .grad_scale = a->grad_scale,
                      .n_rows = (int)a->n_rows,
                      .n_vectors = (int)n_vectors,
                      .part = (int)xp_ceil_div(n_vectors, n_ctas),
                      .n_ctas = n_ctas,
                      .n_clusters = 1};
    const size_t shared = (size_t)args.part * 16 * BUFFERS;
    XP_TRY(xp_cuda_give_shared((const void *)cross_entropy_cluster, shared, "cross_entropy"));
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = (unsigned)n_ctas;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(a->n_rows * n_ctas));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    XP_TRY(xp_cuda_check(
        cudaOccupancyMaxActiveClusters(&args.n_clusters, cross_entropy_cluster, &config),
        "cross_entropy"));
    args.n_clusters = (int)xp_min_i64(args.n_clusters < 1 ? 1 : args.n_clusters, a->n_rows);
    config.gridDim = dim3((unsigned)(args.n_clusters * n_ctas));
    return xp_cuda_check(cudaLaunchKernelEx(&config, cross_entropy_cluster, args), "cross_entropy");
}
