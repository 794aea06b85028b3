#include "train/tfevents.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "core/file.h"
#include "event.pb-c.h"
#include "train/crc32c.h"

struct xp_tfevents {
    FILE *file;
    char path[1024];
    Xp__Tb__Summary__Value *values; /* reused from step to step */
    Xp__Tb__Summary__Value **pointers;
    int capacity;
    uint8_t *frame;
    size_t frame_capacity;
};

static double wall_time(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void put_u32(uint8_t *out, uint32_t value) {
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

static xp_status grow_frame(xp_tfevents *events, size_t n_bytes) {
    if (n_bytes <= events->frame_capacity)
        return XP_OK;
    uint8_t *frame = realloc(events->frame, n_bytes);
    if (!frame)
        return xp_error(XP_ENOMEM, "no memory for a TensorBoard event of %zu bytes", n_bytes);
    events->frame = frame;
    events->frame_capacity = n_bytes;
    return XP_OK;
}

static xp_status write_event(xp_tfevents *events, Xp__Tb__Event *event) {
    size_t n = xp__tb__event__get_packed_size(event);
    size_t total = 12 + n + 4;
    XP_TRY(grow_frame(events, total));
    uint8_t *frame = events->frame;
    put_u32(frame, (uint32_t)n);
    put_u32(frame + 4, (uint32_t)((uint64_t)n >> 32));
    put_u32(frame + 8, xp_crc32c_masked(frame, 8));
    xp__tb__event__pack(event, frame + 12);
    put_u32(frame + 12 + n, xp_crc32c_masked(frame + 12, n));
    if (fwrite(frame, 1, total, events->file) != total || fflush(events->file) != 0)
        return xp_error(XP_EIO, "cannot write %s: %s", events->path, strerror(errno));
    return XP_OK;
}

static xp_status open_file(xp_tfevents *events, const char *folder) {
    XP_TRY(xp_folder_create(folder));
    char host[256] = "localhost";
    if (gethostname(host, sizeof host - 1) != 0)
        snprintf(host, sizeof host, "localhost");
    double now = wall_time();
    int n = snprintf(events->path, sizeof events->path, "%s/events.out.tfevents.%.0f.%s.%ld.%06d",
                     folder, now, host, (long)getpid(), (int)((now - (double)(long)now) * 1e6));
    if (n < 0 || (size_t)n >= sizeof events->path)
        return xp_error(XP_EINVAL, "the TensorBoard folder's path is too long: %s", folder);
    events->file = fopen(events->path, "wbe");
    if (!events->file)
        return xp_error(XP_EIO, "cannot create %s: %s", events->path, strerror(errno));
    Xp__Tb__Event event = XP__TB__EVENT__INIT;
    event.wall_time = now;
    event.what_case = XP__TB__EVENT__WHAT_FILE_VERSION;
    event.file_version = "brain.Event:2";
    return write_event(events, &event);
}

xp_status xp_tfevents_create(const char *folder, xp_tfevents **events) {
    xp_tfevents *e = calloc(1, sizeof *e);
    if (!e)
        return xp_error(XP_ENOMEM, "no memory for the TensorBoard writer");
    xp_status status = open_file(e, folder);
    if (status != XP_OK) {
        xp_tfevents_destroy(e);
        return status;
    }
    *events = e;
    return XP_OK;
}

static xp_status grow_values(xp_tfevents *events, int n) {
    if (n <= events->capacity)
        return XP_OK;
    free(events->values);
    free(events->pointers);
    events->capacity = 0;
    events->values = calloc((size_t)n, sizeof *events->values);
    events->pointers = calloc((size_t)n, sizeof *events->pointers);
    if (!events->values || !events->pointers)
        return xp_error(XP_ENOMEM, "no memory for %d TensorBoard scalars", n);
    events->capacity = n;
    return XP_OK;
}

xp_status xp_tfevents_add(xp_tfevents *events, int64_t step, const xp_tb_scalar *scalars,
                          int n_scalars) {
    XP_TRY(grow_values(events, n_scalars));
    for (int i = 0; i < n_scalars; i++) {
        xp__tb__summary__value__init(&events->values[i]);
        /* protobuf-c's strings are not const; packing only reads them. */
        memcpy(&events->values[i].tag, &scalars[i].tag, sizeof(char *));
        events->values[i].simple_value = (float)scalars[i].value;
        events->pointers[i] = &events->values[i];
    }
    Xp__Tb__Summary summary = XP__TB__SUMMARY__INIT;
    summary.n_value = (size_t)n_scalars;
    summary.value = events->pointers;
    Xp__Tb__Event event = XP__TB__EVENT__INIT;
    event.wall_time = wall_time();
    event.step = step;
    event.what_case = XP__TB__EVENT__WHAT_SUMMARY;
    event.summary = &summary;
    return write_event(events, &event);
}

const char *xp_tfevents_path(const xp_tfevents *events) {
    return events->path;
}

void xp_tfevents_destroy(xp_tfevents *events) {
    if (!events)
        return;
    if (events->file)
        fclose(events->file);
    free(events->values);
    free(events->pointers);
    free(events->frame);
    free(events);
}
