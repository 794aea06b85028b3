/* h = silu(a) * b * p over assignment rows, and its backward with dp: one pass over memory each. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/silu.cuh"
#include "ops/cuda/vector.cuh"

namespace {

/*
 * Rows of 2 to 16 warps of 16-byte vectors: a block owns a row and a thread a vector. Other wide rows,
 * forward: a thread owns a vector counted over all rows, so that neighbouring threads touch neighbouring
 * memory whatever the width. Everything else: a warp owns a row, so that p is read once and dp is a sum
 * over lanes; a lane loads AHEAD vectors of every input before it uses the first. Loads and stores carry
 * no cache hints: on an H200 evict-first loads cost 6 %.
 *
 * Where only the device knows how many rows there are, the bound may be twice as large, and blocks
 * without work cost 0.6 ns each. Forward then has at most GRID_AN_SM blocks an SM, and each takes its
 * part of the rows there are: work that is near in time stays near in memory, and the parts are small
 * enough for the last ones to end together. Backward has a block for every four rows of the bound: it
 * has few blocks, and a warp that goes on to another row loses more than they cost.
 */
constexpr int THREADS = 128, AHEAD = 3, GRID_AN_SM = 256;
constexpr int MIN_ROW_VECTORS = 33, MAX_ROW_VECTORS = 512; /* of a row that a block owns */

struct rows {
    int64_t n_rows;
    const int32_t *n_rows_device;
    int64_t ld, ldd; /* elements between rows of a, b and of da, db */
    int n_vectors;   /* of a row */
    const float *p;
};

static __device__ __forceinline__ int64_t valid_rows(const rows &r) {
    if (r.n_rows_device == NULL)
        return r.n_rows;
    const int64_t n = *r.n_rows_device;
    return n < r.n_rows ? n : r.n_rows;
}

/* The units of this block: [first, last) of n, in order over the grid. */
struct span {
    int64_t first, last;
};
static __device__ __forceinline__ span block_span(int64_t n, int unit) {
    const int64_t units = (n + unit - 1) / unit, each = (units + gridDim.x - 1) / gridDim.x;
    const int64_t first = blockIdx.x * each * unit, last = first + each * unit;
    return {first, last < n ? last : n};
}

/* Vector i of the output, counted over all rows; fewer than 2^32 vectors. */
template <typename T, int N>
static __device__ __forceinline__ void forward_vector(const rows &r, uint32_t i,
                                                      const T *__restrict__ a,
                                                      const T *__restrict__ b, T *__restrict__ h) {
    const uint32_t width = (uint32_t)r.n_vectors, row = i / width;
    const int64_t from = row * r.ld + (int64_t)(i - row * width) * N;
    const vec<T, N> va = load_vec<T, N>(a + from), vb = load_vec<T, N>(b + from);
    const float p = r.p == NULL ? 1.0f : r.p[row];
    float x[N], y[N];
    unpack(va, x);
    unpack(vb, y);
#pragma unroll
    for (int k = 0; k < N; k++)
        x[k] = silu_gate_prob<T>(x[k], y[k], p);
    store_vec<T, N>(h + (int64_t)i * N, x);
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    forward_flat(rows r, const T *__restrict__ a, const T *__restrict__ b, T *__restrict__ h) {
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i < (uint64_t)r.n_rows * (uint32_t)r.n_vectors)
        forward_vector<T, N>(r, i, a, b, h);
}

/* A row a block, which no division has to find. */
template <typename T, int N>
__global__ void __launch_bounds__(MAX_ROW_VECTORS)
    forward_rows(rows r, const T *__restrict__ a, const T *__restrict__ b, T *__restrict__ h) {
    const int64_t row = blockIdx.x;
    if ((int)threadIdx.x >= r.n_vectors)
        return;
    const int64_t from = row * r.ld + (int64_t)threadIdx.x * N;
    const vec<T, N> va = load_vec<T, N>(a + from), vb = load_vec<T, N>(b + from);
    const float p = r.p == NULL ? 1.0f : r.p[row];
    float x[N], y[N];
    unpack(va, x);
    unpack(vb, y);
#pragma unroll
    for (int k = 0; k < N; k++)
        x[k] = silu_gate_prob<T>(x[k], y[k], p);
    store_vec<T, N>(h + (row * r.n_vectors + threadIdx.x) * N, x);
}

/* The same as forward_flat for a number of rows that is on the device. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    forward_valid(rows r, const T *__restrict__ a, const T *__restrict__ b, T *__restrict__ h) {
    const span mine = block_span(valid_rows(r) * r.n_vectors, THREADS);
    for (int64_t i = mine.first + threadIdx.x; i < mine.last; i += THREADS)
        forward_vector<T, N>(r, (uint32_t)i, a, b, h);
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    forward(rows r, const T *__restrict__ a, const T *__restrict__ b, T *__restrict__ h) {
    const int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= valid_rows(r))
        return;
    const float p = r.p == NULL ? 1.0f : r.p[row];
    a += row * r.ld;
    b += row * r.ld;
    h += row * r.n_vectors * N;
    for (int first = (int)threadIdx.x % 32; first < r.n_vectors; first += 32 * AHEAD) {
        vec<T, N> va[AHEAD], vb[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (first + 32 * i < r.n_vectors) {
                va[i] = load_vec<T, N>(a + (first + 32 * i) * N);
                vb[i] = load_vec<T, N>(b + (first + 32 * i) * N);
            }
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (first + 32 * i < r.n_vectors) {
                float x[N], y[N];
                unpack(va[i], x);
                unpack(vb[i], y);
#pragma unroll
                for (int k = 0; k < N; k++)
                    x[k] = silu_gate_prob<T>(x[k], y[k], p);
                store_vec<T, N>(h + (first + 32 * i) * N, x);
            }
    }
}

/* One vector: da, db, h (each may lie on its input: everything is loaded before) and its part of
 * dp. */
template <typename T, int N>
static __device__ __forceinline__ float backward_vector(const vec<T, N> &va, const vec<T, N> &vb,
                                                        const vec<T, N> &vd, float p, T *da, T *db,
                                                        T *h) {
    float a[N], b[N], d[N], product[N];
    unpack(va, a);
    unpack(vb, b);
    unpack(vd, d);
    const float dp = silu_gate_prob_gradients<T>(a, b, d, p, product);
    store_vec<T, N>(da, a);
    store_vec<T, N>(db, b);
    if (h != NULL)
        store_vec<T, N>(h, product);
    return dp;
}

/* One row, by the warp. dp is summed by 32 vectors at a time (256 columns of bf16), and these sums in
 * order: a tile of a GEMM has the same columns, and its epilogue sums them likewise. */
template <typename T, int N>
static __device__ __forceinline__ void backward_row(const rows &r, int64_t row, const T *a,
                                                    const T *b, const T *dh, T *da, T *db, T *h,
                                                    float *dp) {
    const float p = r.p == NULL ? 1.0f : r.p[row];
    const int64_t packed = row * r.n_vectors * N;
    a += row * r.ld;
    b += row * r.ld;
    da += row * r.ldd;
    db += row * r.ldd;
    float sum = 0;
    for (int base = 0; base < r.n_vectors; base += 32 * AHEAD) {
        const int first = base + (int)threadIdx.x % 32;
        vec<T, N> va[AHEAD], vb[AHEAD], vd[AHEAD];
        float part[AHEAD] = {};
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (first + 32 * i < r.n_vectors) {
                const int at = (first + 32 * i) * N;
                va[i] = load_vec<T, N>(a + at);
                vb[i] = load_vec<T, N>(b + at);
                vd[i] = load_vec<T, N>(dh + packed + at);
            }
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (first + 32 * i < r.n_vectors) {
                const int at = (first + 32 * i) * N;
                part[i] = backward_vector<T, N>(va[i], vb[i], vd[i], p, da + at, db + at,
                                                h == NULL ? NULL : h + packed + at);
            }
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            part[i] = warp_sum(part[i]);
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            sum += part[i];
    }
    if (dp != NULL && threadIdx.x % 32 == 0)
        dp[row] = sum;
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    backward(rows r, const T *a, const T *b, const T *dh, T *da, T *db, T *h, float *dp) {
    const int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row < valid_rows(r))
        backward_row<T, N>(r, row, a, b, dh, da, db, h, dp);
}

/* A row a block: dp is the sum of its warps' sums in order, as backward_row() adds them. */
template <typename T, int N>
__global__ void __launch_bounds__(MAX_ROW_VECTORS)
    backward_rows(rows r, const T *a, const T *b, const T *dh, T *da, T *db, T *h, float *dp) {
    __shared__ float sums[MAX_ROW_VECTORS / 32];
    const int64_t row = blockIdx.x;
    const int v = (int)threadIdx.x;
    float part = 0;
    if (v < r.n_vectors) {
        const int64_t from = row * r.ld + v * N, to = row * r.ldd + v * N,
                      packed = (row * r.n_vectors + v) * N;
        const vec<T, N> va = load_vec<T, N>(a + from), vb = load_vec<T, N>(b + from),
                        vd = load_vec<T, N>(dh + packed);
        const float p = r.p == NULL ? 1.0f : r.p[row];
        part =
            backward_vector<T, N>(va, vb, vd, p, da + to, db + to, h == NULL ? NULL : h + packed);
    }
    if (dp == NULL)
        return;
    part = warp_sum(part);
    if (v % 32 == 0)
        sums[v / 32] = part;
    __syncthreads();
    if (v > 0)
        return;
    float sum = 0;
    for (int i = 0; i < (int)blockDim.x / 32; i++)
        sum += sums[i];
    dp[row] = sum;
}

rows rows_of(const xp_silu_gate_prob_args *args, int64_t ldd, int n) {
    return (rows){.n_rows = args->n_rows,
                  .n_rows_device = args->n_rows_device,
                  .ld = args->ld,
                  .ldd = ldd,
                  .n_vectors = (int)(args->dim / n),
                  .p = args->p};
}

/* Whether a block owns a row: all rows are valid, and of a width that fills one. */
bool has_row_blocks(const rows &r) {
    return r.n_rows_device == NULL && r.n_vectors >= MIN_ROW_VECTORS &&
           r.n_vectors <= MAX_ROW_VECTORS && r.n_rows <= INT32_MAX;
}

unsigned row_threads(const rows &r) {
    return (unsigned)xp_ceil_div(r.n_vectors, 32) * 32;
}

/* A launch: where it is queued, and how many SMs there are. */
struct target {
    cudaStream_t stream;
    int n_sms;
};

template <typename T, int N>
xp_status launch_forward(const xp_silu_gate_prob_args *args, const target &t) {
    const int64_t n_vectors = args->n_rows * (args->dim / N);
    const cudaStream_t stream = t.stream;
    const rows all = rows_of(args, 0, N);
    if (N > 1 && has_row_blocks(all)) {
        forward_rows<T, N><<<(unsigned)all.n_rows, row_threads(all), 0, stream>>>(
            all, (const T *)args->a, (const T *)args->b, (T *)args->h);
        return xp_cuda_check(cudaGetLastError(), "silu_gate_prob_forward");
    }
    if (N > 1 && n_vectors < UINT32_MAX - THREADS) {
        const int64_t n_blocks = xp_ceil_div(n_vectors, THREADS);
        const T *a = (const T *)args->a, *b = (const T *)args->b;
        if (args->n_rows_device == NULL)
            forward_flat<T, N><<<(unsigned)n_blocks, THREADS, 0, stream>>>(all, a, b, (T *)args->h);
        else
            forward_valid<T, N><<<(unsigned)xp_min_i64(n_blocks, (int64_t)t.n_sms * GRID_AN_SM),
                                  THREADS, 0, stream>>>(all, a, b, (T *)args->h);
        return xp_cuda_check(cudaGetLastError(), "silu_gate_prob_forward");
    }
    const unsigned n_blocks = (unsigned)xp_ceil_div(args->n_rows, THREADS / 32);
    forward<T, N><<<n_blocks, THREADS, 0, stream>>>(all, (const T *)args->a, (const T *)args->b,
                                                    (T *)args->h);
    return xp_cuda_check(cudaGetLastError(), "silu_gate_prob_forward");
}

template <typename T, int N>
xp_status launch_backward(const xp_silu_gate_prob_backward_args *args, cudaStream_t stream) {
    const xp_silu_gate_prob_args *f = &args->forward;
    const rows r = rows_of(f, args->ldd, N);
    if (N > 1 && has_row_blocks(r)) {
        backward_rows<T, N><<<(unsigned)r.n_rows, row_threads(r), 0, stream>>>(
            r, (const T *)f->a, (const T *)f->b, (const T *)args->dh, (T *)args->da, (T *)args->db,
            (T *)f->h, args->dp);
        return xp_cuda_check(cudaGetLastError(), "silu_gate_prob_backward");
    }
    const unsigned n_blocks = (unsigned)xp_ceil_div(f->n_rows, THREADS / 32);
    backward<T, N><<<n_blocks, THREADS, 0, stream>>>(r, (const T *)f->a, (const T *)f->b,
                                                     (const T *)args->dh, (T *)args->da,
                                                     (T *)args->db, (T *)f->h, args->dp);
    return xp_cuda_check(cudaGetLastError(), "silu_gate_prob_backward");
}

/* Whether all rows allow 16-byte accesses. */
bool is_wide(const xp_silu_gate_prob_args *args) {
    const int64_t n = args->dtype == XP_F32 ? 4 : 8;
    return args->dim % n == 0 && args->ld % n == 0 && xp_is_aligned(args->a) &&
           xp_is_aligned(args->b) && xp_is_aligned(args->h);
}

} // namespace

extern "C" xp_status xp_cuda_silu_gate_prob_forward(xp_stream *stream,
                                                    const xp_silu_gate_prob_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (args->n_rows == 0 || args->dim == 0)
        return XP_OK;
    const target t = {s, xp_cuda_device_of(stream)->n_sms};
    if (args->dtype == XP_F32)
        return is_wide(args) ? launch_forward<float, 4>(args, t)
                             : launch_forward<float, 1>(args, t);
    return is_wide(args) ? launch_forward<bf16, 8>(args, t) : launch_forward<bf16, 1>(args, t);
}

extern "C" xp_status xp_cuda_silu_gate_prob_backward(xp_stream *stream,
                                                     const xp_silu_gate_prob_backward_args *args) {
    const xp_silu_gate_prob_args *f = &args->forward;
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (f->n_rows == 0)
        return XP_OK;
    if (f->dim == 0) /* dp of valid rows: a sum over nothing */
        return args->dp == NULL || f->n_rows_device != NULL
                   ? XP_OK
                   : xp_cuda_check(cudaMemsetAsync(args->dp, 0, (size_t)f->n_rows * 4, s),
                                   "silu_gate_prob_backward");
    const bool wide = is_wide(f) && args->ldd % (f->dtype == XP_F32 ? 4 : 8) == 0 &&
                      xp_is_aligned(args->da) && xp_is_aligned(args->db) && xp_is_aligned(args->dh);
    if (f->dtype == XP_F32)
        return wide ? launch_backward<float, 4>(args, s) : launch_backward<float, 1>(args, s);
    return wide ? launch_backward<bf16, 8>(args, s) : launch_backward<bf16, 1>(args, s);
}
