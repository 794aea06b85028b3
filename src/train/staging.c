#include "train/staging.h"

#include <stdlib.h>
#include <string.h>
#include "core/pool.h"
#include "core/remainder.h"

#define CHUNK ((int64_t)8 << 20) /* elements of a buffer */
#define TILE  ((int64_t)1 << 16) /* elements that a thread takes at a time */

struct xp_staging {
    xp_device *device;
    xp_stream *stream;
    xp_pool *pool;
    float *buffers[2]; /* [CHUNK]; NULL where the host sees the device's memory */
};

xp_status xp_staging_create(xp_device *device, xp_stream *stream, int n_threads,
                            xp_staging **staging) {
    xp_staging *s = calloc(1, sizeof *s);
    if (!s)
        return xp_error(XP_ENOMEM, "no memory for staging");
    s->device = device;
    s->stream = stream;
    xp_status status = xp_pool_create(n_threads, &s->pool);
    for (int i = 0; i < 2 && status == XP_OK && !xp_device_host_accessible(device); i++) {
        void *data = NULL;
        status = xp_host_alloc(device, (size_t)CHUNK * sizeof(float), "staging", &data);
        s->buffers[i] = data;
    }
    if (status != XP_OK) {
        xp_staging_destroy(s);
        return status;
    }
    *staging = s;
    return XP_OK;
}

void xp_staging_destroy(xp_staging *staging) {
    if (!staging)
        return;
    for (int i = 0; i < 2; i++)
        xp_host_free(staging->device, staging->buffers[i]);
    xp_pool_destroy(staging->pool);
    free(staging);
}

/* ---- on the host, tile by tile ------------------------------------------------------------ */

typedef struct copy_job {
    const float *from;
    float *to;
    int64_t n;
} copy_job;

static void copy_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const copy_job *j = context;
    int64_t at = tile * TILE;
    int64_t n = j->n - at < TILE ? j->n - at : TILE;
    memcpy(j->to + at, j->from + at, (size_t)n * sizeof *j->to);
}

static void copy_host(const xp_staging *s, float *to, const float *from, int64_t n) {
    copy_job job = {from, to, n};
    xp_pool_run(s->pool, copy_tile, &job, (n + TILE - 1) / TILE);
}

/* ---- chunks ------------------------------------------------------------------------------- */

static int64_t chunk_size(int64_t n, int64_t first) {
    return n - first < CHUNK ? n - first : CHUNK;
}

xp_status xp_staging_upload(xp_staging *staging, float *device_data, const float *host, int64_t n) {
    if (!staging->buffers[0]) {
        XP_TRY(xp_stream_sync(staging->stream));
        copy_host(staging, device_data, host, n);
        return XP_OK;
    }
    for (int64_t first = 0; first < n; first += CHUNK) {
        int64_t size = chunk_size(n, first);
        float *buffer = staging->buffers[first / CHUNK % 2];
        copy_host(staging, buffer, host + first, size);
        /* The buffer before this one travelled meanwhile, and is free for the next. */
        XP_TRY(xp_stream_sync(staging->stream));
        XP_TRY(
            xp_copy(staging->stream, device_data + first, buffer, (size_t)size * sizeof *buffer));
    }
    return xp_stream_sync(staging->stream);
}

static xp_status queue_download(const xp_staging *s, const float *device_data, int64_t n,
                                int64_t first) {
    if (first >= n)
        return XP_OK;
    return xp_copy(s->stream, s->buffers[first / CHUNK % 2], device_data + first,
                   (size_t)chunk_size(n, first) * sizeof(float));
}

xp_status xp_staging_download(xp_staging *staging, float *host, const float *device_data,
                              int64_t n) {
    if (!staging->buffers[0]) {
        XP_TRY(xp_stream_sync(staging->stream));
        copy_host(staging, host, device_data, n);
        return XP_OK;
    }
    XP_TRY(queue_download(staging, device_data, n, 0));
    for (int64_t first = 0; first < n; first += CHUNK) {
        XP_TRY(xp_stream_sync(staging->stream));
        /* The next chunk travels while this one is put away. */
        XP_TRY(queue_download(staging, device_data, n, first + CHUNK));
        copy_host(staging, host + first, staging->buffers[first / CHUNK % 2], chunk_size(n, first));
    }
    return XP_OK;
}

/* ---- masters in two parts ----------------------------------------------------------------- */

/* Tiles of arrays that the host sees. */
typedef struct part_job {
    xp_master_parts parts;
    float *master;
    const float *v; /* to split: second moments, copied to parts.v */
    int64_t n;
} part_job;

static int64_t tile_size(const part_job *j, int64_t at) {
    return j->n - at < TILE ? j->n - at : TILE;
}

static void join_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const part_job *j = context;
    const int64_t at = tile * TILE;
    xp_remainder_join(tile_size(j, at), j->parts.param + at, j->parts.remainder + at,
                      j->parts.v + at, j->master + at);
}

static void split_tile(void *context, int64_t tile, int worker) {
    (void)worker;
    const part_job *j = context;
    const int64_t at = tile * TILE, n = tile_size(j, at);
    memcpy(j->parts.v + at, j->v + at, (size_t)n * sizeof *j->v);
    xp_remainder_split(n, j->master + at, j->parts.param + at, j->parts.remainder + at,
                       j->parts.v + at);
}

static void run_parts(const xp_staging *s, xp_tile_fn fn, part_job *job) {
    xp_pool_run(s->pool, fn, job, (job->n + TILE - 1) / TILE);
}

/* A buffer as room for parameters and remainders. */
static xp_master_parts halves_of(float *buffer, float *v) {
    uint16_t *words = (uint16_t *)(void *)buffer;
    return (xp_master_parts){.param = words, .remainder = words + CHUNK, .v = v};
}

static xp_status queue_parts(const xp_staging *s, const xp_master_parts *device, int64_t n,
                             int64_t first) {
    if (first >= n)
        return XP_OK;
    const xp_master_parts to = halves_of(s->buffers[first / CHUNK % 2], NULL);
    const size_t n_bytes = (size_t)chunk_size(n, first) * sizeof *to.param;
    XP_TRY(xp_copy(s->stream, to.param, device->param + first, n_bytes));
    return xp_copy(s->stream, to.remainder, device->remainder + first, n_bytes);
}

xp_status xp_staging_download_masters(xp_staging *staging, const xp_master_parts *device,
                                      float *master, float *v, int64_t n) {
    XP_TRY(xp_staging_download(staging, v, device->v, n));
    if (!staging->buffers[0]) {
        part_job job = {.parts = {device->param, device->remainder, v}, .master = master, .n = n};
        run_parts(staging, join_tile, &job);
        return XP_OK;
    }
    XP_TRY(queue_parts(staging, device, n, 0));
    for (int64_t first = 0; first < n; first += CHUNK) {
        part_job job = {.parts = halves_of(staging->buffers[first / CHUNK % 2], v + first),
                        .master = master + first,
                        .n = chunk_size(n, first)};
        XP_TRY(xp_stream_sync(staging->stream));
        XP_TRY(queue_parts(staging, device, n, first + CHUNK));
        run_parts(staging, join_tile, &job);
    }
    return XP_OK;
}

xp_status xp_staging_upload_masters(xp_staging *staging, const xp_master_parts *device,
                                    const float *master, const float *v, int64_t n) {
    XP_TRY(xp_stream_sync(staging->stream));
    for (int64_t first = 0; first < n; first += CHUNK) {
        const xp_master_parts to = {device->param + first, device->remainder + first,
                                    device->v + first};
        part_job job = {
            .parts = staging->buffers[0] ? halves_of(staging->buffers[0], staging->buffers[1]) : to,
            .master = (float *)master + first,
            .v = v + first,
            .n = chunk_size(n, first)};
        run_parts(staging, split_tile, &job);
        if (!staging->buffers[0])
            continue;
        const size_t size = (size_t)job.n;
        XP_TRY(xp_copy(staging->stream, to.param, job.parts.param, size * sizeof *to.param));
        XP_TRY(xp_copy(staging->stream, to.remainder, job.parts.remainder,
                       size * sizeof *to.remainder));
        XP_TRY(xp_copy(staging->stream, to.v, job.parts.v, size * sizeof *to.v));
        XP_TRY(xp_stream_sync(staging->stream));
    }
    return XP_OK;
}
