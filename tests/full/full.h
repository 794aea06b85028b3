/**
 * check_full: the ops with the largest sizes, at the shapes of Qwen3-30B-A3B and 235B-A22B, which
 * no plain table computes in reasonable time. Inputs are known functions of the index, so any
 * result can be computed alone, in double on the CPU: some rows, columns, experts and heads are
 * drawn (first and last always among them) and compared.
 */
#ifndef CHECK_FULL_H
#define CHECK_FULL_H

#include <stdbool.h>
#include <stdint.h>
#include "ops/ops.h"

typedef struct full_context {
    xp_device *device;
    xp_stream *stream;
    const xp_ops *ops;
    bool small; /* sizes for a CPU: tries this program, not the ops */
    const char *glob;
    uint64_t seed;
    int n_checks, n_failed;
} full_context;

/** Rows of the tolerance table in judge.c. */
typedef enum full_tolerance {
    FULL_PRODUCT = 0,
    FULL_LONG_PRODUCT,
    FULL_PRODUCT_F32,
    FULL_ATTENTION,
    FULL_ATTENTION_GRADIENT,
    FULL_LSE,
    FULL_LOSS,
    FULL_SOFTMAX,
    FULL_N_TOLERANCES
} full_tolerance;

/** A bf16 tensor of device memory whose element i is N(0, 1) * scale, rounded, known on the host.
 */
typedef struct full_tensor {
    uint16_t *pattern; /* [FULL_PERIOD + FULL_RUN]; the last FULL_RUN are the first again */
    void *data;
} full_tensor;

/** A prime, so that rows of any width start at other places. */
#define FULL_PERIOD 4194301
#define FULL_RUN    4096

XP_NODISCARD xp_status full_tensor_create(const full_context *ctx, const char *name, double scale,
                                          int64_t n, full_tensor *tensor);
void full_tensor_destroy(const full_context *ctx, full_tensor *tensor);
static inline double full_at(const full_tensor *t, int64_t i) {
    return (double)xp_bf16_to_f32(t->pattern[i % FULL_PERIOD]);
}
/** sum of x[i + c] * y[j + c] over c < n <= FULL_RUN */
double full_dot(const full_tensor *x, int64_t i, const full_tensor *y, int64_t j, int64_t n);

/** Device memory that holds NaN everywhere, so that what is not written is seen. */
XP_NODISCARD xp_status full_output_create(const full_context *ctx, size_t n_bytes, void **data);
/** Elements [first, first + n) of device memory as double. */
XP_NODISCARD xp_status full_read(const full_context *ctx, const void *data, xp_dtype dtype,
                                 int64_t first, int64_t n, double *out);

/** n different numbers below `below` in ascending order, 0 and below - 1 among them; n >= below:
 * all. @return how many */
int full_sample(const full_context *ctx, const char *name, int n, int64_t below, int64_t *out);

/** Whether checks of that name are wanted (--op). */
bool full_wants(const full_context *ctx, const char *op);

/** Results and what they should be: [n_rows, n_columns]. */
typedef struct full_results {
    const char *op, *what;
    full_tolerance tolerance;
    int64_t n_rows, n_columns;
    const double *want, *got;
    const double
        *sizes; /* [n_rows] norm of the terms of a row that may cancel; NULL: they do not */
} full_results;

/** Compare them row by row and print a line. */
void full_judge(full_context *ctx, const full_results *results);

XP_NODISCARD xp_status full_products(full_context *ctx);
XP_NODISCARD xp_status full_head(full_context *ctx);
XP_NODISCARD xp_status full_attention(full_context *ctx);

#endif
