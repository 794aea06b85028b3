/* Building cases, filling their buffers, and running them on the plain table and on candidates. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "checkop.h"
#include "core/rng.h"

#define GUARD_BYTES    256 /* keeps the 256-byte alignment of the device */
#define GUARD_BYTE     0xA5
#define BENCH_DISTINCT (3 << 18) /* enough that no cache line repeats soon */
#define POISON_BYTE    0xFF      /* NaN as fp32, bf16 and fp64, -1 as an integer */

struct ck_image {
    const ck_case *c;
    void *data[CK_MAX_BUFFERS];
};

/* ---- cases ----------------------------------------------------------------------------------- */

void ck_case_init(ck_case *c, const char *op, xp_status (*call)(const ck_call *call)) {
    memset(c, 0, sizeof *c);
    c->op = op;
    c->call = call;
}

static ck_buffer *add(ck_case *c, ck_role role, const char *name, xp_dtype dtype, int64_t n) {
    if (c->n_buffers == CK_MAX_BUFFERS)
        abort(); /* a case of this program is too large: CK_MAX_BUFFERS */
    ck_buffer *b = &c->buffers[c->n_buffers++];
    *b = (ck_buffer){
        .name = name, .role = role, .dtype = dtype, .n = n, .fill = CK_NORMAL, .limit = 1.0};
    return b;
}

ck_buffer *ck_in(ck_case *c, const char *name, xp_dtype dtype, int64_t n) {
    return add(c, CK_IN, name, dtype, n);
}
ck_buffer *ck_index(ck_case *c, const char *name, int64_t n, int64_t below) {
    ck_buffer *b = add(c, CK_IN, name, XP_I32, n);
    b->fill = CK_INDEX;
    b->limit = (double)below;
    return b;
}
ck_buffer *ck_given(ck_case *c, const char *name, xp_dtype dtype, int64_t n, const void *data) {
    ck_buffer *b = add(c, CK_IN, name, dtype, n);
    b->fill = CK_GIVEN;
    b->data = data;
    return b;
}
ck_buffer *ck_out(ck_case *c, const char *name, xp_dtype dtype, int64_t n, ck_tolerance tolerance) {
    ck_buffer *b = add(c, CK_OUT, name, dtype, n);
    b->tolerance = tolerance;
    return b;
}
ck_buffer *ck_inout(ck_case *c, const char *name, xp_dtype dtype, int64_t n,
                    ck_tolerance tolerance) {
    ck_buffer *b = add(c, CK_INOUT, name, dtype, n);
    b->tolerance = tolerance;
    return b;
}
ck_buffer *ck_saved(ck_case *c, const char *name, xp_dtype dtype, int64_t n) {
    return add(c, CK_SAVED, name, dtype, n);
}
void ck_scratch(ck_case *c, const char *name, xp_dtype dtype, int64_t n) {
    add(c, CK_SCRATCH, name, dtype, n);
}

double ck_tiles(int64_t n) {
    return (double)((n + 127) / 128);
}
void ck_few_tiles(ck_case *c, double n_tiles) {
    static const double n_sms = 132; /* H100, H200 */
    if (n_tiles < n_sms && c->reason[0] == '\0')
        snprintf(c->reason, sizeof c->reason, "%.0f tiles of 128 x 128 for %.0f SMs", n_tiles,
                 n_sms);
}

int ck_find(const ck_case *c, const char *name) {
    for (int i = 0; i < c->n_buffers; i++)
        if (strcmp(c->buffers[i].name, name) == 0)
            return i;
    return -1;
}

void *ck_at(const ck_call *call, const char *name) {
    const int i = ck_find(call->c, name);
    return i < 0 ? NULL : call->pointers[i];
}

/* ---- values ---------------------------------------------------------------------------------- */

double ck_load(const void *data, xp_dtype dtype, int64_t i) {
    switch (dtype) {
    case XP_F32:
        return (double)((const float *)data)[i];
    case XP_BF16:
        return (double)xp_bf16_to_f32(((const uint16_t *)data)[i]);
    case XP_F64:
        return ((const double *)data)[i];
    case XP_I32:
        return (double)((const int32_t *)data)[i];
    default:
        return (double)((const int64_t *)data)[i];
    }
}

void ck_store(void *data, xp_dtype dtype, int64_t i, double value) {
    switch (dtype) {
    case XP_F32:
        ((float *)data)[i] = (float)value;
        break;
    case XP_BF16:
        ((uint16_t *)data)[i] = xp_bf16_from_f32((float)value);
        break;
    case XP_F64:
        ((double *)data)[i] = value;
        break;
    case XP_I32:
        ((int32_t *)data)[i] = (int32_t)value;
        break;
    default:
        ((int64_t *)data)[i] = (int64_t)value;
    }
}

static size_t bytes_of(const ck_buffer *b) {
    return (size_t)b->n * xp_dtype_bytes(b->dtype);
}

/* By name, so that a forward and a backward case see the same x. */
/* `distinct`: how many elements are drawn; the rest repeats them. */
static void fill(const ck_buffer *b, uint64_t seed, int64_t distinct, void *data) {
    const uint64_t stream = xp_rng_stream(b->name);
    if (b->fill == CK_GIVEN) {
        memcpy(data, b->data, bytes_of(b));
        return;
    }
    const int64_t drawn = b->n < distinct ? b->n : distinct;
    for (int64_t i = 0; i < drawn; i++) {
        double v;
        if (b->fill == CK_INDEX)
            v = (double)xp_rng_below(seed, stream, (uint64_t)i, (uint64_t)b->limit);
        else if (b->fill == CK_POSITIVE)
            v = (0.5 + (double)xp_rng_uniform(seed, stream, (uint64_t)i)) * b->limit;
        else
            v = (double)xp_rng_normal(seed, stream, (uint64_t)i) * b->limit;
        ck_store(data, b->dtype, i, v);
    }
    const size_t element = xp_dtype_bytes(b->dtype), block = (size_t)drawn * element;
    for (size_t at = block; at < bytes_of(b); at += block)
        memcpy((char *)data + at, data, bytes_of(b) - at < block ? bytes_of(b) - at : block);
}

/* ---- images ---------------------------------------------------------------------------------- */

static xp_status allocate(const ck_case *c, ck_image **image) {
    ck_image *made = calloc(1, sizeof *made);
    if (made == NULL)
        return xp_error(XP_ENOMEM, "checkop: out of memory");
    made->c = c;
    for (int i = 0; i < c->n_buffers; i++) {
        made->data[i] = aligned_alloc(64, (bytes_of(&c->buffers[i]) + 64 + 63) / 64 * 64);
        if (made->data[i] == NULL) {
            ck_image_destroy(made);
            return xp_error(XP_ENOMEM, "checkop: out of memory");
        }
    }
    *image = made;
    return XP_OK;
}

/* Compute what `c` wants saved from its forward. */
static xp_status take_saved(const ck_context *ctx, const ck_case *c, ck_image *image) {
    ck_image *forward = NULL;
    XP_TRY(ck_image_create(ctx, c->forward, &forward));
    char damage[256];
    xp_status status =
        ctx->bench && ctx->n_candidates > 0 /* timed sizes are too much for the plain code */
            ? ck_run_candidate(&ctx->candidates[0], forward, damage, sizeof damage)
            : ck_run_reference(ctx, forward);
    for (int i = 0; status == XP_OK && i < c->n_buffers; i++) {
        if (c->buffers[i].role != CK_SAVED)
            continue;
        const int from = ck_find(c->forward, c->buffers[i].name);
        if (from < 0 || bytes_of(&c->forward->buffers[from]) != bytes_of(&c->buffers[i]))
            status = xp_error(XP_EINTERNAL, "checkop: %s saves no %s of that size", c->forward->op,
                              c->buffers[i].name);
        else
            memcpy(image->data[i], forward->data[from], bytes_of(&c->buffers[i]));
    }
    ck_image_destroy(forward);
    return status;
}

xp_status ck_image_create(const ck_context *ctx, const ck_case *c, ck_image **image) {
    ck_image *made = NULL;
    XP_TRY(allocate(c, &made));
    for (int i = 0; i < c->n_buffers; i++) {
        const ck_buffer *b = &c->buffers[i];
        if (b->role == CK_IN || b->role == CK_INOUT)
            fill(b, ctx->seed, ctx->bench ? BENCH_DISTINCT : INT64_MAX, made->data[i]);
        else
            memset(made->data[i], POISON_BYTE, bytes_of(b));
    }
    const xp_status status = c->forward == NULL ? XP_OK : take_saved(ctx, c, made);
    if (status != XP_OK) {
        ck_image_destroy(made);
        return status;
    }
    *image = made;
    return XP_OK;
}

xp_status ck_image_copy(const ck_image *from, ck_image **image) {
    XP_TRY(allocate(from->c, image));
    for (int i = 0; i < from->c->n_buffers; i++)
        memcpy((*image)->data[i], from->data[i], bytes_of(&from->c->buffers[i]));
    return XP_OK;
}

void ck_image_destroy(ck_image *image) {
    if (image == NULL)
        return;
    for (int i = 0; i < image->c->n_buffers; i++)
        free(image->data[i]);
    free(image);
}

void *ck_image_data(const ck_image *image, int buffer) {
    return image->data[buffer];
}

/* ---- runs ------------------------------------------------------------------------------------ */

xp_status ck_run_reference(const ck_context *ctx, ck_image *image) {
    const ck_call call = {image->c, ctx->reference.ops, ctx->reference.stream, image->data, NULL};
    XP_TRY(image->c->call(&call));
    return xp_stream_sync(ctx->reference.stream);
}

static xp_status upload(const ck_candidate *candidate, const void *data, size_t n_bytes,
                        ck_block *b) {
    const size_t all = n_bytes + 2 * GUARD_BYTES;
    char *staging = malloc(all);
    if (staging == NULL)
        return xp_error(XP_ENOMEM, "checkop: out of memory");
    memset(staging, GUARD_BYTE, all);
    memcpy(staging + GUARD_BYTES, data, n_bytes);
    void *base = NULL;
    xp_status status = xp_device_alloc(candidate->device, all, "checkop", &base);
    if (status == XP_OK) {
        *b = (ck_block){base, n_bytes};
        status = xp_copy(candidate->stream, base, staging, all);
    }
    if (status == XP_OK)
        status = xp_stream_sync(candidate->stream);
    free(staging);
    return status;
}

/* Copy a block back; `damage` says so when a guard was written over. */
static xp_status download(const ck_candidate *candidate, const ck_block *b, const char *name,
                          void *data, char *damage, size_t n_damage) {
    const size_t all = b->n_bytes + 2 * GUARD_BYTES;
    unsigned char *staging = malloc(all);
    if (staging == NULL)
        return xp_error(XP_ENOMEM, "checkop: out of memory");
    xp_status status = xp_copy(candidate->stream, staging, b->base, all);
    if (status == XP_OK)
        status = xp_stream_sync(candidate->stream);
    for (size_t i = 0; status == XP_OK && i < all; i++) {
        const bool guard = i < GUARD_BYTES || i >= GUARD_BYTES + b->n_bytes;
        if (guard && staging[i] != GUARD_BYTE && damage[0] == '\0')
            snprintf(damage, n_damage, "%s: wrote outside, at byte %lld of %zu", name,
                     (long long)i - GUARD_BYTES, b->n_bytes);
    }
    if (status == XP_OK)
        memcpy(data, staging + GUARD_BYTES, b->n_bytes);
    free(staging);
    return status;
}

static bool lies_under_output(const ck_case *c, const ck_buffer *input) {
    for (int i = 0; i < c->n_buffers; i++)
        if (c->buffers[i].on != NULL && strcmp(c->buffers[i].on, input->name) == 0)
            return true;
    return false;
}

static xp_status fetch_results(const ck_candidate *candidate, ck_image *image,
                               const ck_block *blocks, char *damage, size_t n_damage) {
    const ck_case *c = image->c;
    for (int i = 0; i < c->n_buffers; i++) {
        const ck_buffer *b = &c->buffers[i];
        const int at = b->on == NULL ? i : ck_find(c, b->on);
        const bool is_input = b->role == CK_IN || b->role == CK_SAVED;
        if (!is_input) {
            XP_TRY(download(candidate, &blocks[at], b->name, image->data[i], damage, n_damage));
            continue;
        }
        void *after = malloc(bytes_of(b) + 1);
        if (after == NULL)
            return xp_error(XP_ENOMEM, "checkop: out of memory");
        const xp_status status = download(candidate, &blocks[i], b->name, after, damage, n_damage);
        if (status == XP_OK && !lies_under_output(c, b) &&
            memcmp(after, image->data[i], bytes_of(b)) != 0 && damage[0] == '\0')
            snprintf(damage, n_damage, "%s: an input was changed", b->name);
        free(after);
        XP_TRY(status);
    }
    return XP_OK;
}

void ck_loaded_release(const ck_candidate *candidate, const ck_case *c, ck_loaded *loaded) {
    for (int i = 0; i < c->n_buffers; i++)
        xp_device_free(candidate->device, loaded->blocks[i].base);
    xp_device_free(candidate->device, loaded->scratch);
}

xp_status ck_loaded_create(const ck_candidate *candidate, const ck_image *image,
                           ck_loaded *loaded) {
    const ck_case *c = image->c;
    memset(loaded, 0, sizeof *loaded);
    for (int i = 0; i < c->n_buffers; i++) {
        if (c->buffers[i].on != NULL)
            continue;
        const xp_status status =
            upload(candidate, image->data[i], bytes_of(&c->buffers[i]), &loaded->blocks[i]);
        if (status != XP_OK) {
            ck_loaded_release(candidate, c, loaded);
            return status;
        }
    }
    for (int i = 0; i < c->n_buffers; i++)
        loaded->pointers[i] =
            loaded->blocks[c->buffers[i].on == NULL ? i : ck_find(c, c->buffers[i].on)].base +
            GUARD_BYTES;
    const ck_call asking = {c, candidate->ops, candidate->stream, loaded->pointers, NULL};
    const size_t n_scratch = c->scratch_bytes == NULL ? 0 : c->scratch_bytes(&asking);
    const xp_status status = n_scratch == 0 ? XP_OK
                                            : xp_device_alloc(candidate->device, n_scratch,
                                                              "checkop scratch", &loaded->scratch);
    if (status != XP_OK)
        ck_loaded_release(candidate, c, loaded);
    return status;
}

xp_status ck_run_candidate(const ck_candidate *candidate, ck_image *image, char *damage,
                           size_t n_damage) {
    const ck_case *c = image->c;
    ck_loaded loaded;
    damage[0] = '\0';
    XP_TRY(ck_loaded_create(candidate, image, &loaded));
    xp_status status =
        c->call(&(ck_call){c, candidate->ops, candidate->stream, loaded.pointers, loaded.scratch});
    if (status == XP_OK)
        status = xp_stream_sync(candidate->stream);
    if (status == XP_OK)
        status = fetch_results(candidate, image, loaded.blocks, damage, n_damage);
    ck_loaded_release(candidate, c, &loaded);
    return status;
}
