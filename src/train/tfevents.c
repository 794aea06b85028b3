#include "train/tfevents.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "core/file.h"
#include "train/crc32c.h"

struct xp_tfevents {
    FILE *file;
    char path[1024];
    uint8_t *frame; /* reused from event to event */
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

/*
 * The messages, with the field numbers of tensorflow/core/util/event.proto and
 * tensorflow/core/framework/summary.proto. As in proto3, a field that is zero is left out.
 *
 *   Event    1 double wall_time   2 int64 step   3 string file_version   5 Summary summary
 *   Summary  1 repeated Value value
 *   Value    1 string tag         2 float simple_value
 *
 * A field is a key, number << 3 | wire type, and its value.
 */
enum { WIRE_VARINT = 0, WIRE_64_BITS = 1, WIRE_BYTES = 2, WIRE_32_BITS = 5 };

/* Where the bytes go: nowhere while they are counted. */
typedef struct sink {
    uint8_t *out; /* NULL: count only */
    size_t n;
} sink;

static void put_byte(sink *s, uint8_t byte) {
    if (s->out != NULL)
        s->out[s->n] = byte;
    s->n++;
}

static void put_varint(sink *s, uint64_t value) {
    for (; value >= 0x80; value >>= 7)
        put_byte(s, (uint8_t)(value | 0x80));
    put_byte(s, (uint8_t)value);
}

static void put_key(sink *s, unsigned number, unsigned wire_type) {
    put_varint(s, number << 3 | wire_type);
}

static void put_fixed(sink *s, uint64_t bits, int n_bytes) {
    for (int i = 0; i < n_bytes; i++)
        put_byte(s, (uint8_t)(bits >> (8 * i)));
}

static void put_string(sink *s, unsigned number, const char *text) {
    const size_t n = strlen(text);
    put_key(s, number, WIRE_BYTES);
    put_varint(s, n);
    for (size_t i = 0; i < n; i++)
        put_byte(s, (uint8_t)text[i]);
}

static void put_value(sink *s, const xp_tb_scalar *scalar) {
    const float value = (float)scalar->value;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (scalar->tag[0] != '\0')
        put_string(s, 1, scalar->tag);
    if (value != 0) { /* NaN is written */
        put_key(s, 2, WIRE_32_BITS);
        put_fixed(s, bits, 4);
    }
}

static void put_summary(sink *s, const xp_tb_event *event) {
    for (int i = 0; i < event->n_scalars; i++) {
        sink size = {0};
        put_value(&size, &event->scalars[i]);
        put_key(s, 1, WIRE_BYTES);
        put_varint(s, size.n);
        put_value(s, &event->scalars[i]);
    }
}

size_t xp_tb_event_encode(const xp_tb_event *event, uint8_t *out) {
    sink s = {.out = out}, size = {0};
    uint64_t time_bits;
    memcpy(&time_bits, &event->wall_time, sizeof time_bits);
    if (event->wall_time != 0) {
        put_key(&s, 1, WIRE_64_BITS);
        put_fixed(&s, time_bits, 8);
    }
    if (event->step != 0) {
        put_key(&s, 2, WIRE_VARINT);
        put_varint(&s, (uint64_t)event->step);
    }
    if (event->file_version != NULL) {
        put_string(&s, 3, event->file_version);
        return s.n;
    }
    put_summary(&size, event);
    put_key(&s, 5, WIRE_BYTES);
    put_varint(&s, size.n);
    put_summary(&s, event);
    return s.n;
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

/* A TFRecord frame: length, its masked CRC, the event, its masked CRC. */
static xp_status write_event(xp_tfevents *events, const xp_tb_event *event) {
    const size_t n = xp_tb_event_encode(event, NULL);
    const size_t total = 12 + n + 4;
    XP_TRY(grow_frame(events, total));
    uint8_t *frame = events->frame;
    put_u32(frame, (uint32_t)n);
    put_u32(frame + 4, (uint32_t)((uint64_t)n >> 32));
    put_u32(frame + 8, xp_crc32c_masked(frame, 8));
    xp_tb_event_encode(event, frame + 12);
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
    return write_event(events, &(xp_tb_event){.wall_time = now, .file_version = "brain.Event:2"});
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

xp_status xp_tfevents_add(xp_tfevents *events, int64_t step, const xp_tb_scalar *scalars,
                          int n_scalars) {
    const xp_tb_event event = {
        .wall_time = wall_time(), .step = step, .scalars = scalars, .n_scalars = n_scalars};
    return write_event(events, &event);
}

void xp_tfevents_destroy(xp_tfevents *events) {
    if (!events)
        return;
    if (events->file)
        fclose(events->file);
    free(events->frame);
    free(events);
}
