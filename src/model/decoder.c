/* Text generation: the model's own forward over the fed tokens, with attention over a cache of keys and values on the
 * model's device. */
#include <stdlib.h>
#include <string.h>

#include "model/model_internal.h"

struct xp_decoder {
    xp_model *model;
    xp_stream *stream;
    int64_t max_tokens, n_cached, n_fed; /* n_fed: of the running call */
    /* device memory */
    void *memory;
    char *keys, *values; /* [n_layers, max_tokens, G, C] of the model's type */
    float *rope;         /* [max_tokens, C] */
    float *logits;       /* [V] */
    float *scores;       /* [max_tokens] */
    /* staging memory: what copies read and write while the stream goes on */
    void *staging;
    int32_t *positions; /* [max_tokens] 0, 1, 2, ... */
    int32_t *tokens;    /* [max_tokens] */
    float *host_logits; /* [V] */
};

static int64_t kv_width(const xp_arch *arch) {
    return (int64_t)arch->n_kv_heads * arch->head_dim;
}

/* xp_attend.attend: new keys and values into the cache, then every new token over what stands before it. */
static xp_status attend(void *context, int layer, const void *q, const void *k, const void *v,
                        int64_t ldv, void *out, xp_stream *stream) {
    xp_decoder *decoder = context;
    const xp_model *model = decoder->model;
    const xp_arch *arch = &model->arch;
    const int64_t rows = layer * decoder->max_tokens * kv_width(arch);
    const xp_attention_decode_args args = {
        .n_tokens = decoder->n_fed,
        .n_cached = decoder->n_cached,
        .n_heads = arch->n_heads,
        .n_kv_heads = arch->n_kv_heads,
        .head_dim = arch->head_dim,
        .scale = xp_attention_scale(arch),
        .q = q,
        .k = k,
        .v = v,
        .ldv = ldv,
        .k_cache = xp_offset(decoder->keys, rows, model->args.dtype),
        .v_cache = xp_offset(decoder->values, rows, model->args.dtype),
        .out = out,
        .dtype = model->args.dtype,
        .scores = decoder->scores};
    return model->ops->attention_decode(stream, &args);
}

static size_t rounded(size_t n_bytes) {
    return (n_bytes + 255) / 256 * 256;
}

static xp_status reserve(xp_decoder *decoder) {
    const xp_arch *arch = &decoder->model->arch;
    xp_device *device = decoder->model->device;
    const size_t cache = rounded((size_t)(arch->n_layers * decoder->max_tokens * kv_width(arch)) *
                                 xp_dtype_bytes(decoder->model->args.dtype));
    const size_t rope = rounded((size_t)(decoder->max_tokens * arch->head_dim) * sizeof(float));
    const size_t logits = rounded((size_t)arch->vocab_size * sizeof(float));
    const size_t scores = rounded((size_t)decoder->max_tokens * sizeof(float));
    const size_t ids = rounded((size_t)decoder->max_tokens * sizeof(int32_t));
    XP_TRY(
        xp_device_alloc(device, 2 * cache + rope + logits + scores, "decoder", &decoder->memory));
    char *at = decoder->memory;
    decoder->keys = at;
    decoder->values = at + cache;
    decoder->rope = (float *)(void *)(at + 2 * cache);
    decoder->logits = (float *)(void *)(at + 2 * cache + rope);
    decoder->scores = (float *)(void *)(at + 2 * cache + rope + logits);
    XP_TRY(xp_host_alloc(device, 2 * ids + logits, "decoder", &decoder->staging));
    decoder->positions = decoder->staging;
    decoder->tokens = (int32_t *)(void *)((char *)decoder->staging + ids);
    decoder->host_logits = (float *)(void *)((char *)decoder->staging + 2 * ids);
    for (int64_t i = 0; i < decoder->max_tokens; i++)
        decoder->positions[i] = (int32_t)i;
    return XP_OK;
}

static xp_status fill_rope(xp_decoder *decoder) {
    const xp_arch *arch = &decoder->model->arch;
    const size_t n_bytes = (size_t)(decoder->max_tokens * arch->head_dim) * sizeof(float);
    float *table = malloc(n_bytes);
    if (!table)
        return xp_error(XP_ENOMEM, "decoder: out of memory");
    xp_rope_fill((float)arch->rope_theta, arch->head_dim, decoder->max_tokens, table);
    xp_status status = xp_copy(decoder->stream, decoder->rope, table, n_bytes);
    if (status == XP_OK)
        status = xp_stream_sync(decoder->stream);
    free(table);
    return status;
}

xp_status xp_decoder_create(xp_model *model, int64_t max_tokens, xp_decoder **decoder) {
    if (max_tokens < 1 || max_tokens > INT32_MAX)
        return xp_error(XP_EINVAL, "decoder: room for %lld tokens", (long long)max_tokens);
    xp_decoder *made = calloc(1, sizeof(*made));
    if (!made)
        return xp_error(XP_ENOMEM, "decoder: out of memory");
    made->model = model;
    made->max_tokens = max_tokens;
    xp_status status = reserve(made);
    if (status == XP_OK)
        status = xp_stream_create(model->device, XP_STREAM_COMPUTE, &made->stream);
    if (status == XP_OK)
        status = fill_rope(made);
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
    xp_host_free(decoder->model->device, decoder->staging);
    free(decoder);
}

void xp_decoder_reset(xp_decoder *decoder) {
    decoder->n_cached = 0;
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
    memcpy(decoder->tokens + decoder->n_cached, tokens, n_bytes);
    tokens = decoder->tokens + decoder->n_cached;
    XP_TRY(xp_copy(stream, work->tokens, tokens, n_bytes));
    XP_TRY(xp_copy(stream, work->targets, tokens, n_bytes));
    XP_TRY(xp_copy(stream, work->positions, decoder->positions + decoder->n_cached, n_bytes));
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
    const size_t n_bytes = (size_t)vocab * sizeof(float);
    XP_TRY(xp_copy(decoder->stream, decoder->host_logits, decoder->logits, n_bytes));
    XP_TRY(xp_stream_sync(decoder->stream));
    memcpy(logits, decoder->host_logits, n_bytes);
    return XP_OK;
}
