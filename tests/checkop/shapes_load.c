/* A case's buffers in device memory without copies of them on the host: weights of 256 experts take tens of GB. */
#include <stdlib.h>
#include <string.h>
#include "core/rng.h"
#include "shapes.h"

/* Apart from each other in the noise, so that no two buffers of a case are equal. */
#define NOISE_STRIDE 104729

static size_t bytes_of(const ck_buffer *b) {
    return (size_t)b->n * xp_dtype_bytes(b->dtype);
}

static double value_at(const ck_shapes *shapes, const ck_buffer *b, int nth, int64_t i) {
    const int64_t at = (i + (int64_t)(nth + 1) * NOISE_STRIDE) % CK_NOISE;
    if (b->fill == CK_INDEX)
        return (double)xp_rng_below(1, xp_rng_stream(b->name), (uint64_t)i, (uint64_t)b->limit);
    return (double)(b->fill == CK_POSITIVE ? shapes->positive[at] : shapes->normal[at]) * b->limit;
}

/* The first elements from the host, the rest as copies of them on the device. */
static xp_status fill_random(const ck_candidate *candidate, const ck_shapes *shapes,
                             const ck_buffer *b, int nth, char *to) {
    static const int64_t most = CK_NOISE;
    const int64_t n = b->n < most ? b->n : most;
    const size_t block = (size_t)n * xp_dtype_bytes(b->dtype), all = bytes_of(b);
    char *staging = malloc(block > 0 ? block : 1);
    if (staging == NULL)
        return xp_error(XP_ENOMEM, "no memory for the values of %s", b->name);
    for (int64_t i = 0; i < n; i++)
        ck_store(staging, b->dtype, i, value_at(shapes, b, nth, i));
    xp_status status = block > 0 ? xp_copy(candidate->stream, to, staging, block) : XP_OK;
    for (size_t at = block; status == XP_OK && at < all;) {
        const size_t next = all - at < at ? all - at : at;
        status = xp_copy(candidate->stream, to + at, to, next);
        at += next;
    }
    if (status == XP_OK)
        status = xp_stream_sync(candidate->stream);
    free(staging);
    return status;
}

static xp_status fill(const ck_candidate *candidate, const ck_shapes *shapes, const ck_case *c,
                      int nth, char *to) {
    const ck_buffer *b = &c->buffers[nth];
    if (b->n == 0)
        return XP_OK;
    if (b->fill == CK_GIVEN) {
        XP_TRY(xp_copy(candidate->stream, to, b->data, bytes_of(b)));
        return xp_stream_sync(candidate->stream);
    }
    if (b->role == CK_IN || b->role == CK_INOUT)
        return fill_random(candidate, shapes, b, nth, to);
    return xp_zero(candidate->stream, to, bytes_of(b));
}

static xp_status load_buffers(const ck_candidate *candidate, const ck_shapes *shapes,
                              const ck_case *c, ck_loaded *loaded) {
    for (int i = 0; i < c->n_buffers; i++) {
        const size_t n_bytes = bytes_of(&c->buffers[i]);
        void *base = NULL;
        if (c->buffers[i].on != NULL)
            continue;
        XP_TRY(xp_device_alloc(candidate->device, n_bytes > 0 ? n_bytes : 1, "checkop", &base));
        loaded->blocks[i] = (ck_block){base, n_bytes};
        XP_TRY(fill(candidate, shapes, c, i, base));
    }
    for (int i = 0; i < c->n_buffers; i++)
        loaded->pointers[i] =
            loaded->blocks[c->buffers[i].on == NULL ? i : ck_find(c, c->buffers[i].on)].base;
    const ck_call asking = {c, candidate->ops, candidate->stream, loaded->pointers, NULL};
    const size_t n_scratch = c->scratch_bytes == NULL ? 0 : c->scratch_bytes(&asking);
    return n_scratch == 0
               ? XP_OK
               : xp_device_alloc(candidate->device, n_scratch, "checkop scratch", &loaded->scratch);
}

/* Run the forward case and take over what backward reads of it. */
static xp_status take_saved(const ck_candidate *candidate, const ck_shapes *shapes,
                            const ck_case *c, const ck_loaded *loaded) {
    const ck_case *forward = c->forward;
    ck_loaded before;
    XP_TRY(ck_shapes_load(candidate, shapes, forward, &before));
    const ck_call call = {forward, candidate->ops, candidate->stream, before.pointers,
                          before.scratch};
    xp_status status = forward->call(&call);
    for (int i = 0; status == XP_OK && i < c->n_buffers; i++) {
        const int from = ck_find(forward, c->buffers[i].name);
        if (c->buffers[i].role != CK_SAVED)
            continue;
        if (from < 0 || bytes_of(&forward->buffers[from]) != bytes_of(&c->buffers[i]))
            status = xp_error(XP_EINTERNAL, "checkop: %s saves no %s of that size", forward->op,
                              c->buffers[i].name);
        else if (c->buffers[i].n > 0)
            status = xp_copy(candidate->stream, loaded->pointers[i], before.pointers[from],
                             bytes_of(&c->buffers[i]));
    }
    const xp_status passed = xp_stream_sync(candidate->stream);
    ck_loaded_release(candidate, forward, &before);
    return status == XP_OK ? passed : status;
}

xp_status ck_shapes_load(const ck_candidate *candidate, const ck_shapes *shapes, const ck_case *c,
                         ck_loaded *loaded) {
    memset(loaded, 0, sizeof *loaded);
    xp_status status = load_buffers(candidate, shapes, c, loaded);
    if (status == XP_OK && c->forward != NULL)
        status = take_saved(candidate, shapes, c, loaded);
    if (status != XP_OK)
        ck_loaded_release(candidate, c, loaded);
    return status;
}
