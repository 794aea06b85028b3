/*
 * Row kernels of a group of one rank. A block takes a row at a time; each thread copies or adds 16
 * bytes of it, or one element where rows are not multiples of 16 bytes. Grids are bounded and stride
 * over the rows. No block waits for another.
 */
#include "ep/local/cuda/kernels.h"

#include "ep/common/cuda/plan_common.cuh"
#include "ops/cuda/vector.cuh"

enum { N_THREADS = 256, LOADS_IN_FLIGHT = 8 };

/* recv[i] = x[send_token[first + i]]. Traffic: each row is read and written once. */
template <typename V>
static __global__ void __launch_bounds__(N_THREADS)
    local_dispatch_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t n_each, const V *x,
                          V *recv) {
    const int first = p.send_round[round * p.n_ranks + p.rank],
              end = p.send_round[(round + 1) * p.n_ranks + p.rank];
    for (int64_t row = first + blockIdx.x; row < end; row += gridDim.x) {
        const V *from = x + (int64_t)p.send_token[row] * n_each;
        V *to = recv + (row - first) * n_each;
        for (int64_t i = threadIdx.x; i < n_each; i += N_THREADS)
            to[i] = from[i];
    }
    if (blockIdx.x == 0 && threadIdx.x == 0 && end > first)
        atomicAdd(&p.status->rows_kept, (unsigned long long)(end - first));
}

/* sum (+)= rows base[index[j]], j ascending; several loads in flight. */
template <typename T, int N>
static __device__ __forceinline__ void add_rows(float (&sum)[N], const T *base, int64_t dim,
                                                const int32_t *index, int begin, int end) {
    for (int j = begin; j < end; j += LOADS_IN_FLIGHT) {
        vec<T, N> row[LOADS_IN_FLIGHT];
#pragma unroll
        for (int k = 0; k < LOADS_IN_FLIGHT; k++)
            if (j + k < end)
                row[k] = load_vec<T, N>(base + (int64_t)index[j + k] * dim);
#pragma unroll
        for (int k = 0; k < LOADS_IN_FLIGHT; k++) {
            if (j + k < end) {
                float value[N];
                unpack(row[k], value);
#pragma unroll
                for (int i = 0; i < N; i++) /* the first row is the start, not added to zero */
                    sum[i] = j + k == begin ? value[i] : sum[i] + value[i];
            }
        }
    }
}

/* The value of one row at a column: its assignments added up and rounded to the row type. */
template <typename T, int N>
static __device__ __forceinline__ void row_value(float (&value)[N], const xp_ep_cuda_plan &p,
                                                 int64_t dim, int row, const T *y) {
    const int32_t *first = p.recv_assignment + row; /* one rank: its recv rows are its send rows */
#pragma unroll
    for (int i = 0; i < N; i++)
        value[i] = 0;
    add_rows<T, N>(value, y, dim, p.assignment_pos, first[0], first[1]);
#pragma unroll
    for (int i = 0; i < N; i++)
        value[i] = rounded<T>(value[i]);
}

/* d_topk_weight of a token, a thread an assignment: of its assignment row; 0 for -1. */
static __device__ __forceinline__ void token_weights(const xp_ep_cuda_plan &p, int64_t t,
                                                     const float *d_weight, float *d_topk_weight) {
    const int begin = p.token_first[t], end = p.token_first[t + 1];
    for (int k = (int)threadIdx.x; k < p.top_k; k += (int)blockDim.x) {
        const int entry = (int)(t * p.top_k + k);
        float value = 0;
        for (int i = begin; i < end; i++) {
            const int32_t *first = p.recv_assignment + p.token_row[i];
            for (int a = first[0]; a < first[1]; a++)
                if (p.assignment_entry[a] == entry)
                    value = d_weight[p.assignment_pos[a]];
        }
        d_topk_weight[entry] = value;
    }
}

/*
 * out[t] = sum over the token's rows of the rounds so far. One block per token. In round 0 every
 * token is written, later only those with a row of this round.
 */
template <typename T, int N>
static __global__ void __launch_bounds__(N_THREADS)
    combine_kernel(const xp_ep_cuda_plan p, int64_t round, int64_t dim, const T *y, T *out,
                   const float *d_weight, float *d_topk_weight) {
    for (int64_t t = blockIdx.x; t < p.n_tokens; t += gridDim.x) {
        if (d_topk_weight != nullptr)
            token_weights(p, t, d_weight, d_topk_weight);
        const int begin = p.token_first[t], end = p.token_first[t + 1];
        bool fresh = round == 0;
        for (int i = begin; i < end && !fresh; i++) {
            const int row = p.token_row[i], d = owner_of(p.send_row_base, row);
            fresh = row >= p.send_round[round * p.n_ranks + d] &&
                    row < p.send_round[(round + 1) * p.n_ranks + d];
        }
        if (!fresh)
            continue;
        for (int64_t column = (int64_t)threadIdx.x * N; column < dim;
             column += (int64_t)blockDim.x * N) {
            float sum[N] = {};
            bool any = false;
            for (int i = begin; i < end; i++) {
                const int row = p.token_row[i];
                if (row >= p.send_round[(round + 1) * p.n_ranks + owner_of(p.send_row_base, row)])
                    continue; /* of a later round */
                float value[N];
                row_value<T, N>(value, p, dim, row, y + column);
#pragma unroll
                for (int k = 0; k < N; k++)
                    sum[k] = any ? sum[k] + value[k] : value[k];
                any = true;
            }
            store_vec<T, N>(out + t * dim + column, sum);
        }
    }
}

/* Tokens whose assignment rows a block looks up before it adds any; top_k of the kernel for one round. */
enum { BATCH_TOKENS = 4, BATCH_TOP_K = 256 };

/* Shared memory of the kernel below: assignments of the batch's tokens, [n_each, top_k] each. */
struct batch_lists {
    int32_t *count, *pos, *entry; /* count: [n_each] */
};

static __device__ __forceinline__ batch_lists lists_of(const xp_ep_cuda_plan &p, int n_each) {
    extern __shared__ int32_t shared_lists[];
    int32_t *pos = shared_lists + n_each;
    return {shared_lists, pos, pos + n_each * p.top_k};
}

/* By all threads, an assignment each: where the rows of n tokens from `first` are. */
static __device__ __forceinline__ void look_up(const xp_ep_cuda_plan &p, int64_t first, int n,
                                               const batch_lists &lists) {
    for (int i = (int)threadIdx.x; i < n * p.top_k; i += (int)blockDim.x) {
        const int token = i / p.top_k, k = i % p.top_k;
        const int begin = p.token_first[first + token], end = p.token_first[first + token + 1];
        int from = 0, count = 0;
        if (end > begin) { /* one rank: a token has one row at most */
            const int32_t *of_row = p.recv_assignment + p.token_row[begin];
            from = of_row[0];
            count = of_row[1] - from;
        }
        if (k == 0)
            lists.count[token] = count;
        if (k < count) {
            lists.pos[i] = p.assignment_pos[from + k];
            lists.entry[i] = p.assignment_entry[from + k];
        }
    }
}

/* d_topk_weight of the batch, a thread an assignment: of its assignment row; 0 for -1. */
static __device__ __forceinline__ void batch_weights(const xp_ep_cuda_plan &p, int64_t first, int n,
                                                     const batch_lists &lists,
                                                     const float *d_weight, float *d_topk_weight) {
    for (int i = (int)threadIdx.x; i < n * p.top_k; i += (int)blockDim.x) {
        const int token = i / p.top_k, at = token * p.top_k;
        const int64_t entry = first * p.top_k + i;
        int pos = -1;
        for (int a = at; a < at + lists.count[token]; a++)
            if (lists.entry[a] == entry)
                pos = lists.pos[a];
        d_topk_weight[entry] = pos < 0 ? 0.0f : d_weight[pos];
    }
}

/*
 * The combine of a plan of one round: out[t] = sum of the token's assignment rows, in the order of its
 * assignments. A block takes n_each neighbouring tokens at a time. It looks up their assignment rows
 * first, all at once: from a token to its rows is a chain of five loads, as long as adding the rows, and
 * while one block waits for it others on the SM add.
 */
template <typename T, int N>
static __global__ void __launch_bounds__(N_THREADS, 4)
    combine_once_kernel(const xp_ep_cuda_plan p, int n_each, int64_t dim, const T *y, T *out,
                        const float *d_weight, float *d_topk_weight) {
    const batch_lists lists = lists_of(p, n_each);
    for (int64_t first = (int64_t)blockIdx.x * n_each; first < p.n_tokens;
         first += (int64_t)gridDim.x * n_each) {
        const int n = (int)min((long long)n_each, (long long)(p.n_tokens - first));
        look_up(p, first, n, lists);
        __syncthreads();
        for (int token = 0; token < n; token++)
            for (int64_t column = (int64_t)threadIdx.x * N; column < dim;
                 column += (int64_t)blockDim.x * N) {
                float sum[N] = {};
                add_rows<T, N>(sum, y + column, dim, lists.pos + token * p.top_k, 0,
                               lists.count[token]);
                store_vec<T, N>(out + (first + token) * dim + column, sum);
            }
        if (d_topk_weight != nullptr)
            batch_weights(p, first, n, lists, d_weight, d_topk_weight);
        __syncthreads(); /* the lists are read */
    }
}

static __global__ void weights_kernel(const xp_ep_cuda_plan p, int64_t round, const float *d_weight,
                                      float *d_topk_weight) {
    const int own = p.recv_row_base[p.rank];
    const int low = p.round_row[round], high = p.round_row[round + 1];
    const int first_row = max(low, own), end_row = min(high, p.recv_row_base[p.rank + 1]);
    if (first_row >= end_row)
        return;
    /* This rank's assignments are in the same order as source and as expert rank. */
    const int shift = p.send_assignment_base[p.rank] - p.recv_assignment_base[p.rank];
    const int begin = p.recv_assignment[first_row], end = p.recv_assignment[end_row];
    for (int i = begin + (int)(blockIdx.x * N_THREADS + threadIdx.x); i < end;
         i += (int)gridDim.x * N_THREADS)
        d_topk_weight[p.assignment_entry[i + shift]] = d_weight[p.assignment_pos[i]];
}

static bool is_wide(const xp_ep_cuda_rows *rows, const void *a, const void *b) {
    return rows->row_bytes % 16 == 0 && (uintptr_t)a % 16 == 0 && (uintptr_t)b % 16 == 0;
}

static unsigned blocks_for(int64_t n_rows, int n_blocks) {
    return (unsigned)(n_rows < n_blocks ? n_rows : n_blocks);
}

xp_status xp_ep_cuda_local_dispatch(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                    const xp_ep_cuda_rows *rows, const void *x, void *recv) {
    const int64_t n_bytes = (int64_t)rows->row_bytes;
    if (p->n_tokens == 0)
        return XP_OK;
    const unsigned n_blocks = blocks_for(p->n_tokens, rows->n_blocks);
    if (is_wide(rows, x, recv))
        local_dispatch_kernel<<<n_blocks, N_THREADS, 0, stream>>>(*p, rows->round, n_bytes / 16,
                                                                  (const int4 *)x, (int4 *)recv);
    else
        local_dispatch_kernel<<<n_blocks, N_THREADS, 0, stream>>>(
            *p, rows->round, n_bytes / 2, (const unsigned short *)x, (unsigned short *)recv);
    return xp_cuda_check(cudaGetLastError(), "expert parallel dispatch");
}

/* As many threads as a row has vectors, or an even part: of short rows more blocks are on an SM. */
static int threads_for(int64_t n_vectors) {
    const int64_t n_turns = tiles_of(n_vectors, N_THREADS);
    return (int)(tiles_of(tiles_of(n_vectors, n_turns), 32) * 32);
}

template <typename T, int N>
static void launch_combine(cudaStream_t stream, const xp_ep_cuda_plan *p,
                           const xp_ep_cuda_rows *rows, const xp_ep_cuda_local_sums *sums) {
    const bool once = p->max_rounds == 1 && p->top_k <= BATCH_TOP_K;
    const bool weights =
        p->max_rounds == 1 && sums->d_weight != nullptr && sums->d_topk_weight != nullptr;
    const float *d_weight = weights ? sums->d_weight : nullptr;
    float *d_topk_weight = weights ? sums->d_topk_weight : nullptr;
    const T *y = (const T *)sums->y;
    const int n_threads = threads_for(tiles_of(rows->dim, N));
    const int n_blocks = rows->n_blocks * (N_THREADS / n_threads);
    if (!once) {
        combine_kernel<T, N><<<blocks_for(p->n_tokens, n_blocks), n_threads, 0, stream>>>(
            *p, rows->round, rows->dim, y, (T *)sums->out, d_weight, d_topk_weight);
        return;
    }
    /* Few tokens: one a block. Many: a block a batch, unless the call is to leave SMs to others. */
    const int n_each =
        p->n_tokens < (int64_t)BATCH_TOKENS * rows->n_local_blocks ? 1 : BATCH_TOKENS;
    const int64_t n_batches = tiles_of(p->n_tokens, n_each);
    const unsigned grid = rows->n_blocks < rows->n_local_blocks ? blocks_for(n_batches, n_blocks)
                                                                : (unsigned)n_batches;
    const size_t shared = sizeof(int32_t) * (size_t)(n_each * (1 + 2 * p->top_k));
    combine_once_kernel<T, N><<<grid, n_threads, shared, stream>>>(
        *p, n_each, rows->dim, y, (T *)sums->out, d_weight, d_topk_weight);
}

xp_status xp_ep_cuda_local_combine(cudaStream_t stream, const xp_ep_cuda_plan *p,
                                   const xp_ep_cuda_rows *rows, const xp_ep_cuda_local_sums *sums) {
    if (p->n_tokens == 0)
        return XP_OK;
    const bool wide = is_wide(rows, sums->y, sums->out);
    if (rows->bf16 && wide)
        launch_combine<bf16, 8>(stream, p, rows, sums);
    else if (rows->bf16)
        launch_combine<bf16, 1>(stream, p, rows, sums);
    else if (wide)
        launch_combine<float, 4>(stream, p, rows, sums);
    else
        launch_combine<float, 1>(stream, p, rows, sums);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine");
}

xp_status xp_ep_cuda_local_weights(cudaStream_t stream, const xp_ep_cuda_plan *p, int64_t round,
                                   const float *d_weight, float *d_topk_weight) {
    const int64_t most = tiles_of(p->n_tokens * p->top_k, N_THREADS);
    if (most == 0)
        return XP_OK;
    weights_kernel<<<blocks_for(most, 1024), N_THREADS, 0, stream>>>(*p, round, d_weight,
                                                                     d_topk_weight);
    return xp_cuda_check(cudaGetLastError(), "expert parallel combine: weights");
}

xp_status xp_ep_cuda_load_local_rows(void) {
    return load_kernels(local_dispatch_kernel<int4>, local_dispatch_kernel<unsigned short>,
                        combine_kernel<bf16, 8>, combine_kernel<bf16, 1>, combine_kernel<float, 4>,
                        combine_kernel<float, 1>, combine_once_kernel<bf16, 8>,
                        combine_once_kernel<bf16, 1>, combine_once_kernel<float, 4>,
                        combine_once_kernel<float, 1>, weights_kernel);
}
