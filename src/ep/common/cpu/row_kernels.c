/* Copies and sums of rows. A sum takes a block of columns that stays in the first-level cache and
 * adds the rows to it one after another. */
#include <string.h>
#include "device/cpu/cpu_device.h"
#include "ep/common/cpu/row_math.h"
#include "ep/common/cpu/kernels.h"

#define BLOCK       2048
#define PAGE_BYTES  ((size_t)4096)
#define AHEAD_BYTES ((size_t)512)
#define TILE_BYTES  (128 * 1024) /* of rows a tile takes */

/* The widest arithmetic that this device may use. */
static const xp_ep_row_math *math_of(const xp_device *device) {
#if defined(__x86_64__)
    const unsigned caps = xp_cpu_device_caps(device);
    if (caps & XP_CPU_AVX512)
        return &xp_ep_row_math_avx512;
    if (caps & XP_CPU_AVX2)
        return &xp_ep_row_math_avx2;
#else
    (void)device;
#endif
    return &xp_ep_row_math_plain;
}

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

void xp_ep_cpu_copy_floats(xp_stream *stream, const xp_ep_copy_floats_args *a) {
    (void)stream; /* a few bytes a row: not worth waking threads */
    for (int64_t i = 0; i < a->n; i++)
        a->dst[a->dst_index ? a->dst_index[i] : i] = a->src[a->src_index ? a->src_index[i] : i];
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

/* A sum's arguments and the arithmetic this device does it with. */
typedef struct sum_job {
    const xp_ep_reduce_args *reduce;
    const xp_ep_sum_args *sum;
    const xp_ep_row_math *math;
    size_t size; /* of an element */
    xp_dtype dtype;
} sum_job;

static const void *piece(const void *row, int64_t column, size_t size) {
    return (const char *)row + (size_t)column * size;
}

/* acc = the sum of a set of rows over a block of columns; false when the set is empty. */
static bool sum_set(const sum_job *job, float *acc, const row_set *set, int64_t column, int64_t n) {
    const void *rows[XP_EP_MAX_TOP_K]; /* a set holds assignments of one token */
    for (int64_t i = 0; i < set->n; i++)
        rows[i] = piece(row_of(set, i), column, job->size);
    if (set->n > 0)
        job->math->sum(acc, rows, set->n, n, job->dtype, false);
    return set->n > 0;
}

/* A row's pages are far apart from the next row's, and the processor follows a stream only inside a
 * page: the first lines of each page are asked for while the row before is added. */
static void prefetch_set(const row_set *set) {
    for (int64_t i = 0; i < set->n; i++) {
        const char *row = row_of(set, i);
        for (size_t page = 0; page < set->row_bytes; page += PAGE_BYTES)
            for (size_t line = page; line < page + AHEAD_BYTES && line < set->row_bytes; line += 64)
                __builtin_prefetch(row + line, 0, 2);
    }
}

static int64_t block_at(int64_t dim, int64_t column) {
    return dim - column < BLOCK ? dim - column : BLOCK;
}

static void reduce_tile(void *context, int64_t tile, int worker) {
    const sum_job *job = context;
    const xp_ep_reduce_args *a = job->reduce;
    (void)worker; /* tiles write different rows */
    size_t row_bytes = (size_t)a->dim * job->size;
    int64_t each = tile_rows(row_bytes), end = (tile + 1) * each;
    for (int64_t i = tile * each; i < end && i < a->n_rows; i++) {
        row_set set = {.base = a->y,
                       .index = a->pos,
                       .first = a->first[i],
                       .n = a->first[i + 1] - a->first[i],
                       .row_bytes = row_bytes};
        char *dst = (char *)a->dst + (size_t)i * row_bytes;
        if (i + 1 < end && i + 1 < a->n_rows)
            prefetch_set(&(row_set){.base = a->y,
                                    .index = a->pos,
                                    .first = a->first[i + 1],
                                    .n = a->first[i + 2] - a->first[i + 1],
                                    .row_bytes = row_bytes});
        if (set.n == 1) {
            memcpy(dst, row_of(&set, 0), row_bytes);
            continue;
        }
        for (int64_t column = 0; column < a->dim; column += BLOCK) {
            float acc[BLOCK];
            int64_t n = block_at(a->dim, column);
            if (!sum_set(job, acc, &set, column, n))
                memset(acc, 0, sizeof acc); /* a local group's token without assignments */
            job->math->store(dst + (size_t)column * job->size, acc, n, job->dtype);
        }
    }
}

static sum_job make_job(const xp_stream *stream, xp_dtype dtype) {
    return (sum_job){
        .math = math_of(xp_stream_device(stream)), .size = xp_dtype_bytes(dtype), .dtype = dtype};
}

void xp_ep_cpu_reduce_rows(xp_stream *stream, const xp_ep_reduce_args *args) {
    sum_job job = make_job(stream, args->dtype);
    job.reduce = args;
    run_tiles(stream, reduce_tile, &job, args->n_rows, tile_rows((size_t)args->dim * job.size));
}

/* The destination of a row, at `dest` or after it: a token's rows come in that order. */
static int dest_of(const xp_ep_sum_args *a, int dest, int32_t row) {
    while (row >= a->row_base[dest + 1])
        dest++;
    return dest;
}

/* The rows whose sum is the value of one send row to `dest`. */
static row_set value_of(const xp_ep_sum_args *a, int dest, int32_t row, size_t row_bytes) {
    row_set set = {.base = a->rows, .first = row, .n = 1, .row_bytes = row_bytes};
    const xp_ep_expert_rows *direct = a->expert_rows ? &a->expert_rows[dest] : NULL;
    const int32_t *first = NULL;
    if (direct && direct->y) {
        set.base = direct->y;
        set.index = direct->pos;
        first = direct->first + (row - a->row_base[dest]);
    } else if (a->row_assignments) {
        first = a->row_assignments + row;
    }
    if (first) {
        set.first = first[0];
        set.n = first[1] - first[0];
    }
    return set;
}

/* The sets of the token's rows that have arrived so far; false when none of them is of this round,
 * so that there is nothing to write. */
static bool list_rows(const xp_ep_sum_args *a, int64_t token, size_t row_bytes, row_set *sets,
                      int *n_sets) {
    bool fresh = a->write_all;
    int dest = 0;
    *n_sets = 0;
    for (int32_t i = a->token_first[token]; i < a->token_first[token + 1]; i++) {
        int32_t row = a->token_row[i];
        dest = dest_of(a, dest, row);
        if (a->seen) {
            if (row >= a->seen[dest])
                continue;
            fresh |= row >= a->fresh[dest];
        }
        sets[(*n_sets)++] = value_of(a, dest, row, row_bytes);
    }
    return fresh;
}

static void sum_token(const sum_job *job, int64_t token) {
    const xp_ep_sum_args *a = job->sum;
    row_set sets[XP_EP_MAX_TOP_K]; /* a row has at least one of the token's assignments */
    int n_sets;
    size_t row_bytes = (size_t)a->dim * job->size;
    if (!list_rows(a, token, row_bytes, sets, &n_sets))
        return;
    char *out = (char *)a->out + (size_t)token * row_bytes;
    for (int64_t column = 0; column < a->dim; column += BLOCK) {
        float acc[BLOCK], part[BLOCK];
        int64_t n = block_at(a->dim, column);
        for (int i = 0; i < n_sets; i++) {
            float *sum = i == 0 ? acc : part;
            const void *row = piece(row_of(&sets[i], 0), column, job->size);
            if (i > 0 && sets[i].n == 1) { /* one row: rounded already */
                job->math->sum(acc, &row, 1, n, job->dtype, true);
                continue;
            }
            sum_set(job, sum, &sets[i], column, n);
            if (sets[i].n > 1)
                job->math->round(sum, n, job->dtype);
            row = part;
            if (i > 0)
                job->math->sum(acc, &row, 1, n, XP_F32, true);
        }
        if (n_sets == 0)
            memset(acc, 0, sizeof acc);
        job->math->store(out + (size_t)column * job->size, acc, n, job->dtype);
    }
}

static void prefetch_token(const xp_ep_sum_args *a, int64_t token, size_t row_bytes) {
    int dest = 0;
    for (int32_t i = a->token_first[token]; i < a->token_first[token + 1]; i++) {
        dest = dest_of(a, dest, a->token_row[i]);
        const row_set set = value_of(a, dest, a->token_row[i], row_bytes);
        prefetch_set(&set);
    }
}

static void sum_tile(void *context, int64_t tile, int worker) {
    const sum_job *job = context;
    (void)worker; /* tiles write different tokens */
    int64_t each = tile_rows((size_t)job->sum->dim * job->size), end = (tile + 1) * each;
    if (end > job->sum->n_tokens)
        end = job->sum->n_tokens;
    for (int64_t t = tile * each; t < end; t++) {
        if (t + 1 < end)
            prefetch_token(job->sum, t + 1, (size_t)job->sum->dim * job->size);
        sum_token(job, t);
    }
}

void xp_ep_cpu_sum_rows(xp_stream *stream, const xp_ep_sum_args *args) {
    sum_job job = make_job(stream, args->dtype);
    job.sum = args;
    run_tiles(stream, sum_tile, &job, args->n_tokens, tile_rows((size_t)args->dim * job.size));
}
