/* Moving and adding rows. Sums keep a block of columns in the first-level cache and walk the rows
 * over it. */
#include <string.h>
#include "device/cpu/cpu_device.h"
#include "ep/kernels.h"

#define BLOCK      512
#define TILE_BYTES (128 * 1024) /* of rows a tile takes */

static int64_t tile_rows(size_t row_bytes) {
    return row_bytes >= TILE_BYTES ? 1 : (int64_t)(TILE_BYTES / row_bytes);
}

static void run_tiles(xp_stream *stream, xp_tile_fn fn, void *context, int64_t n_rows,
                      int64_t rows_each) {
    xp_pool_run(xp_cpu_stream_pool(stream), fn, context, (n_rows + rows_each - 1) / rows_each);
}

static void copy_tile(void *context, int64_t tile, int worker) {
    const xp_ep_copy_args *a = context;
    (void)worker; /* tiles write different rows */
    int64_t each = tile_rows(a->row_bytes),
            end = (tile + 1) * each < a->n_rows ? (tile + 1) * each : a->n_rows;
    for (int64_t i = tile * each; i < end; i++) {
        int64_t from = a->src_index ? a->src_index[i] - a->src_first : i;
        memcpy((char *)a->dst + (size_t)i * a->row_bytes,
               (const char *)a->src + (size_t)from * a->row_bytes, a->row_bytes);
    }
}

void xp_ep_cpu_copy_rows(xp_stream *stream, const xp_ep_copy_args *args) {
    xp_ep_copy_args copy = *args;
    run_tiles(stream, copy_tile, &copy, args->n_rows, tile_rows(args->row_bytes));
}

void xp_ep_cpu_move(xp_stream *stream, const xp_ep_move_args *a) {
    (void)stream; /* a few bytes a row: not worth waking threads */
    for (int64_t i = 0; i < a->n; i++)
        a->dst[a->dst_index ? a->dst_index[i] : i] = a->src[a->src_index ? a->src_index[i] : i];
}

/* The rounding of xp_bf16_from_f32 in a form that the compiler turns into vector code. */
static uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40U;
    return (uint16_t)((bits & 0x7fffffffU) > 0x7f800000U ? quiet : rounded);
}

static float widen(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* acc (+)= n columns of a row. */
static void load(float *restrict acc, const void *restrict row, int64_t column, int64_t n,
                 xp_dtype dtype) {
    if (dtype == XP_F32) {
        memcpy(acc, (const float *)row + column, (size_t)n * sizeof(float));
        return;
    }
    const uint16_t *x = (const uint16_t *)row + column;
    for (int64_t i = 0; i < n; i++)
        acc[i] = widen(x[i]);
}

static void add(float *restrict acc, const void *restrict row, int64_t column, int64_t n,
                xp_dtype dtype) {
    if (dtype == XP_F32) {
        const float *x = (const float *)row + column;
        for (int64_t i = 0; i < n; i++)
            acc[i] += x[i];
    } else {
        const uint16_t *x = (const uint16_t *)row + column;
        for (int64_t i = 0; i < n; i++)
            acc[i] += widen(x[i]);
    }
}

static void store(void *restrict row, const float *restrict acc, int64_t column, int64_t n,
                  xp_dtype dtype) {
    if (dtype == XP_F32) {
        memcpy((float *)row + column, acc, (size_t)n * sizeof(float));
        return;
    }
    uint16_t *x = (uint16_t *)row + column;
    for (int64_t i = 0; i < n; i++)
        x[i] = narrow(acc[i]);
}

/* The cast between the two levels, in registers. */
static void round_to(float *acc, int64_t n, xp_dtype dtype) {
    for (int64_t i = 0; i < n && dtype == XP_BF16; i++)
        acc[i] = widen(narrow(acc[i]));
}

typedef struct row_set {
    const char *base;
    const int32_t *index; /* row numbers, or NULL: consecutive from `first` */
    int64_t first, n;
    size_t row_bytes;
} row_set;

static const void *row_of(const row_set *set, int64_t i) {
    int64_t row = set->index ? set->index[set->first + i] : set->first + i;
    return set->base + (size_t)row * set->row_bytes;
}

/* The sum of a set of rows over a block of columns; false when the set is empty. */
static bool sum_set(float *acc, const row_set *set, int64_t column, int64_t n, xp_dtype dtype) {
    for (int64_t i = 0; i < set->n; i++) {
        if (i == 0)
            load(acc, row_of(set, i), column, n, dtype);
        else
            add(acc, row_of(set, i), column, n, dtype);
    }
    return set->n > 0;
}

static void reduce_tile(void *context, int64_t tile, int worker) {
    const xp_ep_reduce_args *a = context;
    (void)worker; /* tiles write different rows */
    size_t row_bytes = (size_t)a->dim * xp_dtype_bytes(a->dtype);
    int64_t each = tile_rows(row_bytes),
            end = (tile + 1) * each < a->n_rows ? (tile + 1) * each : a->n_rows;
    for (int64_t i = tile * each; i < end; i++) {
        row_set set = {.base = a->y,
                       .index = a->pos,
                       .first = a->first[i],
                       .n = a->first[i + 1] - a->first[i],
                       .row_bytes = row_bytes};
        char *dst = (char *)a->dst + (size_t)i * row_bytes;
        if (set.n == 1) {
            memcpy(dst, row_of(&set, 0), row_bytes);
            continue;
        }
        for (int64_t column = 0; column < a->dim; column += BLOCK) {
            float acc[BLOCK];
            int64_t n = a->dim - column < BLOCK ? a->dim - column : BLOCK;
            if (!sum_set(acc, &set, column, n, a->dtype))
                memset(acc, 0, sizeof acc); /* a local group's token without picks */
            store(dst, acc, column, n, a->dtype);
        }
    }
}

void xp_ep_cpu_reduce_rows(xp_stream *stream, const xp_ep_reduce_args *args) {
    xp_ep_reduce_args copy = *args;
    run_tiles(stream, reduce_tile, &copy, args->n_rows,
              tile_rows((size_t)args->dim * xp_dtype_bytes(args->dtype)));
}

/* The rows whose sum is the value of one send row. */
static row_set value_of(const xp_ep_sum_args *a, int32_t row, size_t row_bytes) {
    if (a->own && row >= a->row_base[a->own_dest] && row < a->row_base[a->own_dest + 1]) {
        const int32_t *first = a->own->first + (row - a->row_base[a->own_dest]);
        return (row_set){.base = a->own->y,
                         .index = a->own->pos,
                         .first = first[0],
                         .n = first[1] - first[0],
                         .row_bytes = row_bytes};
    }
    if (a->row_picks)
        return (row_set){.base = a->rows,
                         .first = a->row_picks[row],
                         .n = a->row_picks[row + 1] - a->row_picks[row],
                         .row_bytes = row_bytes};
    return (row_set){.base = a->rows, .first = row, .n = 1, .row_bytes = row_bytes};
}

/* The token's rows that have arrived, as sets; *fresh: one of them arrived in this round. At most
 * one row a destination counts here except in hierarchical groups, where rounds may add more. */
static int arrived_rows(const xp_ep_sum_args *a, int64_t token, int from, int32_t *rows, int room,
                        bool *fresh, int *dest) {
    int n = 0;
    int32_t end = a->token_first[token + 1];
    for (int32_t i = a->token_first[token] + from; i < end && n < room; i++) {
        int32_t row = a->token_row[i];
        if (a->seen) {
            while (row >= a->row_base[*dest + 1])
                ++*dest;
            if (row >= a->seen[*dest]) {
                rows[n++] = -1;
                continue;
            }
            *fresh |= row >= a->fresh[*dest];
        }
        rows[n++] = row;
    }
    return n;
}

#define MAX_LISTED 64

static void sum_token(const xp_ep_sum_args *a, int64_t token, size_t row_bytes) {
    int32_t rows[MAX_LISTED];
    bool fresh = a->write_all;
    int dest = 0;
    int n_rows = arrived_rows(a, token, 0, rows, MAX_LISTED, &fresh, &dest);
    if (!fresh)
        return;
    char *out = (char *)a->out + (size_t)token * row_bytes;
    for (int64_t column = 0; column < a->dim; column += BLOCK) {
        float acc[BLOCK], part[BLOCK];
        int64_t n = a->dim - column < BLOCK ? a->dim - column : BLOCK;
        bool any = false;
        for (int i = 0; i < n_rows; i++) {
            if (rows[i] < 0)
                continue;
            row_set set = value_of(a, rows[i], row_bytes);
            if (set.n == 1 && any) {
                add(acc, row_of(&set, 0), column, n, a->dtype);
            } else if (!any) {
                any = sum_set(acc, &set, column, n, a->dtype);
                if (set.n > 1)
                    round_to(acc, n, a->dtype);
            } else {
                sum_set(part, &set, column, n, a->dtype);
                round_to(part, n, a->dtype);
                add(acc, part, 0, n, XP_F32);
            }
        }
        if (!any)
            memset(acc, 0, sizeof acc);
        store(out, acc, column, n, a->dtype);
    }
}

static void sum_tile(void *context, int64_t tile, int worker) {
    const xp_ep_sum_args *a = context;
    (void)worker; /* tiles write different tokens */
    size_t row_bytes = (size_t)a->dim * xp_dtype_bytes(a->dtype);
    int64_t each = tile_rows(row_bytes),
            end = (tile + 1) * each < a->n_tokens ? (tile + 1) * each : a->n_tokens;
    for (int64_t t = tile * each; t < end; t++)
        sum_token(a, t, row_bytes);
}

void xp_ep_cpu_sum_rows(xp_stream *stream, const xp_ep_sum_args *args) {
    xp_ep_sum_args copy = *args;
    run_tiles(stream, sum_tile, &copy, args->n_tokens,
              tile_rows((size_t)args->dim * xp_dtype_bytes(args->dtype)));
}
