/* Cross-entropy over long rows: one pass for the softmax's maximum and sum (Milakov and Gimelshein,
 * "Online normalizer calculation for softmax", 2018), one for the gradient in place. */
#include "ops/cuda/cross_entropy_cluster.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/vector.cuh"

namespace {

/* Blocks of few or some threads share an SM, so that one loads while another takes exponentials or stores.
 * Many: of rows that fill the shared memory of an SM. */
constexpr int FEW_THREADS = 256, SOME_THREADS = 512, MANY_THREADS = 1024;
constexpr int AHEAD = 4; /* vectors that a thread loads ahead */

struct loss_args {
    const int32_t *targets;
    float *loss;
    const float *grad_scale;   /* NULL: no gradient */
    int64_t n_vectors, n_kept; /* of a row; the first n_kept stay in shared memory in between */
};

/* Sum of exp(x - max), and the maximum. Rows of -Inf or with NaN end as NaN, as in plain code. */
struct running {
    float max, sum;
};

static __device__ __forceinline__ running merged(running a, running b) {
    const float max = fmaxf(a.max, b.max);
    const float of_a = a.max == max ? a.sum : a.sum * __expf(a.max - max);
    const float of_b = b.max == max ? b.sum : b.sum * __expf(b.max - max);
    return running{max, of_a + of_b};
}

template <int N> static __device__ __forceinline__ void take(running &r, const float (&x)[N]) {
    float max = r.max;
#pragma unroll
    for (int k = 0; k < N; k++)
        max = fmaxf(max, x[k]);
    if (max != r.max)
        r = running{max, r.sum * __expf(r.max - max)};
    const float base = max == -INFINITY ? 0.0f : max; /* no Inf - Inf */
#pragma unroll
    for (int k = 0; k < N; k++)
        r.sum += __expf(x[k] - base);
}

static __device__ running over_block(running r, running *shared) {
    for (int step = 16; step > 0; step /= 2) {
        const running other = {__shfl_xor_sync(0xffffffffu, r.max, step),
                               __shfl_xor_sync(0xffffffffu, r.sum, step)};
        r = merged(r, other);
    }
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = r;
    __syncthreads();
    r = shared[0];
    for (int i = 1; i < (int)blockDim.x / 32; i++)
        r = merged(r, shared[i]);
    return r;
}

template <typename T, int N> static __device__ void clear_row(T *row, int64_t n_vectors) {
    const float zeros[N] = {};
    for (int64_t v = threadIdx.x; v < n_vectors; v += blockDim.x)
        store_vec<T, N>(row + v * N, zeros);
}

/* This thread's next AHEAD vectors; those before n_kept come out of shared memory. */
template <typename T, int N>
static __device__ __forceinline__ void load_ahead(const loss_args &args, const T *row,
                                                  const vec<T, N> *kept, int64_t first,
                                                  int64_t n_kept, vec<T, N> (&bits)[AHEAD]) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        const int64_t v = first + i * (int64_t)blockDim.x;
        if (v < args.n_vectors)
            bits[i] = v < n_kept ? kept[v] : load_vec<T, N>(row + v * N);
    }
}

/* One block per row. A row is read from device memory once, its part past n_kept a second time
 * (mostly from L2), and written once. */
template <typename T, int N, int THREADS>
__global__ void __launch_bounds__(THREADS, THREADS == FEW_THREADS    ? 5
                                           : THREADS == SOME_THREADS ? 3
                                                                     : 1)
    cross_entropy(loss_args args, T *logits) {
    extern __shared__ uint4 kept_bytes[];
    __shared__ running partial[THREADS / 32];
    vec<T, N> *kept = (vec<T, N> *)kept_bytes;
    T *row = logits + (int64_t)blockIdx.x * args.n_vectors * N;
    const int64_t target = args.targets[blockIdx.x];
    if (target < 0 || target >= args.n_vectors * N) {
        if (threadIdx.x == 0)
            args.loss[blockIdx.x] = target < 0 ? 0.0f : NAN;
        if (args.grad_scale != NULL)
            clear_row<T, N>(row, args.n_vectors);
        return;
    }
    const float target_logit = to_float(row[target]);
    running r = {-INFINITY, 0};
    for (int64_t first = threadIdx.x; first < args.n_vectors; first += AHEAD * blockDim.x) {
        vec<T, N> bits[AHEAD];
        load_ahead<T, N>(args, row, kept, first, 0, bits);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int64_t v = first + i * (int64_t)blockDim.x;
            if (v >= args.n_vectors)
                continue;
            if (v < args.n_kept)
                kept[v] = bits[i]; /* this thread reads it again, no other */
            float x[N];
            unpack(bits[i], x);
            take(r, x);
        }
    }
    r = over_block(r, partial); /* its barrier: all have read the target's logit */
    if (threadIdx.x == 0)
        args.loss[blockIdx.x] = (float)((double)r.max + log((double)r.sum) - (double)target_logit);
    if (args.grad_scale == NULL)
        return;
    const float scale = *args.grad_scale, inverse = scale / r.sum;
    for (int64_t first = threadIdx.x; first < args.n_vectors; first += AHEAD * blockDim.x) {
        vec<T, N> bits[AHEAD];
        load_ahead<T, N>(args, row, kept, first, args.n_kept, bits);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int64_t v = first + i * (int64_t)blockDim.x;
            if (v >= args.n_vectors)
                continue;
            float x[N];
            unpack(bits[i], x);
#pragma unroll
            for (int k = 0; k < N; k++) {
                x[k] = __expf(x[k] - r.max) * inverse;
                if (v * N + k == target)
                    x[k] -= scale;
            }
            store_vec<T, N>(row + v * N, x);
        }
    }
}

template <typename T, int N, int THREADS>
xp_status launch_rows(const xp_cross_entropy_args *a, const loss_args &args, cudaStream_t s) {
    const size_t shared = (size_t)args.n_kept * sizeof(T) * N;
    if (shared > 0)
        XP_TRY(xp_cuda_give_shared((const void *)cross_entropy<T, N, THREADS>, shared,
                                   "cross_entropy"));
    cross_entropy<T, N, THREADS><<<(unsigned)a->n_rows, THREADS, shared, s>>>(args, (T *)a->logits);
    return xp_cuda_check(cudaGetLastError(), "cross_entropy");
}

template <typename T, int N>
xp_status launch(const xp_cross_entropy_args *a, const xp_cuda_device *device, cudaStream_t s) {
    const int64_t n_vectors = a->vocab / N, vector_bytes = (int64_t)sizeof(T) * N;
    const int64_t room = ((int64_t)device->shared_bytes - 1024) / vector_bytes;
    const loss_args args = {.targets = a->targets,
                            .loss = a->loss,
                            .grad_scale = a->write_grad ? a->grad_scale : NULL,
                            .n_vectors = n_vectors,
                            .n_kept = a->write_grad ? xp_min_i64(n_vectors, room) : 0};
    if (n_vectors <= 8 * FEW_THREADS)
        return launch_rows<T, N, FEW_THREADS>(a, args, s);
    if (2 * args.n_kept <= room) /* two blocks fit on an SM */
        return launch_rows<T, N, SOME_THREADS>(a, args, s);
    return launch_rows<T, N, MANY_THREADS>(a, args, s);
}

} // namespace

extern "C" xp_status xp_cuda_cross_entropy(xp_stream *stream, const xp_cross_entropy_args *a) {
    const xp_cuda_device *device = xp_cuda_device_of(stream);
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (a->n_rows == 0)
        return XP_OK;
    if (xp_cuda_cross_entropy_cluster_serves(device, a))
        return xp_cuda_cross_entropy_cluster(s, device, a);
    const bool aligned = xp_is_aligned(a->logits);
    if (a->dtype == XP_F32)
        return aligned && a->vocab % 4 == 0 ? launch<float, 4>(a, device, s)
                                            : launch<float, 1>(a, device, s);
    return aligned && a->vocab % 8 == 0 ? launch<bf16, 8>(a, device, s)
                                        : launch<bf16, 1>(a, device, s);
}
