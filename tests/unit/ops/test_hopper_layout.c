/* The shared-memory layout of the Hopper kernels, as arithmetic: what the copies write is where the
 * matrix instructions look. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include "ops/cuda/hopper_layout.h"

/* The 128-byte swizzle as the hardware defines it: address bits 4 to 6 are xored with bits 7 to 9.
 */
static uint32_t swizzle(uint32_t address) {
    return address ^ ((address >> 7 & 7) << 4);
}

static void chunks_are_where_the_hardware_looks(void **state) {
    (void)state;
    for (uint32_t row = 0; row < 256; row++)
        for (uint32_t chunk = 0; chunk < 8; chunk++)
            assert_int_equal(xp_hopper_chunk(row, chunk),
                             swizzle(row * XP_HOPPER_ROW_BYTES + chunk * 16));
}

/* 128 threads, each one chunk of every 16th row: every chunk of a tile of 128 rows exactly once. */
static void threads_cover_a_tile(void **state) {
    (void)state;
    unsigned char seen[128 * 8];
    memset(seen, 0, sizeof seen);
    for (uint32_t thread = 0; thread < 128; thread++)
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t at = xp_hopper_chunk(thread / 8 + 16 * i, thread % 8);
            assert_int_equal(at % 16, 0);
            seen[at / 16]++;
        }
    for (size_t i = 0; i < sizeof seen; i++)
        assert_int_equal(seen[i], 1);
}

typedef struct fields {
    uint32_t address, leading, stride, swizzle;
} fields;

static fields decode(uint64_t d) {
    return (fields){.address = (uint32_t)(d & 0x3fff) << 4,
                    .leading = (uint32_t)(d >> 16 & 0x3fff) << 4,
                    .stride = (uint32_t)(d >> 32 & 0x3fff) << 4,
                    .swizzle = (uint32_t)(d >> 62)};
}

/* The byte of element (row, k) as wgmma finds it, k contiguous: atoms of 8 rows a stride apart. */
static uint32_t found_k(fields f, uint32_t row, uint32_t k) {
    return swizzle(f.address + row / 8 * f.stride + row % 8 * XP_HOPPER_ROW_BYTES + k * 2);
}

/* The same with m or n contiguous: 64 of them in a row of k, slabs a leading offset apart. */
static uint32_t found_mn(fields f, uint32_t mn, uint32_t k) {
    return swizzle(f.address + mn / 64 * f.leading + k / 8 * f.stride +
                   k % 8 * XP_HOPPER_ROW_BYTES + mn % 64 * 2);
}

static void operands_read_what_was_copied(void **state) {
    (void)state;
    const uint32_t base = 3 * 49152 + 16384; /* b of the last stage */
    for (uint32_t step = 0; step < 4; step++) {
        const fields k_side = decode(xp_hopper_operand(base, step, 1)),
                     mn_side = decode(xp_hopper_operand(base, step, 0));
        assert_int_equal(k_side.swizzle, 1);
        assert_int_equal(mn_side.swizzle, 1);
        for (uint32_t i = 0; i < 256; i++)
            for (uint32_t k = 0; k < 16; k++) {
                const uint32_t depth = step * 16 + k;
                assert_int_equal(found_k(k_side, i, k),
                                 base + xp_hopper_chunk(i, depth / 8) + depth % 8 * 2);
                assert_int_equal(found_mn(mn_side, i, k), base + i / 64 * XP_HOPPER_SLAB_BYTES +
                                                              xp_hopper_chunk(depth, i % 64 / 8) +
                                                              i % 8 * 2);
            }
    }
}

/* The values of attention forward: 128 keys as k, two slabs of 64 columns, each 128 rows. */
static void values_are_read_where_they_were_copied(void **state) {
    (void)state;
    const uint32_t base = 5 * 32768, slab = 128 * XP_HOPPER_ROW_BYTES;
    for (uint32_t step = 0; step < 8; step++) {
        const fields f = decode(xp_hopper_descriptor(base + step * 16 * XP_HOPPER_ROW_BYTES, slab,
                                                     XP_HOPPER_ATOM_BYTES));
        for (uint32_t column = 0; column < 128; column++)
            for (uint32_t k = 0; k < 16; k++)
                assert_int_equal(found_mn(f, column, k),
                                 base + column / 64 * slab +
                                     xp_hopper_chunk(step * 16 + k, column % 64 / 8) +
                                     column % 8 * 2);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_are_where_the_hardware_looks),
        cmocka_unit_test(threads_cover_a_tile),
        cmocka_unit_test(operands_read_what_was_copied),
        cmocka_unit_test(values_are_read_where_they_were_copied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
