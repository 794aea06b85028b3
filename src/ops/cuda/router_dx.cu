/*
 * dx += dlogits gate on tensor cores, for routers of at most 128 experts. The GEMM is so shallow that
 * reading and writing dx is nearly all of its work.
 *
 * A warp keeps the gate of 32 columns in registers, as mma fragments, and passes over its block's tokens,
 * 16 at a time. The block cuts the dlogits of TILES * 16 tokens into three bf16 parts whose sum is exact
 * (see router_linear.cu) and leaves them in shared memory, also as fragments. Column n of the mma tiles is
 * not column n of the gate: a thread's results of the four tiles are 8 neighbours in a row of dx.
 */
#include "ops/cuda/router_dx.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/vector.cuh"

namespace {

constexpr int THREADS = 256, WARP_COLUMNS = 32, BLOCK_COLUMNS = THREADS / 32 * WARP_COLUMNS;
constexpr int TILES = 2, PARTS = 3, MOST_EXPERTS = 128;
constexpr int BLOCK_TOKENS = 128, MOST_BLOCK_TOKENS = 256;

struct dx_args {
    const float *dlogits; /* [T, E] */
    const bf16 *gate;     /* [E, D] */
    bf16 *dx;             /* [T, D] */
    int64_t n_tokens, dim;
    int n_experts, block_tokens;
};

/* The gate as B of m16n8k16, four tiles of 8 columns: [depth 16][tile][register]. */
template <int DEPTH> struct gate_fragments { uint32_t of[DEPTH][4][2]; };

/* Two neighbours along the experts of one column: of words a and b, both the low or both the high half. */
static __device__ __forceinline__ uint32_t pair_of(uint32_t a, uint32_t b, bool high) {
    return high ? __byte_perm(a, b, 0x7632) : __byte_perm(a, b, 0x5410);
}

/* Lane l has column l / 4 of a tile: element l / 8 * 8 + 2 tile + l / 4 % 2 of the warp's 32. */
template <int DEPTH>
static __device__ __forceinline__ void load_gate(const dx_args &args, int64_t column, int lane,
                                                 gate_fragments<DEPTH> &gate) {
    const bool high = lane / 4 % 2 != 0;
    const bf16 *from = args.gate + column + lane / 8 * 8;
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int e = d * 16 + r * 8 + lane % 4 * 2;
            uint4 a = {}, b = {};
            if (e < args.n_experts) { /* a multiple of 8: e + 1 is one as well */
                a = load_vec<bf16, 8>(from + e * args.dim).bits;
                b = load_vec<bf16, 8>(from + (e + 1) * args.dim).bits;
            }
            gate.of[d][0][r] = pair_of(a.x, b.x, high);
            gate.of[d][1][r] = pair_of(a.y, b.y, high);
            gate.of[d][2][r] = pair_of(a.z, b.z, high);
            gate.of[d][3][r] = pair_of(a.w, b.w, high);
        }
}

/* The leading 8 bits of x, cut off, and what is left of it. Inf and NaN leave nothing. */
static __device__ __forceinline__ uint32_t take_part(float &x) {
    const bool finite = (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
    const uint32_t part = finite ? __float_as_uint(x) & 0xffff0000u : bf16_bits(x) << 16;
    x = finite ? x - __uint_as_float(part) : 0.0f;
    return part;
}

/* By the block: the parts of dlogits of TILES * 16 tokens as A of m16n8k16: [tile][depth 16][part][lane]. */
template <int DEPTH>
static __device__ __forceinline__ void split_tokens(const dx_args &args, int64_t first,
                                                    int64_t last, uint4 *parts) {
    for (int i = (int)threadIdx.x; i < TILES * DEPTH * 32; i += THREADS) {
        const int lane = i % 32, d = i / 32 % DEPTH, tile = i / 32 / DEPTH;
        uint32_t a[PARTS][4];
#pragma unroll
        for (int r = 0; r < 4;
             r++) { /* rows l / 4 and 8 further, columns 2 (l % 4) and 8 further */
            const int64_t t = first + tile * 16 + lane / 4 + r % 2 * 8;
            const int e = d * 16 + r / 2 * 8 + lane % 4 * 2;
            float x[2] = {};
            if (t < last && e < args.n_experts)
                unpack(load_vec<float, 2>(args.dlogits + t * args.n_experts + e), x);
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const uint32_t low = take_part(x[0]);
                a[p][r] = low >> 16 | take_part(x[1]);
            }
        }
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            parts[((tile * DEPTH + d) * PARTS + p) * 32 + lane] =
                make_uint4(a[p][0], a[p][1], a[p][2], a[p][3]);
    }
}

/* The sums of one tile of 16 tokens, the smallest parts first. */
template <int DEPTH>
static __device__ __forceinline__ void tile_sums(const gate_fragments<DEPTH> &gate,
                                                 const uint4 *parts, int lane, float (&c)[4][4]) {
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            c[j][r] = 0;
#pragma unroll
    for (int p = PARTS - 1; p >= 0; p--)
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const uint4 v = parts[(d * PARTS + p) * 32 + lane];
            const uint32_t a[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < 4; j++)
                multiply(c[j], a, gate.of[d][j][0], gate.of[d][j][1]);
        }
}

/*
 * Grid: [columns / BLOCK_COLUMNS, tokens / block_tokens]. Barriers of the block: behind the parts'
 * writing, and before they are written again. Warps past the last column take part in both.
 */
template <int DEPTH>
__global__ void __launch_bounds__(THREADS, DEPTH <= 2   ? 4
                                           : DEPTH <= 4 ? 3
                                                        : 2) add_router_dx(dx_args args) {
    __shared__ uint4 parts[TILES * DEPTH * PARTS * 32];
    const int lane = (int)threadIdx.x % 32;
    const int64_t column =
        (int64_t)blockIdx.x * BLOCK_COLUMNS + (int64_t)(threadIdx.x / 32) * WARP_COLUMNS;
    const bool has_columns = column < args.dim;
    const int64_t begin = (int64_t)blockIdx.y * args.block_tokens;
    const int64_t last =
        begin + args.block_tokens < args.n_tokens ? begin + args.block_tokens : args.n_tokens;
    gate_fragments<DEPTH> gate;
    if (has_columns)
        load_gate<DEPTH>(args, column, lane, gate);
    for (int64_t first = begin; first < last; first += TILES * 16) {
        bf16 *at = args.dx + (first + lane / 4) * args.dim + column + lane % 4 * 8;
        vec<bf16, 8> dx[TILES][2];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                if (has_columns && first + tile * 16 + r * 8 + lane / 4 < last)
                    dx[tile][r] = load_vec<bf16, 8>(at + (tile * 16 + r * 8) * args.dim);
        split_tokens<DEPTH>(args, first, last, parts);
        __syncthreads();
        if (has_columns)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                float c[4][4];
                tile_sums<DEPTH>(gate, parts + tile * DEPTH * PARTS * 32, lane, c);
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    if (first + tile * 16 + r * 8 + lane / 4 >= last)
                        continue;
                    float x[8];
                    unpack(dx[tile][r], x);
#pragma unroll
                    for (int k = 0; k < 8; k++)
                        x[k] += c[k / 2][2 * r + k % 2];
                    store_vec<bf16, 8>(at + (tile * 16 + r * 8) * args.dim, x);
                }
            }
        __syncthreads();
    }
}

template <int DEPTH> void launch(const dx_args &args, cudaStream_t stream) {
    const dim3 grid((unsigned)xp_ceil_div(args.dim, BLOCK_COLUMNS),
                    (unsigned)xp_ceil_div(args.n_tokens, args.block_tokens));
    add_router_dx<DEPTH><<<grid, THREADS, 0, stream>>>(args);
}

} // namespace

extern "C" bool xp_cuda_router_dx_serves(const xp_router_linear_args *a) {
    return a->n_experts <= MOST_EXPERTS && a->n_experts % 8 == 0 && a->dim % WARP_COLUMNS == 0 &&
           a->n_tokens <= (int64_t)65535 * BLOCK_TOKENS && xp_is_aligned(a->dlogits) &&
           xp_is_aligned(a->gate) && xp_is_aligned(a->dx);
}

extern "C" xp_status xp_cuda_router_dx(cudaStream_t stream, const xp_router_linear_args *a) {
    if (a->n_tokens == 0 || a->dim == 0)
        return XP_OK;
    const dx_args args = {.dlogits = a->dlogits,
                          .gate = (const bf16 *)a->gate,
                          .dx = (bf16 *)a->dx,
                          .n_tokens = a->n_tokens,
                          .dim = a->dim,
                          .n_experts = a->n_experts,
                          /* more experts, more of the gate for every block to read */
                          .block_tokens = a->n_experts <= 32 ? BLOCK_TOKENS : MOST_BLOCK_TOKENS};
    if (a->n_experts <= 16)
        launch<1>(args, stream);
    else if (a->n_experts <= 32)
        launch<2>(args, stream);
    else if (a->n_experts <= 64)
        launch<4>(args, stream);
    else
        launch<8>(args, stream);
    return xp_cuda_check(cudaGetLastError(), "router_linear_backward");
}
