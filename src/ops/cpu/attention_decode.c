/* Attention over a decoder's cache of keys and values: one head of one new token at a time. */
#include <math.h>
#include "ops/cpu/cpu_ops.h"

/* Elements of a head whose query and sum are kept at a time in fp32. */
#define MAX_HEAD_DIM 256

static int64_t kv_width(const xp_attention_decode_args *args) {
    return (int64_t)args->n_kv_heads * args->head_dim;
}

static void append(const xp_attention_decode_args *args) {
    const int64_t width = kv_width(args);
    for (int64_t t = 0; t < args->n_tokens; t++)
        for (int64_t i = 0; i < width; i++) {
            const int64_t to = (args->n_cached + t) * width + i;
            xp_cpu_store(args->k_cache, args->dtype, to,
                         xp_cpu_load(args->k, args->dtype, t * width + i));
            xp_cpu_store(args->v_cache, args->dtype, to,
                         xp_cpu_load(args->v, args->dtype, t * args->ldv + i));
        }
}

/* One query head over the first n keys of its group: softmax(q k^T scale) v. */
static void attend(const xp_attention_decode_args *args, int64_t t, int head) {
    const int64_t width = kv_width(args), c = args->head_dim, n = args->n_cached + t + 1;
    const int64_t first = head / (args->n_heads / args->n_kv_heads) * c;
    const int64_t at = (t * args->n_heads + head) * c;
    float query[MAX_HEAD_DIM], sum[MAX_HEAD_DIM], max = -INFINITY, total = 0.0F;
    for (int64_t i = 0; i < c; i++) {
        query[i] = xp_cpu_load(args->q, args->dtype, at + i) * args->scale;
        sum[i] = 0.0F;
    }
    for (int64_t j = 0; j < n; j++) {
        float dot = 0.0F;
        for (int64_t i = 0; i < c; i++)
            dot += query[i] * xp_cpu_load(args->k_cache, args->dtype, j * width + first + i);
        args->scores[j] = dot;
        max = dot > max ? dot : max;
    }
    for (int64_t j = 0; j < n; j++) {
        const float weight = expf(args->scores[j] - max);
        total += weight;
        for (int64_t i = 0; i < c; i++)
            sum[i] += weight * xp_cpu_load(args->v_cache, args->dtype, j * width + first + i);
    }
    for (int64_t i = 0; i < c; i++)
        xp_cpu_store(args->out, args->dtype, at + i, sum[i] / total);
}

static xp_status decode(xp_stream *stream, const xp_attention_decode_args *args) {
    (void)stream;
    append(args);
    for (int64_t t = 0; t < args->n_tokens; t++)
        for (int head = 0; head < args->n_heads; head++)
            attend(args, t, head);
    return XP_OK;
}

void xp_cpu_attention_decode(xp_ops *ops) {
    ops->attention_decode = decode;
}
