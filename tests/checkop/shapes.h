/**
 * A table of shapes that users have: each op beside its floor, and beside the best that an op of its kind and size
 * reaches. The families build the cases as for timing; shapes_users.c says which shapes.
 */
#ifndef CHECKOP_SHAPES_H
#define CHECKOP_SHAPES_H

#include "checkop.h"

/** By the floor, below 5, 15, 50 and 150 us and more: what is as short as a launch and what fills a GPU are not
 * comparable. */
typedef enum ck_size_class {
    CK_BELOW_5,
    CK_BELOW_15,
    CK_BELOW_50,
    CK_BELOW_150,
    CK_LONGER,
    CK_N_CLASSES
} ck_size_class;

typedef struct ck_shape_row {
    const char *op;
    char shape[128];
    double seconds, floor_s;
    bool by_flops; /* bound by FLOP, else by bytes */
    ck_size_class size;
    char reason[96]; /* why it may stay below its class; "" none */
    char error[160]; /* not timed; "" none */
} ck_shape_row;

#define CK_NOISE (1 << 20)

struct ck_shapes {
    int64_t scale; /* sizes are divided by it */
    double budget_s, began_s, told_s;
    bool counting; /* cases are counted, not timed */
    int n_cases, n_left_out;
    ck_shape_row *rows; /* [n_rows], room for n_cases */
    int n_rows;
    float *normal, *positive; /* [CK_NOISE] N(0, 1); uniform in [0.5, 1.5) */
    char *flush;              /* of a CPU: written before each sample */
};

/** Time all shapes and print the table. @return XP_OK, also where single shapes failed (ctx->n_failed) */
XP_NODISCARD xp_status ck_shapes_run(ck_context *ctx);
/** From ck_run(): the case becomes a row. */
void ck_shapes_add(ck_context *ctx, const ck_case *c);

/** shapes_table.c: rows, what each op reaches by size, and what is under 60 % without a reason; JSON. */
void ck_shapes_print(const ck_context *ctx, const ck_shapes *shapes);
void ck_shapes_json(const ck_context *ctx, const ck_shapes *shapes);

/** shapes_load.c: the case in the candidate's memory, random inputs, saved buffers from its forward. */
XP_NODISCARD xp_status ck_shapes_load(const ck_candidate *candidate, const ck_shapes *shapes,
                                      const ck_case *c, ck_loaded *loaded);

/** shapes_users.c: runs every shape through the families. */
void ck_shapes_users(ck_context *ctx);

/* ---- what the families build; each runs forward and backward ---------------------------------- */

typedef struct ck_gemm_shape {
    const char *what; /* "qkv " */
    int64_t m, n, k;
    bool trans_a, trans_b;
    xp_dtype dtype;
} ck_gemm_shape;
void ck_gemm_at(ck_context *ctx, const ck_gemm_shape *shape);

typedef struct ck_grouped_shape {
    int64_t n_experts, rows; /* of an expert */
    int64_t n_tokens, n, k;
    xp_dtype dtype;
    bool forward_only;
} ck_grouped_shape;
void ck_grouped_at(ck_context *ctx, const ck_grouped_shape *shape);

typedef struct ck_heads {
    int64_t n_rows, seq_len;
    int n_heads, n_kv_heads, head_dim;
} ck_heads;
void ck_attention_at(ck_context *ctx, const ck_heads *heads, xp_dtype dtype);
void ck_rope_at(ck_context *ctx, const ck_heads *heads, xp_dtype dtype);

void ck_rmsnorm_at(ck_context *ctx, int64_t n_tokens, int64_t dim, xp_dtype dtype);
void ck_embed_at(ck_context *ctx, int64_t n_tokens, int64_t dim, int64_t vocab, xp_dtype dtype);
void ck_router_at(ck_context *ctx, int64_t n_tokens, int64_t n_experts, int64_t top_k);
void ck_router_linear_at(ck_context *ctx, int64_t n_tokens, int64_t n_experts, int64_t dim);
void ck_histogram_at(ck_context *ctx, int64_t n, int64_t n_experts);
void ck_silu_at(ck_context *ctx, int64_t n_rows, int64_t dim, xp_dtype dtype);
void ck_loss_at(ck_context *ctx, int64_t n_rows, int64_t vocab, xp_dtype dtype);
void ck_optimizer_at(ck_context *ctx, int64_t n, xp_dtype dtype);

#endif
