#include "ops/cpu/gemm_tile.h"

#include <cblas.h>
#include <string.h>
#include "device/cpu/blas_threads.h"

/** Part of the inner dimension copied to scratch at a time: long enough that re-reading c costs little,
 * short enough for L2. */
enum { CHUNK_K = 512 };

/** Below this a tile spends its time in sgemm's packing (measured: 128 x 256 runs at 97 % of 1024 x
 * 1024). */
enum { TILE_MIN = 128, TILE_MIN_AREA = 128 * 256 };

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

xp_gemm_view xp_gemm_view_from(const xp_gemm_view *view, int64_t row, int64_t column) {
    xp_gemm_view moved = *view;
    int64_t first = column;
    if (view->gather)
        moved.gather = view->gather + row;
    else
        first += row * view->ld;
    moved.data = (const char *)view->data + first * (int64_t)xp_dtype_bytes(view->dtype);
    return moved;
}

static void widen(const uint16_t *bits, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t word = (uint32_t)bits[i] << 16;
        memcpy(out + i, &word, sizeof word);
    }
}

/** What sgemm can read: the view itself, or a copy of its [n_rows, n_columns] stored corner in
 * `scratch`. */
static xp_gemm_view load(const xp_gemm_view *view, int64_t n_rows, int64_t n_columns,
                         float *scratch) {
    if (view->dtype == XP_F32 && view->gather == NULL)
        return *view;
    for (int64_t r = 0; r < n_rows; r++) {
        int64_t first = (view->gather ? view->gather[r] : r) * view->ld;
        float *out = scratch + r * n_columns;
        if (view->dtype == XP_BF16)
            widen((const uint16_t *)view->data + first, n_columns, out);
        else
            memcpy(out, (const float *)view->data + first, (size_t)n_columns * sizeof *out);
    }
    return (xp_gemm_view){
        .data = scratch, .dtype = XP_F32, .ld = n_columns, .transposed = view->transposed};
}

static xp_gemm_view load_a(const xp_gemm_tile *tile, int64_t k0, int64_t n_k, float *scratch) {
    if (tile->a.transposed) {
        xp_gemm_view from = xp_gemm_view_from(&tile->a, k0, 0);
        return load(&from, n_k, tile->m, scratch);
    }
    xp_gemm_view from = xp_gemm_view_from(&tile->a, 0, k0);
    return load(&from, tile->m, n_k, scratch);
}

static xp_gemm_view load_b(const xp_gemm_tile *tile, int64_t k0, int64_t n_k, float *scratch) {
    if (tile->b.transposed) {
        xp_gemm_view from = xp_gemm_view_from(&tile->b, 0, k0);
        return load(&from, tile->n, n_k, scratch);
    }
    xp_gemm_view from = xp_gemm_view_from(&tile->b, k0, 0);
    return load(&from, n_k, tile->n, scratch);
}

/** c = rounded sums, or c + sums rounded once. */
static void store_bf16(const xp_gemm_tile *tile, const float *sums) {
    for (int64_t i = 0; i < tile->m; i++) {
        uint16_t *c = (uint16_t *)tile->c + i * tile->ldc;
        for (int64_t j = 0; j < tile->n; j++) {
            float value = sums[i * tile->n + j];
            c[j] = xp_bf16_from_f32(tile->acc ? value + xp_bf16_to_f32(c[j]) : value);
        }
    }
}

/** alpha * (nothing) + (acc ? c : 0). */
static void multiply_empty(const xp_gemm_tile *tile) {
    if (tile->acc)
        return;
    size_t element = xp_dtype_bytes(tile->c_dtype);
    for (int64_t i = 0; i < tile->m; i++)
        memset((char *)tile->c + (size_t)(i * tile->ldc) * element, 0, (size_t)tile->n * element);
}

static bool reads_in_place(const xp_gemm_view *view) {
    return view->dtype == XP_F32 && view->gather == NULL;
}

void xp_gemm_tile_multiply(const xp_gemm_tile *tile, float *scratch) {
    if (tile->m == 0 || tile->n == 0)
        return;
    if (tile->k == 0) {
        multiply_empty(tile);
        return;
    }
    bool in_place = reads_in_place(&tile->a) && reads_in_place(&tile->b);
    int64_t chunk = in_place ? tile->k : CHUNK_K;
    float *scratch_b = in_place ? NULL : scratch + (int64_t)XP_GEMM_TILE_MAX * CHUNK_K;
    float *c = tile->c;
    int64_t ldc = tile->ldc;
    bool acc = tile->acc;
    if (tile->c_dtype == XP_BF16) {
        c = scratch_b + (int64_t)XP_GEMM_TILE_MAX * CHUNK_K;
        ldc = tile->n;
        acc = false;
    }
    for (int64_t k0 = 0; k0 < tile->k; k0 += chunk) {
        int64_t n_k = smaller(chunk, tile->k - k0);
        xp_gemm_view a = load_a(tile, k0, n_k, scratch);
        xp_gemm_view b = load_b(tile, k0, n_k, scratch_b);
        cblas_sgemm(CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans,
                    b.transposed ? CblasTrans : CblasNoTrans, (blasint)tile->m, (blasint)tile->n,
                    (blasint)n_k, tile->alpha, a.data, (blasint)a.ld, b.data, (blasint)b.ld,
                    acc || k0 > 0 ? 1.0F : 0.0F, c, (blasint)ldc);
    }
    if (tile->c_dtype == XP_BF16)
        store_bf16(tile, c);
}

size_t xp_gemm_scratch_bytes(xp_dtype dtype) {
    size_t n = 2 * (size_t)XP_GEMM_TILE_MAX * CHUNK_K;
    if (dtype == XP_BF16)
        n += XP_GEMM_TILE_AREA;
    return n * sizeof(float);
}

xp_gemm_split xp_gemm_split_evenly(int64_t n, int64_t max_part) {
    if (n <= 0)
        return (xp_gemm_split){.part = 1, .n_parts = 0};
    int64_t n_parts = (n + max_part - 1) / max_part;
    int64_t part = smaller(((n + n_parts - 1) / n_parts + 15) / 16 * 16, max_part);
    return (xp_gemm_split){.part = part, .n_parts = (n + part - 1) / part};
}

void xp_gemm_split_2d(int64_t m, int64_t n, int64_t n_wanted, xp_gemm_split *rows,
                      xp_gemm_split *columns) {
    int64_t part_m = smaller(m, XP_GEMM_TILE_MAX / 2);
    int64_t part_n = smaller(n, XP_GEMM_TILE_MAX);
    for (;;) {
        *rows = xp_gemm_split_evenly(m, part_m > 0 ? part_m : 1);
        *columns = xp_gemm_split_evenly(n, part_n > 0 ? part_n : 1);
        int64_t *longer = part_m > part_n ? &part_m : &part_n;
        if (rows->n_parts * columns->n_parts >= n_wanted || *longer < 2 * TILE_MIN ||
            part_m * part_n < 2 * TILE_MIN_AREA)
            return;
        *longer /= 2;
    }
}

void xp_gemm_tiles_run(xp_pool *pool, xp_tile_fn fn, void *context, int64_t n_tiles) {
    xp_blas_one_thread_begin();
    xp_pool_run(pool, fn, context, n_tiles);
    xp_blas_one_thread_end();
}
