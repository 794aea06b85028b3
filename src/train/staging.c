#include "train/staging.h"

#include <stdlib.h>
#include <string.h>
#include "core/pool.h"

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
