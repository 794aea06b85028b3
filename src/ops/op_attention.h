/** Causal attention. The rules for all ops stand in ops.h. */
#ifndef XP_OPS_OP_ATTENTION_H
#define XP_OPS_OP_ATTENTION_H

#include <stdbool.h>
#include "expar/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/**
 * attention_forward: causal attention with grouped queries over B rows of S tokens (T = B * S).
 * Token t of a row sees [doc_start, t].
 *
 *   out = softmax(q k^T * scale) v;  lse = log sum exp of the scaled scores
 */
typedef struct xp_attention_args {
    int64_t n_rows, seq_len;           /* B, S */
    int n_heads, n_kv_heads, head_dim; /* H, G, C; H a multiple of G */
    float scale;
    const void *q, *k, *v;      /* [T, H*C], [T, G*C], [T, G*C] with the leading dimensions below */
    int64_t ldq, ldk, ldv, ldo; /* elements between rows */
    const int32_t *doc_start;   /* [T] position where the token's document starts, or NULL: 0 */
    void *out;                  /* [T, H*C], leading dimension ldo */
    float *lse;                 /* [B, H, S] */
    xp_dtype dtype;
    void *scratch;        /* 256-byte aligned; NULL when scratch_bytes is 0 */
    size_t scratch_bytes; /* with less than xp_ops.attention_scratch() a slower kernel runs */
} xp_attention_args;

/** attention_backward: gradients of q, k and v from out, lse and dout. */
typedef struct xp_attention_backward_args {
    xp_attention_args forward; /* out and lse are inputs here */
    const void *dout;          /* [T, H*C], leading dimension ldo */
    void *dq, *dk, *dv;        /* out [T, H*C], [T, G*C], [T, G*C] */
    int64_t lddq, lddk, lddv;
} xp_attention_backward_args;

/**
 * attention_decode: attention of T new tokens of one sequence over a cache of keys and values. The new keys and values are
 * written into rows [n_cached, n_cached + T) of the caches first; new token t sees rows [0, n_cached + t].
 */
typedef struct xp_attention_decode_args {
    int64_t n_tokens, n_cached;        /* T, and the rows that the caches hold */
    int n_heads, n_kv_heads, head_dim; /* H, G, C; H a multiple of G; C at most 256 */
    float scale;
    const void *q, *k, *v;   /* [T, H*C], [T, G*C], [T, G*C] */
    int64_t ldv;             /* elements between rows of v; q and k are contiguous */
    void *k_cache, *v_cache; /* [>= n_cached + T, G*C]; rows below n_cached are inputs */
    void *out;               /* [T, H*C] */
    xp_dtype dtype;          /* of all of them */
    float *scores;           /* scratch [n_cached + T] */
} xp_attention_decode_args;

/** Bytes of scratch that attention takes on an H100 or H200: what the null device counts. */
size_t xp_attention_scratch_gpu(const xp_attention_args *args, bool backward);
/** Bytes of one fp32 sum per query and head, rounded up to 256: what attention's backward keeps. */
size_t xp_attention_sums_bytes(int64_t n_rows, int64_t n_heads, int64_t seq_len);

#ifdef __cplusplus
}
#endif
#endif
