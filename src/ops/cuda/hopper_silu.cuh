/**
 * Epilogues of the Hopper grouped GEMM that also compute the experts' activation.
 *
 *   forward  y = x w13^T: a tile has the same 128 columns of gate and of up, columns 0 to 127 and 128
 *            to 255 of the accumulators. It stores both and h = silu(gate) * up * p of the rounded
 *            values: the bits of silu_gate_prob_forward.
 *   dgrad    dh = dy w2, 256 columns a tile. The tile's gate and up come through the pipeline as
 *            SILU_STAGES more stages behind its last k tile, 64 columns of both in each, so that the
 *            producer loads them while the consumers still compute. Stored are d gate and d up in
 *            place of gate and up, h, and the row's sum over the tile's columns of the gradient of p.
 *
 * wgmma_64x256() says which thread holds which element.
 */
#ifndef XP_OPS_CUDA_HOPPER_SILU_CUH
#define XP_OPS_CUDA_HOPPER_SILU_CUH

#include "ops/cuda/hopper_store.cuh"
#include "ops/cuda/silu.cuh"

enum { SILU_STAGES = TILE_N / 64 };

static_assert(TILE_M * 128 == A_BYTES && A_BYTES <= B_BYTES, "a stage holds 64 columns of both");

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* Rows r and r + 8 of the CTA's part of the tile whose elements the thread holds: the first. */
static __device__ __forceinline__ int silu_line(int group) {
    return 64 * group + (int)threadIdx.x % WARPGROUP / 32 * 16 + (int)threadIdx.x % 32 / 4;
}

/* p of the thread's two rows. Called before the k loop: a load from global memory waits behind the row
 * copies that are on their way, and is not waited for before the epilogue. */
static __device__ __forceinline__ void load_prob(const xp_tile_args &p, const tile_scheduler &tile,
                                                 int group, float (&prob)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = tile.m0 + silu_line(group) + 8 * half;
        prob[half] = 1.0f;
        if (p.silu.p != nullptr && row < tile.n_rows)
            prob[half] = p.silu.p[tile.first_row + row];
    }
}

static __device__ __forceinline__ float low_half(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
static __device__ __forceinline__ float high_half(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

/* The accumulators as they would be stored: half the registers. Word 2 i + half is of row 8 half, columns
 * 8 i + 2 (lane % 4) and the next. */
static __device__ __forceinline__ void round_tile(const float (&d)[128], uint32_t (&w)[64]) {
#pragma unroll
    for (int i = 0; i < 64; i++)
        w[i] = pack(d[2 * i], d[2 * i + 1]);
}

/* h of two neighbouring columns. */
static __device__ __forceinline__ uint32_t silu_pair(uint32_t gate, uint32_t up, float p) {
    return pack(silu_gate_prob<bf16>(low_half(gate), low_half(up), p),
                silu_gate_prob<bf16>(high_half(gate), high_half(up), p));
}

/* ---- forward --------------------------------------------------------------------------------- */

/* The last rows of an expert: from registers, 16 bytes a store. */
static __device__ __forceinline__ void
store_silu_rows(const xp_tile_args &p, const tile_scheduler &tile, const uint32_t (&w)[64],
                const float (&prob)[2], int column, int group) {
    const int64_t width = p.silu.width;
    const int quad = (int)threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = tile.m0 + silu_line(group) + 8 * half;
        bf16 *gate_up = (bf16 *)p.silu.gate_up + (int64_t)(tile.first_row + row) * 2 * width;
        bf16 *h = (bf16 *)p.silu.h + (int64_t)(tile.first_row + row) * width;
#pragma unroll
        for (int g = 0; g < 4; g++) {
            uint32_t gate[4], up[4], product[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                gate[j] = w[2 * (4 * g + j) + half];
                up[j] = w[32 + 2 * (4 * g + j) + half];
                product[j] = silu_pair(gate[j], up[j], prob[half]);
            }
            transpose_quad(gate);
            transpose_quad(up);
            transpose_quad(product);
            const int64_t at = column + 8 * (4 * g + quad);
            const bool valid = row < tile.n_rows && at < width;
            store_16(gate_up + at, gate, valid);
            store_16(gate_up + width + at, up, valid);
            store_16(h + at, product, valid);
        }
    }
}

static __device__ __forceinline__ void
silu_forward_tile(const xp_tile_args &p, const tma_maps &maps, const tile_scheduler &tile,
                  const float (&d)[128], const float (&prob)[2], warp_chunks &chunks, int group) {
    const int line = silu_line(group) - (int)threadIdx.x % 32 / 4, column = tile.n0 / 2;
    const int row = tile.first_row + tile.m0 + line;
    if (tile.m0 + line >= tile.n_rows)
        return;
    uint32_t w[64]; /* gate in the first half, up in the second */
    round_tile(d, w);
    if (tile.m0 + line + 16 > tile.n_rows) {
        store_silu_rows(p, tile, w, prob, column, group);
        return;
    }
#pragma unroll
    for (int j = 0; j < 2; j++) { /* every map ends at column F */
        if (column + 64 * j >= (int)p.silu.width)
            break;
        const uint32_t *gate = w + 16 * j, *up = gate + 32;
        uint32_t h[16];
        store_warp_chunk(&maps.gate, gate, chunks, column + 64 * j, row);
        store_warp_chunk(&maps.up, up, chunks, column + 64 * j, row);
#pragma unroll
        for (int i = 0; i < 16; i++)
            h[i] = silu_pair(gate[i], up[i], prob[i % 2]);
        store_warp_chunk(&maps.c, h, chunks, column + 64 * j, row);
    }
}

/* ---- dgrad ----------------------------------------------------------------------------------- */

/* Producer, behind the k tiles: gate and up of the tile, SILU_STAGES stages. The boxes may hold rows of
 * the next expert, which reach no result, and zeros past F. Arrivals as for a k tile. Where the CTA has
 * no rows nothing is loaded; the stages go round all the same, because the CTAs of a cluster count them
 * alike. */
static __device__ __forceinline__ void
produce_gate_up(const tma_maps &maps, const tile_scheduler &tile, pipeline_state &at) {
    const int row = tile.first_row + tile.m0;
    for (int c = 0; c < SILU_STAGES; c++) {
        mbarrier_wait(at.empty(), at.parity ^ 1);
        if (threadIdx.x == 0) {
            mbarrier_expect_tx(at.full(), tile.has_rows ? 2 * A_BYTES : 0);
            if (tile.has_rows) {
                tma_load<1>(at.a(), &maps.gate, at.full(), tile.n0 + 64 * c, row, 0);
                tma_load<1>(at.b(), &maps.up, at.full(), tile.n0 + 64 * c, row, 0);
            }
        }
        cp_async_arrive(at.full());
        at.next();
    }
}

static __device__ __forceinline__ vec<bf16, 8> load_shared_vec(uint32_t from) {
    vec<bf16, 8> v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.bits.x), "=r"(v.bits.y), "=r"(v.bits.z), "=r"(v.bits.w)
                 : "r"(from)
                 : "memory");
    return v;
}

static __device__ __forceinline__ void store_global_vec(bf16 *to, const float (&x)[8], bool valid) {
    const uint32_t w[4] = {pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])};
    store_16(to, w, valid);
}

/* Where the thread's results of one of its two rows go. */
struct silu_row {
    bf16 *gate_up, *h; /* of the row's first column */
    bool valid;
};

static __device__ __forceinline__ silu_row silu_row_of(const xp_tile_args &p,
                                                       const tile_scheduler &tile, int line) {
    const int64_t row = tile.first_row + tile.m0 + line, width = p.silu.width;
    return {(bf16 *)p.silu.gate_up + row * 2 * width, (bf16 *)p.silu.h + row * width,
            tile.m0 + line < tile.n_rows};
}

/* Eight neighbouring columns of a row from the words of dh, gate and up. @return their part of dp */
static __device__ __forceinline__ float
silu_backward_vec(const silu_row &row, const uint32_t (&dh)[4], const vec<bf16, 8> &gate,
                  const vec<bf16, 8> &up, float p, int column, int width) {
    float a[8], b[8], d[8], h[8];
    unpack(gate, a);
    unpack(up, b);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        d[2 * k] = low_half(dh[k]);
        d[2 * k + 1] = high_half(dh[k]);
    }
    const float dp = silu_gate_prob_gradients<bf16>(a, b, d, p, h);
    const bool valid = row.valid && column < width;
    store_global_vec(row.gate_up + column, a, valid);
    store_global_vec(row.gate_up + width + column, b, valid);
    store_global_vec(row.h + column, h, valid);
    return column < width ? dp : 0.0f;
}

/*
 * Sum of a row's 32 parts in the order of a warp's sum (warp_sum) over parts 8 c + 4 g + quad: those
 * that differ in bit 4, then 3, then 2 are the thread's own.
 */
static __device__ __forceinline__ float sum_parts(const float (&dp)[2][2]) {
    float sum = (dp[0][0] + dp[1][0]) + (dp[0][1] + dp[1][1]);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    return 0.0f + sum;
}

/* Consumers, after the last k tile. dh is rounded as if it were stored; groups of four lanes trade its
 * words until each lane holds 8 neighbouring columns of a row, as gate and up lie in the stage. */
template <int N_CTAS>
static __device__ __forceinline__ void
silu_backward_tile(const xp_tile_args &p, const tile_scheduler &tile, const float (&d)[128],
                   const float (&prob)[2], int group, pipeline_state &at) {
    const int quad = (int)threadIdx.x % 4, line = silu_line(group), width = (int)p.silu.width;
    const silu_row rows[2] = {silu_row_of(p, tile, line), silu_row_of(p, tile, line + 8)};
    uint32_t w[64];
    round_tile(d, w);
    float dp[2][2][2]; /* of each row: by bit 0 of the stage, and by group of 32 columns in it */
#pragma unroll
    for (int c = 0; c < SILU_STAGES; c++) {
        mbarrier_wait(at.full(), at.parity);
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int g = 0; g < 2; g++) {
                uint32_t dh[4];
#pragma unroll
                for (int j = 0; j < 4; j++)
                    dh[j] = w[2 * (8 * c + 4 * g + j) + half];
                transpose_quad(dh);
                const uint32_t from =
                    xp_hopper_chunk((uint32_t)(line + 8 * half), (uint32_t)(4 * g + quad));
                const float part = silu_backward_vec(rows[half], dh, load_shared_vec(at.a() + from),
                                                     load_shared_vec(at.b() + from), prob[half],
                                                     tile.n0 + 64 * c + 8 * (4 * g + quad), width);
                dp[half][c % 2][g] = c < 2 ? part : dp[half][c % 2][g] + part;
            }
        named_barrier_sync(1 + group, WARPGROUP); /* all have read the stage */
        if (threadIdx.x % WARPGROUP == 0)
            release_stage<N_CTAS>(at.empty());
        at.next();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float sum = sum_parts(dp[half]);
        if (quad == 0 && rows[half].valid && p.silu.dp != nullptr)
            p.silu.dp[tile.n0 / TILE_N * p.m + tile.first_row + tile.m0 + line + 8 * half] = sum;
    }
}

#endif

#endif
