#include "fake_timed.h"

#include <math.h>
#include <stdlib.h>

typedef struct fake_clock {
    xp_stream base;
    double now_s, waited_s;
} fake_clock;

typedef struct fake_event {
    xp_event base;
    fake_clock *stream;
    double at_s;
} fake_event;

static fake_device *fake_of(xp_device *device) {
    return (fake_device *)device;
}

static xp_status stream_create(xp_device *device, xp_stream_kind kind, xp_stream **stream) {
    (void)device;
    (void)kind;
    fake_clock *made = calloc(1, sizeof *made);
    if (!made)
        return xp_error(XP_ENOMEM, "out of memory");
    made->waited_s = -1;
    *stream = &made->base;
    return XP_OK;
}

static void stream_destroy(xp_stream *stream) {
    free(stream);
}

static xp_status timed_event_create(xp_device *device, xp_event **event) {
    fake_device *fake = fake_of(device);
    fake_event *made = NULL;
    if (++fake->n_created != fake->fail_create_at)
        made = calloc(1, sizeof *made);
    if (!made)
        return xp_error(XP_ENOMEM, "no more events");
    fake->n_live_events++;
    *event = &made->base;
    return XP_OK;
}

static void event_destroy(xp_event *event) {
    fake_of(event->device)->n_live_events--;
    free(event);
}

static xp_status event_record(xp_event *event, xp_stream *stream) {
    fake_event *e = (fake_event *)event;
    if (fake_of(event->device)->fail_record)
        return xp_error(XP_EDEVICE, "no record");
    e->stream = (fake_clock *)stream;
    e->at_s = e->stream->now_s;
    return XP_OK;
}

static xp_status event_sync(xp_event *event, xp_stream *stream) {
    const fake_event *e = (fake_event *)event;
    fake_of(event->device)->n_waits++;
    if (e->stream != (fake_clock *)stream)
        return xp_error(XP_EDEVICE, "waited for on another stream");
    if (e->stream->waited_s < e->at_s)
        e->stream->waited_s = e->at_s;
    return XP_OK;
}

static bool has_passed(const fake_event *e) {
    return e->stream && e->at_s <= e->stream->waited_s;
}

static xp_status event_elapsed(xp_event *from, xp_event *to, double *seconds) {
    const fake_device *fake = fake_of(from->device);
    const fake_event *a = (fake_event *)from, *b = (fake_event *)to;
    if (fake->fail_elapsed || !has_passed(a) || !has_passed(b))
        return xp_error(XP_EDEVICE, "not passed");
    *seconds = b->at_s - a->at_s;
    if (fake->coarse_s > 0 && *seconds > fake->coarse_s)
        *seconds = round(*seconds / fake->coarse_s) * fake->coarse_s;
    return XP_OK;
}

static xp_status copy(xp_stream *stream, void *dst, const void *src, size_t n_bytes) {
    (void)dst;
    (void)src;
    fake_run(stream, (double)n_bytes);
    return XP_OK;
}

static xp_status zero(xp_stream *stream, void *dst, size_t n_bytes) {
    return copy(stream, dst, NULL, n_bytes);
}

static const xp_device_vtable vtable = {
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .timed_event_create = timed_event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_sync = event_sync,
    .event_elapsed = event_elapsed,
    .copy = copy,
    .zero = zero,
};

void fake_open(fake_device *fake) {
    *fake =
        (fake_device){.base = {.vtable = &vtable, .kind = XP_DEVICE_CUDA, .like = XP_DEVICE_CUDA}};
}

xp_stream *fake_stream(fake_device *fake, xp_stream_kind kind, double now_s) {
    xp_stream *stream = NULL;
    if (xp_stream_create(&fake->base, kind, &stream) != XP_OK)
        abort();
    fake_run(stream, now_s);
    return stream;
}

void fake_run(xp_stream *stream, double seconds) {
    ((fake_clock *)stream)->now_s += seconds;
}
