/**
 * Epilogue of the Hopper grouped GEMM through shared memory and TMA: a consumer warpgroup writes its
 * 64 x 256 accumulators in chunks of 8 KiB, in the layout of c, and one thread stores each chunk, or
 * adds it to c. The stores run on while the warpgroup computes its next tile.
 *
 * A chunk is rows of 128 bytes of c with the 128-byte swizzle. Two buffers per warpgroup take turns.
 * wgmma_64x256() says which thread holds which element.
 */
#ifndef XP_OPS_CUDA_HOPPER_STORE_CUH
#define XP_OPS_CUDA_HOPPER_STORE_CUH

#include "ops/cuda/hopper_epilogue.cuh"
#include "ops/cuda/hopper_tiles.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* The warpgroup's two chunks. One thread issues all stores, because each thread waits for its own. */
struct chunk_buffers {
    uint32_t base; /* of both */
    uint32_t next; /* 0, or CHUNK_BYTES */
    int group;
    bool elected;

    /* All threads: the buffer that can be written. The store before the last has read it. */
    __device__ __forceinline__ uint32_t acquire() {
        if (elected)
            bulk_wait_read<1>();
        named_barrier_sync(1 + group, WARPGROUP);
        return base + next;
    }
    /* All threads, after writing: the elected one may issue stores then, and must commit. */
    __device__ __forceinline__ void written() {
        async_proxy_fence();
        named_barrier_sync(1 + group, WARPGROUP);
        next ^= CHUNK_BYTES;
    }
};

static __device__ __forceinline__ chunk_buffers make_chunk_buffers(uint32_t base, int group,
                                                                   bool elected) {
    return {base + CHUNKS_AT + (uint32_t)group * 2 * CHUNK_BYTES, 0, group, elected};
}

/* Rows of forward and dgrad are stored by each warp alone, 16 x 64 at a time: two buffers of its own in the
 * warpgroup's memory, and its first lane issues and awaits the stores. */
enum { WARP_CHUNK_BYTES = 16 * 128 };

struct warp_chunks {
    uint32_t base, next; /* of both; 0, or WARP_CHUNK_BYTES */

    /* All lanes: the buffer that can be written. */
    __device__ __forceinline__ uint32_t acquire() {
        if (threadIdx.x % 32 == 0)
            bulk_wait_read<1>();
        __syncwarp();
        return base + next;
    }
    /* All lanes, after writing: lane 0 may store then, and must commit. */
    __device__ __forceinline__ void written() {
        async_proxy_fence();
        __syncwarp();
        next ^= WARP_CHUNK_BYTES;
    }
};

static __device__ __forceinline__ warp_chunks make_warp_chunks(uint32_t base, int group) {
    const uint32_t warp = threadIdx.x % WARPGROUP / 32;
    return {base + CHUNKS_AT + (uint32_t)group * 2 * CHUNK_BYTES + warp * 2 * WARP_CHUNK_BYTES, 0};
}

/* Store a warp's 16 rows of 64 columns: 16 words of bf16 pairs, word 2 i + half of row 8 half, columns 8 i
 * and on. */
static __device__ __forceinline__ void store_warp_chunk(const CUtensorMap *map, const uint32_t *w,
                                                        warp_chunks &chunks, int column, int row) {
    const uint32_t matrix = threadIdx.x % 32 / 8, line = threadIdx.x % 8;
    const uint32_t to = chunks.acquire();
#pragma unroll
    for (uint32_t i = 0; i < 4;
         i++) { /* 16 columns: rows 0-7 and 8-15 of the first 8, of the others */
        const uint32_t part[4] = {w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]};
        store_matrices<false>(to + xp_hopper_chunk(8 * (matrix % 2) + line, 2 * i + matrix / 2),
                              part);
    }
    chunks.written();
    if (threadIdx.x % 32 == 0) {
        tma_store(map, to, column, row, 0);
        bulk_commit();
    }
}

/* A warp's 16 rows of the tile; n: the tile's first column. */
static __device__ __forceinline__ void store_whole_rows(const xp_tile_args &p,
                                                        const float (&d)[128],
                                                        const CUtensorMap *map, warp_chunks &chunks,
                                                        int row, int n) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t w[16];
        if (n + 64 * j >= p.n)
            break;
#pragma unroll
        for (int i = 0; i < 16; i++)
            w[i] = pack(d[32 * j + 2 * i], d[32 * j + 2 * i + 1]);
        store_warp_chunk(map, w, chunks, n + 64 * j, row);
    }
}

/*
 * bf16. A chunk is 64 columns of the tile and one box of 64 x 64. TRANSPOSED: c's rows are the tile's
 * columns.
 * @param m, n  first row and column of the warpgroup's 64 x 256; m counted in plane `plane` of c
 */
template <bool TRANSPOSED>
static __device__ __forceinline__ void
store_bf16_chunks(const xp_tile_args &p, const float (&d)[128], const CUtensorMap *map,
                  chunk_buffers &chunks, int m, int n, int plane) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % WARPGROUP / 32;
    const uint32_t matrix = lane / 8, line = lane % 8;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        if (n + 64 * j >= p.n)
            break;
        const uint32_t to = chunks.acquire();
#pragma unroll
        for (int i = 0; i < 4;
             i++) { /* 16 columns: rows 0-7 and 8-15 of the first 8, of the others */
            const int at = 4 * (8 * j + 2 * i);
            uint32_t w[4];
#pragma unroll
            for (int x = 0; x < 4; x++)
                w[x] = pack(d[at + 2 * x], d[at + 2 * x + 1]);
            const uint32_t row = TRANSPOSED ? 16 * i + 8 * (matrix / 2) + line
                                            : 16 * warp + 8 * (matrix % 2) + line,
                           column = TRANSPOSED ? 2 * warp + matrix % 2 : 2 * i + matrix / 2;
            store_matrices<TRANSPOSED>(to + xp_hopper_chunk(row, column), w);
        }
        chunks.written();
        if (!chunks.elected)
            continue;
        tma_store(map, to, TRANSPOSED ? m : n + 64 * j, TRANSPOSED ? n + 64 * j : m, plane);
        bulk_commit();
    }
}

/*
 * fp32, stored or added. A chunk is 32 columns of the tile, as two boxes of 32 x 32: rows 0 to 31 and
 * 32 to 63 of the warpgroup. TRANSPOSED: c's rows are the tile's columns. In both layouts a warp's
 * stores to shared memory meet every bank once.
 * @param m, n  first row and column of the warpgroup's 64 x 256
 */
template <bool TRANSPOSED>
static __device__ __forceinline__ void store_f32(const xp_tile_args &p, const float (&d)[128],
                                                 const CUtensorMap *map, chunk_buffers &chunks,
                                                 int m, int n, int expert) {
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x % WARPGROUP / 32;
    const int quad = lane % 4, row = lane / 4;
    const uint32_t box = (uint32_t)(warp / 2) * (CHUNK_BYTES / 2), low = (uint32_t)(warp % 2) * 16;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        if (n + 32 * j >= p.n)
            break;
        const uint32_t to = chunks.acquire();
#pragma unroll
        for (int t = 0; t < 4; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int i = 4 * (4 * j + t) + 2 * half;
                if (TRANSPOSED) {
#pragma unroll
                    for (int x = 0; x < 2; x++) {
                        const uint32_t r = (uint32_t)(8 * t + 2 * quad + x),
                                       column = low + (uint32_t)(8 * half + row);
                        store_shared(to + box + xp_hopper_chunk(r, column / 4) + column % 4 * 4,
                                     d[i + x]);
                    }
                } else {
                    /* Rows of odd number store their second column first: other banks. */
                    const bool odd = row % 2 != 0;
                    const uint32_t r = low + (uint32_t)(8 * half + row),
                                   column = (uint32_t)(8 * t + 2 * quad);
                    const uint32_t at = to + box + xp_hopper_chunk(r, column / 4) + column % 4 * 4;
                    store_shared(at + (odd ? 4 : 0), odd ? d[i + 1] : d[i]);
                    store_shared(at + (odd ? 0 : 4), odd ? d[i] : d[i + 1]);
                }
            }
        chunks.written();
        if (!chunks.elected)
            continue;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t from = to + (uint32_t)h * (CHUNK_BYTES / 2);
            const int x = TRANSPOSED ? m + 32 * h : n + 32 * j,
                      y = TRANSPOSED ? n + 32 * j : m + 32 * h;
            if (p.acc)
                tma_add(map, from, x, y, expert);
            else
                tma_store(map, from, x, y, expert);
        }
        bulk_commit();
    }
}

#endif

#endif
