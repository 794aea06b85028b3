/*
 * Cross-entropy of bf16 rows on Hopper: every logit is read from device memory once and replaced by its
 * gradient.
 *
 * A cluster owns a row, each of its CTAs a contiguous part. One thread queues the part's bulk loads in
 * chunks; as a chunk arrives in shared memory all threads take its maximum and sum of exponentials
 * (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). The CTAs exchange their
 * pairs through distributed shared memory, and each computes its part of the gradient. Parts are small
 * enough for three CTAs on an SM: while one waits for its loads or the exchange the others work. All
 * sums are in a fixed order.
 */
#include "ops/cuda/cross_entropy_cluster.h"
#include "ops/cuda/hopper.cuh"
#include "ops/cuda/launch.h"
#include "ops/cuda/vector.cuh"

namespace {

constexpr int THREADS = 384, WARPS = THREADS / 32, CTAS_AN_SM = 3;
constexpr int ROUNDS = 4, CHUNK = ROUNDS * THREADS; /* vectors of a thread, of all, in a chunk */
constexpr int MOST_CHUNKS = 10, MOST_CTAS = 8;
constexpr int N = 8; /* logits of a vector */
constexpr float LOG2_E = 1.44269504f;
constexpr int64_t STATIC_BYTES = 512;
/* Shorter rows take less time than a launch. */
constexpr int64_t LEAST_VECTORS = 1024;

struct loss_args {
    bf16 *logits;
    const int32_t *targets;
    float *loss;
    const float *grad_scale;
    int n_vectors, part, n_ctas; /* vectors of a row, of a CTA; CTAs of a cluster */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
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

/* ROUNDS vectors of a thread. Logits of -Inf stand where the part has ended: they add 0. */
static __device__ __forceinline__ void take(running &r, const vec<bf16, N> (&v)[ROUNDS]) {
    __nv_bfloat162 most = largest(v[0]);
#pragma unroll
    for (int i = 1; i < ROUNDS; i++)
        most = __hmax2(most, largest(v[i]));
    const float base = fmaxf(__low2float(most), __high2float(most)) * LOG2_E;
    if (base > r.base)
        r = running{base, r.sum * exp2_fast(r.base - base)};
    const float from = r.base == -INFINITY ? 0.0f : r.base;
#pragma unroll
    for (int i = 0; i < ROUNDS; i++)
        r.sum += exp_sum(v[i], from);
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

/* Thread 0: one barrier and one load a chunk. */
static __device__ void load_part(const bf16 *from, int n, vec<bf16, N> *part, uint64_t *full) {
    const int n_chunks = (n + CHUNK - 1) / CHUNK;
    for (int c = 0; c < n_chunks; c++)
        mbarrier_init(hopper_shared(&full[c]), 1);
    mbarrier_init_fence();
    for (int c = 0; c < n_chunks; c++) {
        const int first = c * CHUNK, count = n - first < CHUNK ? n - first : CHUNK;
        mbarrier_expect_tx(hopper_shared(&full[c]), (uint32_t)count * 16);
        bulk_load(hopper_shared(part + first), from + (int64_t)first * N, (uint32_t)count * 16,
                  hopper_shared(&full[c]));
    }
}

/* The sum over the cluster's row, to every thread. Each CTA writes its pair to all. */
static __device__ running over_cluster(running r, int rank, int n_ctas, running *by_warp,
                                       running *by_cta) {
    const int lane = (int)threadIdx.x % 32;
    r = over_lanes(r, 32);
    if (lane == 0)
        by_warp[threadIdx.x / 32] = r;
    __syncthreads();
    /* All CTAs have started: their shared memory may be written. */
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
    if (threadIdx.x < 32) {
        r = over_lanes(lane < WARPS ? by_warp[lane] : running{-INFINITY, 0}, 16);
        if (lane < n_ctas) {
            const uint32_t to = cta_shared_address(hopper_shared(&by_cta[rank]), lane);
            store_remote(to, r.base);
            store_remote(to + 4, r.sum);
        }
        __syncwarp();
    }
    cluster_sync();
    r = by_cta[0];
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
#endif

__global__ void __launch_bounds__(THREADS, CTAS_AN_SM) cross_entropy_cluster(loss_args args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint4 part_bytes[];
    __shared__ __align__(8) uint64_t full[MOST_CHUNKS];
    __shared__ running by_warp[WARPS], by_cta[MOST_CTAS];
    vec<bf16, N> *part = (vec<bf16, N> *)part_bytes;
    const int rank = cta_rank(), row = (int)blockIdx.x / args.n_ctas, first = rank * args.part;
    const int n = min(args.part, args.n_vectors - first);
    bf16 *logits = args.logits + ((int64_t)row * args.n_vectors + first) * N;
    const int64_t row_target = args.targets[row];
    if (row_target < 0 || row_target >= (int64_t)args.n_vectors * N) { /* of the whole cluster */
        if (rank == 0 && threadIdx.x == 0)
            args.loss[row] = row_target < 0 ? 0.0f : NAN;
        for (int v = (int)threadIdx.x; v < n; v += THREADS)
            store_vec<bf16, N>(logits + (int64_t)v * N, {});
        return;
    }
    if (threadIdx.x == 0)
        load_part(logits, n, part, full);
    asm volatile("barrier.cluster.arrive.release;" ::: "memory"); /* over_cluster waits */
    __syncthreads();
    running r = {-INFINITY, 0};
    for (int c = 0; c * CHUNK < n; c++) {
        vec<bf16, N> v[ROUNDS];
        mbarrier_wait(hopper_shared(&full[c]), 0);
#pragma unroll
        for (int i = 0; i < ROUNDS; i++) {
            const int at = c * CHUNK + i * THREADS + (int)threadIdx.x;
            v[i] =
                at < n
                    ? part[at]
                    : vec<bf16, N>{make_uint4(0xff80ff80u, 0xff80ff80u, 0xff80ff80u, 0xff80ff80u)};
        }
        take(r, v);
    }
    r = over_cluster(r, rank, args.n_ctas, by_warp, by_cta);
    const int64_t target = row_target - (int64_t)first * N;
    if (threadIdx.x == 0 && target >= 0 && target < (int64_t)n * N)
        args.loss[row] = (float)((double)r.base / (double)LOG2_E + log((double)r.sum) -
                                 (double)to_float(((const bf16 *)part)[target]));
    write_gradient(logits, n, part, r, *args.grad_scale, target);
#endif
}

/* The fewest CTAs whose parts leave room for CTAS_AN_SM on an SM. */
int ctas_for(const xp_cuda_device *device, int64_t n_vectors) {
    const int64_t of_sm =
        (int64_t)device->shared_bytes + 1024; /* 1 KB of each CTA is the system's */
    const int64_t room = (of_sm / CTAS_AN_SM - 1024 - STATIC_BYTES) / 16;
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
        a->vocab % N != 0 || !xp_is_aligned(a->logits) || n_vectors < LEAST_VECTORS)
        return false;
    const int n_ctas = ctas_for(device, n_vectors);
    const int64_t part = xp_ceil_div(n_vectors, n_ctas);
    return part <= MOST_CHUNKS * CHUNK &&
           part * 16 + STATIC_BYTES <= (int64_t)device->shared_bytes &&
           a->n_rows <= XP_CUDA_MAX_GRID / n_ctas;
}

extern "C" xp_status xp_cuda_cross_entropy_cluster(cudaStream_t stream,
                                                   const xp_cuda_device *device,
                                                   const xp_cross_entropy_args *a) {
    const int64_t n_vectors = a->vocab / N;
    const int n_ctas = ctas_for(device, n_vectors);
    const loss_args args = {.logits = (bf16 *)a->logits,
                            .targets = a->targets,
                            .loss = a->loss,
                            .grad_scale = a->grad_scale,
                            .n_vectors = (int)n_vectors,
                            .part = (int)xp_ceil_div(n_vectors, n_ctas),
                            .n_ctas = n_ctas};
    const size_t shared = (size_t)args.part * 16;
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
    return xp_cuda_check(cudaLaunchKernelEx(&config, cross_entropy_cluster, args), "cross_entropy");
}
