/**
 * checkop: one harness for all ops. A case names an op, its sizes and its buffers; the harness
 * fills the inputs at random, runs the plain table and every candidate table, and compares: outputs
 * within a tolerance of one table (tolerance.c), the same bits for every number of threads, nothing
 * written outside the outputs, NaN where the plain code has NaN. The same cases, with other sizes,
 * are timed.
 *
 * Candidates get device memory and copies only: a table of another device can stand in without a
 * change here.
 */
#ifndef CHECKOP_H
#define CHECKOP_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "ops/ops.h"

#define CK_MAX_BUFFERS    24
#define CK_MAX_CANDIDATES 16

/** How many ops there are. */
#define CK_ONE(entry, queued, args_type, check, cuda) +1
enum { CK_N_OPS = 0 XP_OP_LIST(CK_ONE) };
#undef CK_ONE

typedef enum ck_role {
    CK_IN,      /* must be unchanged afterwards */
    CK_OUT,     /* poisoned before, compared after */
    CK_INOUT,   /* filled before, compared after */
    CK_SCRATCH, /* poisoned before, not compared */
    CK_SAVED,   /* an input that case->forward wrote or read under the same name */
} ck_role;

typedef enum ck_fill {
    CK_NORMAL,   /* N(0, 1) * limit */
    CK_POSITIVE, /* uniform in [0.5, 1.5) * limit */
    CK_INDEX,    /* integers in [0, limit) */
    CK_GIVEN,    /* from `data` */
} ck_fill;

/** Rows of the tolerance table. */
typedef enum ck_tolerance {
    CK_EXACT = 0,
    CK_ROUNDED,
    CK_SUM,
    CK_CHAIN,
    CK_F64_SUM,
    CK_N_TOLERANCES
} ck_tolerance;

typedef struct ck_buffer {
    const char *name;
    ck_role role;
    xp_dtype dtype;
    int64_t n;
    ck_fill fill;
    double limit;
    const void *data; /* CK_GIVEN: [n], borrowed */
    const char *on;   /* candidates: lies on that input (in place); NULL: memory of its own */
    ck_tolerance tolerance;
    double typical; /* size of the terms of a result that may cancel; tolerances of the rms use it
                       when it is larger */
    int64_t row;    /* elements of a row; > 0: rows differ much in size, and a tolerance of the rms
                       means the row's own where that is larger. 0: the whole buffer's */
    bool no_nan;    /* not given a NaN in the NaN run */
} ck_buffer;

typedef struct ck_case ck_case;
typedef struct ck_image ck_image; /* host copies of a case's buffers */
typedef struct ck_call {
    const ck_case *c;
    const xp_ops *ops;
    xp_stream *stream;
    void *const *pointers; /* one for each buffer */
    void *scratch;         /* case->scratch_bytes of the candidate's memory, or NULL */
} ck_call;

struct ck_case {
    const char *op;  /* "rmsnorm_forward" */
    char shape[128]; /* for people */
    xp_status (*call)(const ck_call *call);
    /* bytes of scratch that the candidate's table asks for; NULL: the op has none of that kind */
    size_t (*scratch_bytes)(const ck_call *call);
    int64_t size[16]; /* the op's own numbers, known to its call function */
    float value[8];
    int n_buffers;
    ck_buffer buffers[CK_MAX_BUFFERS];
    const ck_case *forward; /* gives the CK_SAVED buffers; NULL: none */
    /* what an element may be off beyond its tolerance, derived from the inputs and the plain results;
     * asked for where the tolerance is not enough. NULL: nothing */
    double (*slack)(const ck_case *c, const ck_image *want, int buffer, int64_t element);
    bool nan_spreads;    /* a tile may carry NaN to results that the plain code keeps clean */
    bool any_order;      /* results of more threads need not have the same bits (none so far) */
    double flops, bytes; /* of one call, for the bench; 0: not counted */
    char reason[96];     /* why a GPU may stay below what larger cases reach; "" none */
};

/** Of a case whose GEMM has so many tiles of 128 x 128: a reason where they are fewer than a GPU's SMs. */
void ck_few_tiles(ck_case *c, double n_tiles);
/** ceil(n / 128) */
double ck_tiles(int64_t n);

/** The buffer's memory, or NULL when the case has no buffer of that name. */
void *ck_at(const ck_call *call, const char *name);

/* Building a case. Buffers are found by name; the last added one can be adjusted through the return
 * value. */
void ck_case_init(ck_case *c, const char *op, xp_status (*call)(const ck_call *call));
ck_buffer *ck_in(ck_case *c, const char *name, xp_dtype dtype, int64_t n);
ck_buffer *ck_index(ck_case *c, const char *name, int64_t n, int64_t below);
ck_buffer *ck_given(ck_case *c, const char *name, xp_dtype dtype, int64_t n, const void *data);
ck_buffer *ck_out(ck_case *c, const char *name, xp_dtype dtype, int64_t n, ck_tolerance tolerance);
ck_buffer *ck_inout(ck_case *c, const char *name, xp_dtype dtype, int64_t n,
                    ck_tolerance tolerance);
ck_buffer *ck_saved(ck_case *c, const char *name, xp_dtype dtype, int64_t n);
void ck_scratch(ck_case *c, const char *name, xp_dtype dtype, int64_t n);

typedef struct ck_candidate {
    xp_device *device;
    xp_stream *stream;
    const xp_ops *ops;
    char name[64];
    int same_bits_as; /* index of the candidate whose bits it must give; -1: none */
} ck_candidate;

typedef struct ck_limits {
    double copy_bytes_per_s, flops_per_s; /* of the machine, measured in this run */
    const char *what;                     /* whose rate that is: "sgemm", "bf16 matmul" */
} ck_limits;

typedef struct ck_shapes ck_shapes; /* shapes.h */
typedef struct ck_context {
    uint64_t seed;
    const char *op_glob;
    int part, n_parts; /* cases part, part + n_parts, ... */
    bool bench, json, verbose;
    bool quick;      /* small cases once, without NaN runs: for slow tools such as sanitizers */
    bool gpu;        /* the candidates are a GPU: other sizes are timed */
    bool list;       /* cases are counted, not run */
    double repeat_s; /* bench: how long a case is repeated */
    FILE *out;
    int n_candidates, n_cases, n_failed, n_json;
    ck_candidate candidates[CK_MAX_CANDIDATES];
    ck_candidate reference; /* the plain table, on host memory */
    ck_limits limits;
    int n_cases_of[CK_N_OPS]; /* by op, in the order of XP_OP_LIST */
    ck_shapes *shapes;        /* not NULL: cases become rows of its table */
} ck_context;

/** checkop.c: count a case of that op. */
void ck_count_case(ck_context *ctx, const char *op);

/** Run a case (or time it when the context says so); failures are printed and counted. */
void ck_run(ck_context *ctx, const ck_case *c);

/**
 * Backward against central differences of the plain forward. Buffers are matched by name: forward's
 * output y has its gradient in backward's input "dy", and backward's output "dx" is the gradient of
 * forward's input x. fp32 cases.
 * @param tolerance  relative, of a directional derivative
 */
void ck_gradient(ck_context *ctx, const ck_case *forward, const ck_case *backward,
                 double tolerance);

/* ---- the parts of the harness ---------------------------------------------------------------- */

/** Filled for a run: inputs by (seed, name), outputs poisoned, saved buffers computed by the plain
 * forward. */
XP_NODISCARD xp_status ck_image_create(const ck_context *ctx, const ck_case *c, ck_image **image);
XP_NODISCARD xp_status ck_image_copy(const ck_image *from, ck_image **image);
void ck_image_destroy(ck_image *image);
void *ck_image_data(const ck_image *image, int buffer);
int ck_find(const ck_case *c, const char *name); /* -1: none */
/** Run on host memory with the plain table. */
XP_NODISCARD xp_status ck_run_reference(const ck_context *ctx, ck_image *image);
/** Run in the candidate's memory between sentinels; `image` gets the result. @param[out] damage
 * text, "" when none */
XP_NODISCARD xp_status ck_run_candidate(const ck_candidate *candidate, ck_image *image,
                                        char *damage, size_t n_damage);
/** A case's buffers in a candidate's memory, each between guards. */
typedef struct ck_block {
    char *base;
    size_t n_bytes;
} ck_block;
typedef struct ck_loaded {
    ck_block blocks[CK_MAX_BUFFERS];
    void *pointers[CK_MAX_BUFFERS];
    void *scratch;
} ck_loaded;
XP_NODISCARD xp_status ck_loaded_create(const ck_candidate *candidate, const ck_image *image,
                                        ck_loaded *loaded);
void ck_loaded_release(const ck_candidate *candidate, const ck_case *c, ck_loaded *loaded);
/** Compare all outputs; false with a text that says which element, how far, why that tolerance. */
bool ck_compare(const ck_case *c, const ck_image *want, const ck_image *got, bool nan_run,
                char *text, size_t n_text);
bool ck_same_bits(const ck_case *c, const ck_image *a, const ck_image *b, char *text,
                  size_t n_text);
double ck_load(const void *data, xp_dtype dtype, int64_t i);
void ck_store(void *data, xp_dtype dtype, int64_t i, double value);

/** tolerance.c */
typedef struct ck_tolerance_row {
    double relative_f32, relative_bf16; /* of the element */
    double rms_f32, rms_bf16;           /* of the root mean square of the buffer, or of a row */
    const char *reason;
} ck_tolerance_row;
const ck_tolerance_row *ck_tolerance_get(ck_tolerance tolerance);

/** bench.c: seconds of one call, the best of repeated runs; a table line or JSON object with the
 * machine's limit beside it. */
XP_NODISCARD xp_status ck_measure_limits(const ck_candidate *candidate, double repeat_s,
                                         ck_limits *limits);
void ck_bench(ck_context *ctx, const ck_case *c);
/** The larger of FLOP and bytes over the machine's limits. Bytes that a case does not count: all of its buffers once.
 * @param[out] by_flops  which of them it is */
double ck_floor_s(const ck_context *ctx, const ck_case *c, bool *by_flops);
/** bench_gpu.c: the same on a GPU: device time, the median of many, caches flushed before each. */
XP_NODISCARD xp_status ck_measure_gpu_limits(const ck_candidate *candidate, double repeat_s,
                                             ck_limits *limits);
XP_NODISCARD xp_status ck_time_on_gpu(const ck_candidate *candidate, const ck_call *call,
                                      double repeat_s, double *seconds);

/** checkop.c: the program, --help says what it does; also the inside of `expar bench ops`. @return
 * the exit code */
int ck_main(int argc, char **argv);

/* ---- the families ---------------------------------------------------------------------------- */

/**
 * cases_NAME.c defines `void ck_NAME_cases(ck_context *ctx)`, which runs the family's cases, or its
 * timed shapes when ctx->bench. The build makes this list of the files that there are; it ends with
 * NULL.
 */
typedef void (*ck_family)(ck_context *ctx);
extern const ck_family ck_families[];

#endif
