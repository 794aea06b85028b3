/* Embedding: rows of a table by id, and the sum of their gradients in ascending token order. */
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/vector.cuh"

namespace {

constexpr int THREADS = 128, COUNT_THREADS = 256, SCAN_THREADS = 1024, SCAN_EACH = 16;
/* A block of place() owns TOKENS tokens; PARTS threads share the comparisons of each. */
constexpr int TOKENS = 64, PARTS = 16, TILE = TOKENS * PARTS;
/* A block of sum_rows() owns IDS neighbouring ids. */
constexpr int SUM_THREADS = 256, IDS = 8;

/* A warp copies a token's row, W a word of any type that divides the row. An id outside the
 * vocabulary gives a row of NaN: the loss shows it, no other memory is read. */
template <typename W>
__global__ void __launch_bounds__(THREADS)
    forward(int64_t n_tokens, int64_t n_words, int64_t vocab, const int32_t *ids, const W *table,
            W *x, W nan) {
    const int64_t t = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (t >= n_tokens)
        return;
    const int64_t id = ids[t];
    const bool known = id >= 0 && id < vocab;
#pragma unroll 8
    for (int64_t i = threadIdx.x % 32; i < n_words; i += 32)
        x[t * n_words + i] = known ? table[id * n_words + i] : nan;
}

static __device__ __forceinline__ bool is_known(int32_t id, int64_t vocab) {
    return id >= 0 && id < vocab;
}

/* start: [V + 1], zero before; after: entry id + 1 is how often id occurs. */
__global__ void count(int64_t n_tokens, int64_t vocab, const int32_t *ids, int32_t *start) {
    const int64_t t = (int64_t)blockIdx.x * COUNT_THREADS + threadIdx.x;
    if (t < n_tokens && is_known(ids[t], vocab))
        atomicAdd(&start[ids[t] + 1], 1);
}

/* One block: inclusive prefix sums of n integers in place. A warp owns SCAN_EACH * 32 neighbours at a
 * time, loaded before the first is used. */
__global__ void __launch_bounds__(SCAN_THREADS) scan(int64_t n, int32_t *x) {
    __shared__ int32_t of_warp[SCAN_THREADS / 32];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int32_t before = 0;
    for (int64_t first = 0; first < n; first += SCAN_THREADS * SCAN_EACH) {
        const int64_t at = first + (int64_t)warp * 32 * SCAN_EACH + lane;
        int32_t sum[SCAN_EACH], carry = 0;
#pragma unroll
        for (int k = 0; k < SCAN_EACH; k++)
            sum[k] = at + 32 * k < n ? x[at + 32 * k] : 0;
#pragma unroll
        for (int k = 0; k < SCAN_EACH; k++) {
            for (int step = 1; step < 32; step *= 2) {
                const int32_t other = __shfl_up_sync(0xffffffffu, sum[k], step);
                sum[k] += lane >= step ? other : 0;
            }
            sum[k] += carry;
            carry = __shfl_sync(0xffffffffu, sum[k], 31);
        }
        if (lane == 31)
            of_warp[warp] = carry;
        __syncthreads();
        int32_t warps_before = 0, all = 0;
        for (int w = 0; w < SCAN_THREADS / 32; w++) {
            warps_before += w < warp ? of_warp[w] : 0;
            all += of_warp[w];
        }
#pragma unroll
        for (int k = 0; k < SCAN_EACH; k++)
            if (at + 32 * k < n)
                x[at + 32 * k] = before + warps_before + sum[k];
        before += all;
        __syncthreads();
    }
}

/*
 * order[start[id] + (tokens before t with the same id)] = t. The ids before pass through shared
 * memory, TILE at a time; thread (part, token) compares its token with part's share of them. T^2 / 2
 * comparisons of integers, and the order is that of the tokens by construction.
 */
__global__ void __launch_bounds__(TILE) place(int64_t n_tokens, int64_t vocab, const int32_t *ids,
                                              const int32_t *start, int32_t *order) {
    __shared__ int4 tile[TILE / 4];
    __shared__ int32_t of_part[PARTS][TOKENS];
    const int local = (int)threadIdx.x % TOKENS, part = (int)threadIdx.x / TOKENS;
    const int64_t own = (int64_t)blockIdx.x * TOKENS, t = own + local;
    const int32_t id = t < n_tokens ? ids[t] : -1;
    int32_t rank = 0;
    for (int64_t first = 0; first < own; first += TILE) {
        const int64_t i = first + threadIdx.x;
        __syncthreads();
        ((int32_t *)tile)[threadIdx.x] = i < own ? ids[i] : INT32_MIN; /* no known id */
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TOKENS / 4; k++) {
            const int4 other = tile[part * (TOKENS / 4) + k];
            rank += (other.x == id) + (other.y == id) + (other.z == id) + (other.w == id);
        }
    }
    __syncthreads();
    if (part == 0)
        ((int32_t *)tile)[local] = id;
    __syncthreads();
    for (int i = part * (TOKENS / PARTS); i < (part + 1) * (TOKENS / PARTS) && i < local; i++)
        rank += ((int32_t *)tile)[i] == id;
    of_part[part][local] = rank;
    __syncthreads();
    if (part != 0 || t >= n_tokens || !is_known(id, vocab))
        return;
    rank = 0;
    for (int k = 0; k < PARTS; k++)
        rank += of_part[k][local];
    order[start[id] + rank] = (int32_t)t;
}

struct sum_args {
    int64_t n_vectors; /* of a row */
    const int32_t *start, *order;
    bool acc;
};

/* The sum of one vector over the tokens [first, last) of `order`. AHEAD tokens are loaded at a time,
 * the next numbers of tokens with them: a frequent id has hundreds. */
template <typename X, int N>
static __device__ __forceinline__ void add_tokens(const sum_args &args, const X *dx, int64_t v,
                                                  int32_t first, int32_t last, float (&sum)[N]) {
    constexpr int AHEAD = 8;
    int32_t token[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; a++)
        token[a] = first + a < last ? args.order[first + a] : 0;
    for (int32_t i = first; i < last; i += AHEAD) {
        vec<X, N> rows[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            if (i + a < last)
                rows[a] = load_vec<X, N>(dx + (token[a] * args.n_vectors + v) * N);
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            token[a] = i + AHEAD + a < last ? args.order[i + AHEAD + a] : 0;
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            if (i + a < last) {
                float x[N];
                unpack(rows[a], x);
#pragma unroll
                for (int k = 0; k < N; k++)
                    sum[k] += x[k];
            }
    }
}

/* A block owns the rows of IDS ids, a thread vectors of them. */
template <typename X, typename G, int N>
__global__ void __launch_bounds__(SUM_THREADS)
    sum_rows(sum_args args, int64_t vocab, const X *dx, G *dtable) {
    const int64_t own = (int64_t)blockIdx.x * IDS;
    int32_t start[IDS + 1];
#pragma unroll
    for (int i = 0; i <= IDS; i++)
        start[i] = args.start[own + i < vocab ? own + i : vocab];
#pragma unroll 1
    for (int64_t v = threadIdx.x; v < args.n_vectors; v += SUM_THREADS)
#pragma unroll
        for (int i = 0; i < IDS; i++) {
            const bool none = start[i] == start[i + 1];
            if (own + i >= vocab || (args.acc && none))
                continue;
            G *to = dtable + ((own + i) * args.n_vectors + v) * N;
            float sum[N] = {};
            if (args.acc)
                load_many<G, N>(to, sum);
            if (!none)
                add_tokens<X, N>(args, dx, v, start[i], start[i + 1], sum);
            store_many<G, N>(to, sum);
        }
}

template <typename X, typename G>
xp_status launch_sum(const xp_embed_args *a, const int32_t *start, cudaStream_t s) {
    constexpr int WIDE = xp_wide<X>();
    const bool wide = a->dim % WIDE == 0 && a->dim % xp_wide<G>() == 0 && xp_is_aligned(a->dx) &&
                      xp_is_aligned(a->dtable);
    const sum_args args = {.n_vectors = wide ? a->dim / WIDE : a->dim,
                           .start = start,
                           .order = a->scratch,
                           .acc = a->acc};
    const auto kernel = wide ? sum_rows<X, G, WIDE> : sum_rows<X, G, 1>;
    kernel<<<(unsigned)xp_ceil_div(a->vocab, IDS), SUM_THREADS, 0, s>>>(
        args, a->vocab, (const X *)a->dx, (G *)a->dtable);
    return xp_cuda_check(cudaGetLastError(), "embed_backward");
}

template <typename W> xp_status launch_forward(const xp_embed_args *a, W nan, cudaStream_t s) {
    const int64_t row_bytes = a->dim * (int64_t)xp_dtype_bytes(a->dtype);
    const unsigned n_blocks = (unsigned)xp_ceil_div(a->n_tokens, THREADS / 32);
    forward<W><<<n_blocks, THREADS, 0, s>>>(a->n_tokens, row_bytes / (int64_t)sizeof(W), a->vocab,
                                            a->ids, (const W *)a->table, (W *)a->x, nan);
    return xp_cuda_check(cudaGetLastError(), "embed_forward");
}

/* Fill start and order (both in scratch). */
xp_status sort_tokens(const xp_embed_args *a, int32_t *start, cudaStream_t s) {
    XP_TRY(xp_cuda_check(cudaMemsetAsync(start, 0, sizeof *start * (size_t)(a->vocab + 1), s),
                         "embed_backward"));
    if (a->n_tokens == 0)
        return XP_OK;
    count<<<(unsigned)xp_ceil_div(a->n_tokens, COUNT_THREADS), COUNT_THREADS, 0, s>>>(
        a->n_tokens, a->vocab, a->ids, start);
    scan<<<1, SCAN_THREADS, 0, s>>>(a->vocab + 1, start);
    place<<<(unsigned)xp_ceil_div(a->n_tokens, TOKENS), TILE, 0, s>>>(a->n_tokens, a->vocab, a->ids,
                                                                      start, a->scratch);
    return xp_cuda_check(cudaGetLastError(), "embed_backward");
}

} // namespace

extern "C" xp_status xp_cuda_embed_forward(xp_stream *stream, const xp_embed_args *a) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (a->n_tokens == 0 || a->dim == 0)
        return XP_OK;
    const int64_t row_bytes = a->dim * (int64_t)xp_dtype_bytes(a->dtype);
    const uint32_t ones = 0xffffffffu;
    if (row_bytes % 16 == 0 && xp_is_aligned(a->table) && xp_is_aligned(a->x))
        return launch_forward<uint4>(a, make_uint4(ones, ones, ones, ones), s);
    if (a->dtype == XP_F32)
        return launch_forward<uint32_t>(a, ones, s);
    return launch_forward<uint16_t>(a, 0xffffu, s);
}

extern "C" xp_status xp_cuda_embed_backward(xp_stream *stream, const xp_embed_args *a) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (a->vocab == 0 || a->dim == 0)
        return XP_OK;
    int32_t *start = a->scratch + a->n_tokens;
    if (!a->sorted)
        XP_TRY(sort_tokens(a, start, s));
    if (a->sort_only)
        return XP_OK;
    if (a->dtype == XP_F32)
        return a->dtable_dtype == XP_F32 ? launch_sum<float, float>(a, start, s)
                                         : launch_sum<float, bf16>(a, start, s);
    return a->dtable_dtype == XP_F32 ? launch_sum<bf16, float>(a, start, s)
                                     : launch_sum<bf16, bf16>(a, start, s);
}
