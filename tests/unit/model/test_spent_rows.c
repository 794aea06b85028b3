/* Where gradients lie on spent expert rows: no byte of them on rows that are still needed when it is written. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>
#include "model/spent_rows.h"

static xp_arch arch_of(int n_layers, bool tied, int head_dim) {
    return (xp_arch){.flavor = "test",
                     .dim = 64,
                     .n_layers = n_layers,
                     .vocab_size = 128,
                     .n_heads = 2,
                     .n_kv_heads = 1,
                     .head_dim = head_dim,
                     .n_experts = 4,
                     .top_k = 2,
                     .moe_dim = 32,
                     .rope_theta = 1e4,
                     .norm_eps = 1e-6,
                     .qk_norm = true,
                     .tie_embeddings = tied,
                     .route_scale = 1};
}

/* The arena's last written layer, byte by byte: what backward of layer l writes lies behind rows 0 to l. */
static void check(int n_layers, int64_t layer_bytes, xp_dtype dtype, bool possible) {
    const xp_arch arch = arch_of(n_layers, false, 64);
    xp_param_table *table = NULL;
    xp_spent_rows rows;
    assert_int_equal(xp_param_table_create(&arch, 0, 1, &table), XP_OK);
    assert_int_equal(xp_spent_rows_create(&arch, table, dtype, &rows), XP_OK);
    const int64_t element = (int64_t)xp_dtype_bytes(dtype);
    assert_int_equal(rows.n_bytes, xp_param_table_n_elements(table) * element);
    const int64_t at = xp_spent_rows_offset(&rows, layer_bytes);
    assert_int_equal(at >= 0, possible);
    for (int p = 0; p < xp_param_table_n_params(table) && possible; p++) {
        const xp_param *param = xp_param_table_param(table, p);
        const int layer = xp_param_table_group(table, param->group)->layer;
        const int64_t needed = layer < 0 ? 1 : layer < n_layers ? layer + 1 : n_layers;
        assert_true(at + param->offset * element >= needed * layer_bytes);
    }
    if (possible) { /* close behind the rows */
        assert_int_equal(at % 256, 0);
        assert_true(at + rows.first[n_layers - 1] < n_layers * layer_bytes + 256);
    }
    xp_spent_rows_destroy(&rows);
    xp_param_table_destroy(table);
}

static void written_behind_what_is_needed(void **state) {
    (void)state;
    for (int n_layers = 1; n_layers <= 5; n_layers++)
        for (int64_t layer_bytes = 1 << 17; layer_bytes < 1 << 22; layer_bytes += 100000 + 96)
            check(n_layers, layer_bytes, XP_BF16, n_layers > 1);
    check(2, 1 << 20, XP_F32, true);
    check(2, 1 << 17, XP_F32, false); /* rows of a layer are fewer bytes than its parameters */
    check(1, 1 << 10, XP_BF16, false);
    check(3, 0, XP_BF16, false);
}

static void not_everything_can(void **state) {
    (void)state;
    const xp_arch archs[] = {arch_of(2, true, 64), arch_of(2, false, 48)};
    for (size_t i = 0; i < sizeof archs / sizeof archs[0]; i++) {
        xp_param_table *table = NULL;
        xp_spent_rows rows;
        assert_int_equal(xp_param_table_create(&archs[i], 0, 1, &table), XP_OK);
        assert_int_equal(xp_spent_rows_create(&archs[i], table, XP_BF16, &rows), XP_OK);
        assert_int_equal(rows.n_bytes, 0);
        assert_int_equal(xp_spent_rows_offset(&rows, 1 << 30), -1);
        xp_spent_rows_destroy(&rows);
        xp_param_table_destroy(table);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(written_behind_what_is_needed),
        cmocka_unit_test(not_everything_can),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
