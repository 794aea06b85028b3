/* What the ops need filled or sized before they run: scratch, RoPE's table, the ids of forced
 * balance. */
#include <math.h>
#include "ops/cuda/attention_hopper.h"
#include "ops/ops.h"
#include "ops/ops_blocks.h"

int64_t xp_ops_block_rows(int64_t n_rows) {
    const int64_t rows = (n_rows + XP_OPS_MAX_BLOCKS - 1) / XP_OPS_MAX_BLOCKS;
    return rows < XP_OPS_MIN_BLOCK_ROWS ? XP_OPS_MIN_BLOCK_ROWS : rows;
}

int64_t xp_ops_n_blocks(int64_t n_rows) {
    const int64_t rows = xp_ops_block_rows(n_rows);
    return (n_rows + rows - 1) / rows;
}

int64_t xp_ops_gpu_block_rows(int64_t n_rows) {
    const int64_t rows = (n_rows + XP_OPS_GPU_BLOCKS - 1) / XP_OPS_GPU_BLOCKS;
    return rows < XP_OPS_GPU_MIN_BLOCK_ROWS ? XP_OPS_GPU_MIN_BLOCK_ROWS : rows;
}

int64_t xp_ops_n_gpu_blocks(int64_t n_rows) {
    const int64_t rows = xp_ops_gpu_block_rows(n_rows);
    return (n_rows + rows - 1) / rows;
}

/* At least two floats an element, so that plain code can keep one fp64 sum each. */
static int64_t partial_sums(int64_t n_rows, int64_t width) {
    int64_t n_blocks = xp_ops_n_blocks(n_rows);
    if (n_blocks < xp_ops_n_gpu_blocks(n_rows))
        n_blocks = xp_ops_n_gpu_blocks(n_rows);
    return (n_blocks < 2 ? 2 : n_blocks) * width;
}

int64_t xp_rmsnorm_scratch(int64_t n_rows, int64_t dim) {
    return partial_sums(n_rows, dim);
}

int64_t xp_qknorm_scratch(int64_t n_tokens, int64_t head_dim) {
    return partial_sums(n_tokens, 2 * head_dim);
}

int64_t xp_sum_squares_scratch(int64_t n) {
    return n / XP_OPS_SUM_BLOCK + 1;
}

int64_t xp_sum_squares_parts_scratch(const xp_ops_part *parts, int n_parts) {
    int64_t n = 0;
    for (int i = 0; i < n_parts; i++)
        n += xp_sum_squares_scratch(parts[i].n);
    return n > 0 ? n : 1;
}

xp_sum_squares_args xp_sum_squares_of_part(const xp_sum_squares_parts_args *args, int i) {
    const int64_t offset = args->parts[i].first * (int64_t)xp_dtype_bytes(args->dtype);
    return (xp_sum_squares_args){.n = args->parts[i].n,
                                 .x = (const char *)args->x + offset,
                                 .dtype = args->dtype,
                                 .out = args->out + i,
                                 .scratch = args->scratch};
}

/* dlogits in parts, gate once for each part, and d_gate by parts. */
size_t xp_router_linear_scratch(int64_t n_tokens, int n_experts, int64_t dim) {
    const xp_router_parts p = xp_router_parts_of(n_tokens, n_experts, dim);
    return p.d_gate_at + (size_t)(p.width * dim) * sizeof(float);
}

xp_router_parts xp_router_parts_of(int64_t n_tokens, int n_experts, int64_t dim) {
    const int64_t width = (3 * (int64_t)n_experts + 7) / 8 * 8;
    const size_t dlogits = ((size_t)(n_tokens * width) * 2 + 255) / 256 * 256;
    const size_t gate = ((size_t)(width * dim) * 2 + 255) / 256 * 256;
    return (xp_router_parts){.width = width, .gate_at = dlogits, .d_gate_at = dlogits + gate};
}

size_t xp_attention_sums_bytes(int64_t n_rows, int64_t n_heads, int64_t seq_len) {
    const size_t n_bytes = (size_t)(n_rows * n_heads * seq_len) * sizeof(float);
    return (n_bytes + 255) / 256 * 256;
}

/*
 * As ops/cuda/attention.c chooses on an H100 or H200. Forward needs none. Heads of 64 or 128
 * elements: the backward of sm_90a keeps an fp32 dq and two sums a query. Others: the deterministic
 * backward of whole rows is cuDNN's, which keeps one bf16 number for each pair of tokens and head
 * of a piece of the rows, at most 1 GiB where rows allow it, and a sum and an fp32 gradient a
 * query. Documents and other lengths keep the sums alone. Shapes that the plain kernel serves need
 * none.
 */
size_t xp_attention_scratch_gpu(const xp_attention_args *args, bool backward) {
    const int64_t most = (int64_t)1 << 30;
    const int n_sms = 132;
    const int64_t pairs = 2 * args->n_heads * args->seq_len * args->seq_len;
    const bool in_eights = args->head_dim % 8 == 0 && args->ldq % 8 == 0 && args->ldk % 8 == 0 &&
                           args->ldv % 8 == 0 && args->ldo % 8 == 0;
    if (!backward || args->dtype != XP_BF16 || !in_eights || args->head_dim > 128 ||
        args->n_rows == 0 || args->seq_len == 0)
        return 0;
    if (args->head_dim == 64 || args->head_dim == 128) {
        xp_attention_hopper p = {.a = *args};
        return xp_attention_hopper_plan(&p, n_sms, NULL);
    }
    if (args->doc_start != NULL || args->seq_len % 128 != 0)
        return xp_attention_sums_bytes(args->n_rows, args->n_heads, args->seq_len);
    int64_t rows = args->n_rows;
    while (rows > 1 && (args->n_rows % rows != 0 || rows * pairs > most))
        rows--;
    const int64_t queries = rows * args->n_heads * args->seq_len;
    return (size_t)(rows * pairs) + (size_t)(queries * args->head_dim) * sizeof(float) +
           xp_attention_sums_bytes(rows, args->n_heads, args->seq_len);
}

void xp_rope_fill(float theta, int head_dim, int64_t n_positions, float *rope) {
    const int half = head_dim / 2;
    for (int i = 0; i < half; i++) {
        /* every step rounded to fp32, as transformers' fp32 tensors are */
        const float exponent = (float)(2 * i) / (float)head_dim;
        const float inv_freq = 1.0f / (float)pow((double)theta, (double)exponent);
        for (int64_t t = 0; t < n_positions; t++) {
            const float angle = (float)t * inv_freq;
            rope[t * head_dim + i] = (float)cos((double)angle);
            rope[t * head_dim + half + i] = (float)sin((double)angle);
        }
    }
}

/*
 * Assignment number p = t * K + k, counted over the microbatch. modulo: expert p % E. spread: rank p % R,
 * and on that rank expert (p / R) % L: as uniform as modulo (any E consecutive assignments name each
 * expert once, so a token's are distinct), but the experts of a token lie on min(K, R) ranks.
 */
void xp_forced_balance_fill(xp_forced_mode mode, int64_t n_tokens, int top_k, int n_experts,
                            int n_ranks, int32_t *ids) {
    const bool spread = mode == XP_FORCED_SPREAD && n_ranks > 1 && n_experts % n_ranks == 0;
    const int64_t n_local = spread ? n_experts / n_ranks : n_experts;
    for (int64_t p = 0; p < n_tokens * top_k; p++) {
        const int64_t rank = spread ? p % n_ranks : 0;
        const int64_t local = (spread ? p / n_ranks : p) % n_local;
        ids[p] = (int32_t)(rank * n_local + local);
    }
}
