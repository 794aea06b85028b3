/**
 * Where operands lie in shared memory for wgmma, as plain arithmetic that the CPU can test.
 *
 * Everything is in rows of 128 bytes (64 bf16), 8 rows an atom of 1024 bytes, with the 128-byte
 * swizzle: the 16-byte chunk c of row r lies at chunk c ^ (r % 8) (PTX ISA 9.7.15.5.1). TMA writes
 * the same pattern (CU_TENSOR_MAP_SWIZZLE_128B). A tile starts at a multiple of 1024.
 *
 *   k contiguous      row = m or n, the 64 of k in it; a k16 step is 32 bytes further in the row
 *   m or n contiguous row = k, 64 of m or n in it; wider tiles are slabs of [64 k][64 m or n]; a
 *                     k16 step is 16 rows further
 */
#ifndef XP_OPS_CUDA_HOPPER_LAYOUT_H
#define XP_OPS_CUDA_HOPPER_LAYOUT_H

#include <stdint.h>

#ifdef __CUDACC__
#define XP_HOST_DEVICE __host__ __device__
#else
#define XP_HOST_DEVICE
#endif

#define XP_HOPPER_ROW_BYTES  128
#define XP_HOPPER_ATOM_BYTES 1024       /* 8 rows */
#define XP_HOPPER_SLAB_BYTES (64 * 128) /* 64 k x 64 m or n */

/** Byte of the 16-byte chunk `chunk` of row `row` in a tile. */
static inline XP_HOST_DEVICE uint32_t xp_hopper_chunk(uint32_t row, uint32_t chunk) {
    return row * XP_HOPPER_ROW_BYTES + ((chunk ^ (row % 8)) * 16);
}

/**
 * wgmma's matrix descriptor (PTX ISA 9.7.15.5.1.2.2): address, leading and stride byte offsets in
 * units of 16 bytes, 128-byte swizzle.
 * @param leading  m or n contiguous: from a slab to the next. k contiguous: not used
 * @param stride   from 8 rows to the next 8
 */
static inline XP_HOST_DEVICE uint64_t xp_hopper_descriptor(uint32_t address, uint32_t leading,
                                                           uint32_t stride) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)((leading & 0x3ffff) >> 4) << 16 |
           (uint64_t)((stride & 0x3ffff) >> 4) << 32 | (uint64_t)1 << 62;
}

/** The descriptor of k16 step `step` of a tile that starts at `address`. */
static inline XP_HOST_DEVICE uint64_t xp_hopper_operand(uint32_t address, uint32_t step,
                                                        int k_contiguous) {
    return k_contiguous ? xp_hopper_descriptor(address + step * 32, 16, XP_HOPPER_ATOM_BYTES)
                        : xp_hopper_descriptor(address + step * 2 * XP_HOPPER_ATOM_BYTES,
                                               XP_HOPPER_SLAB_BYTES, XP_HOPPER_ATOM_BYTES);
}

#endif
