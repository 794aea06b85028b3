/*
 * QK-norm + RoPE of bf16 heads, C = 16 * LANES elements: LANES threads own a head, a warp works on
 * the heads of one token in turn, 32 / LANES at a time. A thread's elements (8 of the first half, the
 * same 8 of the second) have the same angles in every head of the token, so the angles are loaded
 * once a token and stay in registers; reading them for every head costs more than the head itself.
 */
#include "ops/cuda/qknorm_rope_tokens.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/vector.cuh"
#include "ops/ops_blocks.h"

namespace {

/* AHEAD: heads that a thread loads before it uses the first. */
constexpr int FORWARD_THREADS = 128, FORWARD_AHEAD = 9, BACKWARD_THREADS = 256;

struct tokens {
    int64_t n_tokens;
    int n_q, n_k; /* heads */
    float eps;
    const bf16 *qkv, *q_norm, *k_norm;
    const int32_t *positions;
    const float *rope;
};

/* This thread's elements of a row of C: chunk `lane` of each half. */
struct halves {
    vec<bf16, 8> low, high;
};

template <int LANES> static __device__ __forceinline__ halves load_halves(const bf16 *row) {
    return {load_vec<bf16, 8>(row), load_vec<bf16, 8>(row + LANES * 8)};
}

/* The weights of both norms in shared memory, in this thread's order: [q or k][half][LANES]. Registers
 * have no room for them, and indexed they would be in local memory. */
template <int LANES> struct norm_weights { uint4 of[2][2][LANES]; };

/* By a warp for itself: it may use them after wait_groups() and a __syncwarp(). */
template <int LANES>
static __device__ __forceinline__ void copy_weights(const tokens &t, norm_weights<LANES> &w) {
    for (int i = (int)threadIdx.x % 32; i < 4 * LANES; i += 32)
        copy_async((bf16 *)&w.of[i / (2 * LANES)][i / LANES % 2][i % LANES],
                   (i < 2 * LANES ? t.q_norm : t.k_norm) + i % (2 * LANES) * 8, true);
}

template <int LANES>
static __device__ __forceinline__ halves weights_of(const norm_weights<LANES> &w, bool is_q,
                                                    int lane) {
    return {w.of[is_q ? 0 : 1][0][lane], w.of[is_q ? 0 : 1][1][lane]};
}

struct angles {
    float cosine[8], sine[8];
};

template <int LANES>
static __device__ __forceinline__ angles load_angles(const tokens &t, int position, int lane) {
    angles a;
    const float *from = t.rope + (int64_t)position * (16 * LANES) + lane * 8;
    load_many<float, 8>(from, a.cosine);
    load_many<float, 8>(from + LANES * 8, a.sine);
    return a;
}

/* 1 / rms of a head over its LANES threads; every thread of the warp calls it. */
template <int LANES>
static __device__ __forceinline__ float rstd_of(const float (&x)[8], const float (&y)[8],
                                                float eps) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        squares += x[i] * x[i] + y[i] * y[i];
    return 1.0f / sqrtf(warp_sum(squares, LANES) / (float)(16 * LANES) + eps);
}

template <int LANES>
__global__ void __launch_bounds__(FORWARD_THREADS, 4) forward(tokens t, bf16 *q, bf16 *k) {
    constexpr int C = 16 * LANES, GROUPS = 32 / LANES;
    const int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x % 32 / LANES;
    const int n = t.n_q + t.n_k;
    const int64_t token = (int64_t)blockIdx.x * (FORWARD_THREADS / 32) + threadIdx.x / 32;
    __shared__ norm_weights<LANES> weights_of_warp[FORWARD_THREADS / 32];
    norm_weights<LANES> &weights = weights_of_warp[threadIdx.x / 32];
    if (token >= t.n_tokens)
        return;
    copy_weights<LANES>(t, weights);
    commit();
    const bf16 *in = t.qkv + token * (n + t.n_k) * C + lane * 8;
    const int position = t.positions[token];
    angles a;
    for (int first = group; first - group < n; first += GROUPS * FORWARD_AHEAD) {
        halves h[FORWARD_AHEAD];
#pragma unroll
        for (int u = 0; u < FORWARD_AHEAD; u++)
            h[u] = first + GROUPS * u < n ? load_halves<LANES>(in + (first + GROUPS * u) * C)
                                          : halves{};
        if (first - group == 0) { /* after the heads: their address waits for the position */
            a = load_angles<LANES>(t, position, lane);
            wait_groups<0>();
            __syncwarp();
        }
#pragma unroll
        for (int u = 0; u < FORWARD_AHEAD; u++) {
            const int head = first + GROUPS * u;
            const bool is_q = head < t.n_q;
            float x[8], y[8], wx[8], wy[8];
            unpack(h[u].low, x);
            unpack(h[u].high, y);
            const float rstd = rstd_of<LANES>(x, y, t.eps);
            if (head >= n)
                continue;
            const halves w = weights_of<LANES>(weights, is_q, lane);
            unpack(w.low, wx);
            unpack(w.high, wy);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] = x[i] * rstd * wx[i];
                y[i] = y[i] * rstd * wy[i];
                const float turned = x[i] * a.cosine[i] - y[i] * a.sine[i];
                y[i] = y[i] * a.cosine[i] + x[i] * a.sine[i];
                x[i] = turned;
            }
            bf16 *out =
                (is_q ? q + (token * t.n_q + head) * C : k + (token * t.n_k + head - t.n_q) * C) +
                lane * 8;
            store_vec<bf16, 8>(out, x);
            store_vec<bf16, 8>(out + LANES * 8, y);
        }
    }
}

/* Gradient of a norm's weight, this thread's elements: [half]. */
typedef float weight_sums[2][8];

/* Gradient of one head through rotation and norm; dw += its part. Every thread of the warp calls it;
 * zeros add nothing. */
template <int LANES>
static __device__ __forceinline__ void backward_head(float eps, const angles &a, const halves &in,
                                                     const halves &grad, const halves &w,
                                                     bool valid, bf16 *out, weight_sums &dw) {
    float x[8], y[8], gx[8], gy[8], wx[8], wy[8], dot = 0;
    unpack(in.low, x);
    unpack(in.high, y);
    unpack(grad.low, gx);
    unpack(grad.high, gy);
    unpack(w.low, wx);
    unpack(w.high, wy);
    const float rstd = rstd_of<LANES>(x, y, eps);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float back = gx[i] * a.cosine[i] + gy[i] * a.sine[i]; /* the rotation turned back */
        gy[i] = gy[i] * a.cosine[i] - gx[i] * a.sine[i];
        gx[i] = back;
        x[i] *= rstd;
        y[i] *= rstd;
        dw[0][i] = __fadd_rn(dw[0][i], __fmul_rn(gx[i], x[i]));
        dw[1][i] = __fadd_rn(dw[1][i], __fmul_rn(gy[i], y[i]));
        gx[i] *= wx[i];
        gy[i] *= wy[i];
        dot += gx[i] * x[i] + gy[i] * y[i];
    }
    dot = warp_sum(dot, LANES) / (float)(16 * LANES);
    if (!valid)
        return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        gx[i] = rstd * (gx[i] - x[i] * dot);
        gy[i] = rstd * (gy[i] - y[i] * dot);
    }
    store_vec<bf16, 8>(out, gx);
    store_vec<bf16, 8>(out + LANES * 8, gy);
}

/* All q or all k heads of a token, by the warp: n_heads rows of C at in, grad and out. A head is loaded
 * while the one before it is worked on. */
template <int LANES>
static __device__ __forceinline__ void
backward_heads(float eps, const angles &a, const halves &w, int n_heads, int group, const bf16 *in,
               const bf16 *grad, bf16 *out, weight_sums &dw) {
    constexpr int C = 16 * LANES, GROUPS = 32 / LANES;
    halves x = {}, g = {};
    if (group < n_heads) {
        x = load_halves<LANES>(in + group * C);
        g = load_halves<LANES>(grad + group * C);
    }
#pragma unroll 1
    for (int head = group; head - group < n_heads; head += GROUPS) { /* whole warps */
        halves next_x = {}, next_g = {};
        if (head + GROUPS < n_heads) {
            next_x = load_halves<LANES>(in + (head + GROUPS) * C);
            next_g = load_halves<LANES>(grad + (head + GROUPS) * C);
        }
        backward_head<LANES>(eps, a, x, g, w, head < n_heads, out + head * C, dw);
        x = next_x;
        g = next_g;
    }
}

/*
 * A block owns block_tokens tokens, its warps take them in turn. Every thread group sums the norm
 * weights' gradients of its heads in registers; at the end the block adds its groups in order.
 */
template <int LANES>
__global__ void __launch_bounds__(BACKWARD_THREADS, 2)
    backward(tokens t, int64_t block_tokens, const bf16 *dq, const bf16 *dk, bf16 *dqkv,
             float *partial) {
    constexpr int C = 16 * LANES, N_SUMS = BACKWARD_THREADS / LANES;
    extern __shared__ float shared[]; /* [N_SUMS, 2C] */
    __shared__ norm_weights<LANES> weights_of_warp[BACKWARD_THREADS / 32];
    norm_weights<LANES> &weights = weights_of_warp[threadIdx.x / 32];
    const int lane = (int)threadIdx.x % LANES, group = (int)threadIdx.x % 32 / LANES,
              n = t.n_q + t.n_k;
    const int64_t first = blockIdx.x * block_tokens;
    const int64_t last = first + block_tokens < t.n_tokens ? first + block_tokens : t.n_tokens;
    weight_sums dw_q = {}, dw_k = {};
    copy_weights<LANES>(t, weights);
    commit();
    wait_groups<0>();
    __syncwarp();
    int64_t token = first + threadIdx.x / 32;
    int position = token < last ? t.positions[token] : 0;
    for (; token < last; token += BACKWARD_THREADS / 32) {
        const int64_t row = token * (n + t.n_k) * C + lane * 8;
        const bf16 *in = t.qkv + row, *grad_q = dq + token * t.n_q * C + lane * 8,
                   *grad_k = dk + token * t.n_k * C + lane * 8;
        const angles a = load_angles<LANES>(t, position, lane);
        if (token + BACKWARD_THREADS / 32 < last)
            position = t.positions[token + BACKWARD_THREADS / 32];
        backward_heads<LANES>(t.eps, a, weights_of<LANES>(weights, true, lane), t.n_q, group, in,
                              grad_q, dqkv + row, dw_q);
        backward_heads<LANES>(t.eps, a, weights_of<LANES>(weights, false, lane), t.n_k, group,
                              in + t.n_q * C, grad_k, dqkv + row + t.n_q * C, dw_k);
    }
    float *mine = shared + threadIdx.x / LANES * 2 * C + lane * 8;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            mine[half * (C / 2) + i] = dw_q[half][i];
            mine[C + half * (C / 2) + i] = dw_k[half][i];
        }
    __syncthreads();
    for (int c = (int)threadIdx.x; c < 2 * C; c += BACKWARD_THREADS) {
        float sum = 0;
        for (int g = 0; g < N_SUMS; g++)
            sum += shared[g * 2 * C + c];
        partial[(int64_t)blockIdx.x * 2 * C + c] = sum;
    }
}

tokens tokens_of(const xp_qknorm_rope_args *a) {
    return (tokens){.n_tokens = a->n_tokens,
                    .n_q = a->n_heads,
                    .n_k = a->n_kv_heads,
                    .eps = a->eps,
                    .qkv = (const bf16 *)a->qkv,
                    .q_norm = (const bf16 *)a->q_norm,
                    .k_norm = (const bf16 *)a->k_norm,
                    .positions = a->positions,
                    .rope = a->rope};
}

template <int LANES> void launch_forward(const xp_qknorm_rope_args *a, cudaStream_t s) {
    const unsigned n_blocks = (unsigned)xp_ceil_div(a->n_tokens, FORWARD_THREADS / 32);
    forward<LANES><<<n_blocks, FORWARD_THREADS, 0, s>>>(tokens_of(a), (bf16 *)a->q, (bf16 *)a->k);
}

/* [N_SUMS, 2C] floats: 32 KB whatever LANES is. */
template <int LANES> void launch_backward(const xp_qknorm_rope_backward_args *a, cudaStream_t s) {
    const int64_t n_tokens = a->forward.n_tokens;
    backward<LANES><<<(unsigned)xp_ops_n_gpu_blocks(n_tokens), BACKWARD_THREADS,
                      BACKWARD_THREADS * 32 * sizeof(float), s>>>(
        tokens_of(&a->forward), xp_ops_gpu_block_rows(n_tokens), (const bf16 *)a->dq,
        (const bf16 *)a->dk, (bf16 *)a->dqkv, a->scratch);
}

} // namespace

extern "C" bool xp_cuda_qknorm_tokens_serve(const xp_qknorm_rope_args *a) {
    return a->dtype == XP_BF16 && (a->head_dim == 64 || a->head_dim == 128 || a->head_dim == 256) &&
           a->q_norm != NULL && a->k_norm != NULL && xp_is_aligned(a->qkv) && xp_is_aligned(a->q) &&
           xp_is_aligned(a->k) && xp_is_aligned(a->q_norm) && xp_is_aligned(a->k_norm) &&
           xp_is_aligned(a->rope);
}

extern "C" xp_status xp_cuda_qknorm_tokens_forward(cudaStream_t stream,
                                                   const xp_qknorm_rope_args *args) {
    if (args->head_dim == 64)
        launch_forward<4>(args, stream);
    else if (args->head_dim == 128)
        launch_forward<8>(args, stream);
    else
        launch_forward<16>(args, stream);
    return xp_cuda_check(cudaGetLastError(), "qknorm_rope_forward");
}

extern "C" xp_status xp_cuda_qknorm_tokens_backward(cudaStream_t stream,
                                                    const xp_qknorm_rope_backward_args *args) {
    if (args->forward.head_dim == 64)
        launch_backward<4>(args, stream);
    else if (args->forward.head_dim == 128)
        launch_backward<8>(args, stream);
    else
        launch_backward<16>(args, stream);
    return xp_cuda_check(cudaGetLastError(), "qknorm_rope_backward");
}
