/* Text generation: the model's own forward over the fed tokens, with attention over a cache of keys
 * and values. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_internal.h"

struct xp_decoder {
    xp_model *model;
    xp_stream *stream;
    int64_t max_tokens, n_cached, n_fed; /* n_fed: of the running call */
    void *memory;         /* keys and values of all layers, fp32, and the RoPE table */
    float *keys, *values; /* [n_layers, max_tokens, G, C] */
    float *rope;          /* [max_tokens, C] */
    float *logits;        /* [V] */
    float *scores;        /* [max_tokens] */
    float *head;          /* [2, C] one head's query and its sum */
    int32_t *positions;   /* [T of the model] host */
};

static int64_t kv_width(const xp_arch *arch) {
    return (int64_t)arch->n_kv_heads * arch->head_dim;
}

static float load(const void *data, xp_dtype dtype, int64_t i) {
    return dtype == XP_F32 ? ((const float *)data)[i] : xp_bf16_to_f32(((const uint16_t *)data)[i]);
}

static void store(void *data, xp_dtype dtype, int64_t i, float value) {
    if (dtype == XP_F32)
        ((float *)data)[i] = value;
    else
        ((uint16_t *)data)[i] = xp_bf16_from_f32(value);
}

/* One query head over the first n keys of its group: softmax(q k^T scale) v. */
static void attend_head(const xp_decoder *decoder, const float *keys, const float *values,
                        int64_t n, const void *q, int64_t at, void *out) {
    const xp_model *model = decoder->model;
    const int64_t width = kv_width(&model->arch), c = model->arch.head_dim;
    const float scale = xp_attention_scale(&model->arch);
    float *scores = decoder->scores, *query = decoder->head, *sum = query + c, max = -INFINITY;
    for (int64_t i = 0; i < c; i++) {
        query[i] = load(q, model->args.dtype, at + i) * scale;
        sum[i] = 0.0F;
    }
    for (int64_t j = 0; j < n; j++) {
        float dot = 0.0F;
        for (int64_t i = 0; i < c; i++)
            dot += query[i] * keys[j * width + i];
        scores[j] = dot;
        max = dot > max ? dot : max;
    }
    float total = 0.0F;
    for (int64_t j = 0; j < n; j++) {
        float weight = expf(scores[j] - max);
        total += weight;
        for (int64_t i = 0; i < c; i++)
            sum[i] += weight * values[j * width + i];
    }
    for (int64_t i = 0; i < c; i++)
        store(out, model->args.dtype, at + i, sum[i] / total);
}

/* xp_attend.attend: new keys and values into the cache, then every new token over what stands
 * before it. */
static xp_status attend(void *context, int layer, const void *q, const void *k, const void *v,
                        int64_t ldv, void *out, xp_stream *stream) {
    xp_decoder *decoder = context;
    const xp_model *model = decoder->model;
    const xp_arch *arch = &model->arch;
    const int64_t width = kv_width(arch), c = arch->head_dim;
    const int group = arch->n_heads / arch->n_kv_heads;
    XP_TRY(xp_stream_sync(stream));
    float *keys = decoder->keys + layer * decoder->max_tokens * width;
    float *values = decoder->values + layer * decoder->max_tokens * width;
    for (int64_t t = 0; t < decoder->n_fed; t++) {
        int64_t row = (decoder->n_cached + t) * width;
        for (int64_t i = 0; i < width; i++) {
            keys[row + i] = load(k, model->args.dtype, t * width + i);
            values[row + i] = load(v, model->args.dtype, t * ldv + i);
        }
    }
    for (int64_t t = 0; t < decoder->n_fed; t++) {
        for (int h = 0; h < arch->n_heads; h++)
            attend_head(decoder, keys + h / group * c, values + h / group * c,
                        decoder->n_cached + t + 1, q, (t * arch->n_heads + h) * c, out);
    }
    return XP_OK;
}

static xp_status reserve(xp_decoder *decoder) {
    const xp_arch *arch = &decoder->model->arch;
    size_t cache = (size_t)(arch->n_layers * decoder->max_tokens * kv_width(arch)) * sizeof(float);
    size_t rope = (size_t)(decoder->max_tokens * arch->head_dim) * sizeof(float);
    size_t logits = (size_t)arch->vocab_size * sizeof(float);
    size_t scores = (size_t)decoder->max_tokens * sizeof(float);
    size_t head = 2 * (size_t)arch->head_dim * sizeof(float);
    XP_TRY(xp_device_alloc(decoder->model->device, 2 * cache + rope + logits + scores + head,
                           "decoder", &decoder->memory));
    char *at = decoder->memory;
    decoder->keys = (float *)at;
    decoder->values = (float *)(at + cache);
    decoder->rope = (float *)(at + 2 * cache);
    decoder->logits = (float *)(at + 2 * cache + rope);
    decoder->scores = (float *)(at + 2 * cache + rope + logits);
    decoder->head = (float *)(at + 2 * cache + rope + logits + scores);
    xp_rope_fill((float)arch->rope_theta, arch->head_dim, decoder->max_tokens, decoder->rope);
    const xp_model_args *args = &decoder->model->args;
    decoder->positions = malloc((size_t)(args->n_rows * args->seq_len) * sizeof(int32_t));
    return decoder->positions ? XP_OK : xp_error(XP_ENOMEM, "decoder: out of memory");
}

xp_status xp_decoder_create(xp_model *model, int64_t max_tokens, xp_decoder **decoder) {
    if (max_tokens < 1 || max_tokens > INT32_MAX)
        return xp_error(XP_EINVAL, "decoder: room for %lld tokens", (long long)max_tokens);
    if (!xp_device_host_accessible(model->device))
        return xp_error(XP_ENOTSUP,
                        "decoder: text is generated on the CPU only; this model is on %s",
                        xp_device_name(model->device));
    xp_decoder *made = calloc(1, sizeof(*made));
    if (!made)
        return xp_error(XP_ENOMEM, "decoder: out of memory");
    made->model = model;
    made->max_tokens = max_tokens;
    xp_status status = reserve(made);
    if (status == XP_OK)
        status = xp_stream_create(model->device, XP_STREAM_COMPUTE, &made->stream);
    if (status != XP_OK) {
        xp_decoder_destroy(made);
        return status;
    }
    *decoder = made;
    return XP_OK;
}

void xp_decoder_destroy(xp_decoder *decoder) {
    if (!decoder)
        return;
    xp_stream_destroy(decoder->stream);
    xp_device_free(decoder->model->device, decoder->memory);
    free(decoder->positions);
    free(decoder);
}

/* At most as many tokens as the model's buffers hold. */
static xp_status feed_some(xp_decoder *decoder, const int32_t *tokens, int64_t n) {
    xp_model *model = decoder->model;
    xp_model_work *work = &model->work;
    xp_stream *stream = decoder->stream;
    const xp_attend over_cache = {attend, decoder, decoder->rope};
    const size_t n_bytes = (size_t)n * sizeof(int32_t);
    model->n_rows = 1;
    model->seq_len = model->n_tokens = decoder->n_fed = n;
    model->training = model->has_logits = model->has_doc_start = false;
    model->loss_scale = 0.0F;
    model->n_valid = 0;
    for (int64_t i = 0; i < n; i++)
        decoder->positions[i] = (int32_t)(decoder->n_cached + i);
    XP_TRY(xp_copy(stream, work->tokens, tokens, n_bytes));
    XP_TRY(xp_copy(stream, work->targets, tokens, n_bytes));
    XP_TRY(xp_copy(stream, work->positions, decoder->positions, n_bytes));
    if (model->core)
        xp_moe_core_begin(model->core);
    const xp_embed_args embed = {.n_tokens = n,
                                 .dim = model->arch.dim,
                                 .vocab = model->arch.vocab_size,
                                 .ids = work->tokens,
                                 .table = model->embed.data,
                                 .x = xp_acts_get(&model->acts, 0, XP_ACT_INPUT),
                                 .dtype = model->args.dtype};
    XP_TRY(model->ops->embed_forward(stream, &embed));
    for (int layer = 0; layer < model->arch.n_layers; layer++)
        XP_TRY(xp_layer_forward(model, layer, &over_cache, stream));
    decoder->n_cached += n;
    return XP_OK;
}

xp_status xp_decoder_feed(xp_decoder *decoder, const int32_t *tokens, int64_t n, float *logits) {
    xp_model *model = decoder->model;
    const int64_t vocab = model->arch.vocab_size;
    if (n < 1 || n > decoder->max_tokens - decoder->n_cached)
        return xp_error(XP_EINVAL, "decoder: %lld more tokens, but %lld of %lld are taken",
                        (long long)n, (long long)decoder->n_cached, (long long)decoder->max_tokens);
    for (int64_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= vocab)
            return xp_error(XP_EINVAL, "decoder: token %d is not in [0, %lld)", tokens[i],
                            (long long)vocab);
    }
    const int64_t most = model->args.n_rows * model->args.seq_len;
    for (int64_t done = 0; done < n;) {
        int64_t some = n - done < most ? n - done : most;
        XP_TRY(feed_some(decoder, tokens + done, some));
        done += some;
    }
    XP_TRY(xp_head_norm(model, decoder->stream));
    XP_TRY(xp_head_logits(model, model->n_tokens - 1, 1, decoder->logits, decoder->stream));
    XP_TRY(xp_copy(decoder->stream, logits, decoder->logits, (size_t)vocab * sizeof(float)));
    return xp_stream_sync(decoder->stream);
}
