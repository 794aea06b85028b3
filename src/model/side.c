#include "model/side.h"

#include <stdlib.h>
#include "device/device_internal.h"

struct xp_side {
    xp_stream *stream;
    xp_event *forked, *points[XP_SIDE_N_POINTS], *joined;
    bool marked[XP_SIDE_N_POINTS];
};

xp_status xp_side_create(xp_device *device, xp_side **side) {
    xp_side *made = calloc(1, sizeof *made);
    if (!made)
        return xp_error(XP_ENOMEM, "no memory for a second stream");
    xp_status status = xp_stream_create(device, XP_STREAM_BESIDE, &made->stream);
    if (status == XP_OK)
        status = xp_event_create(device, &made->forked);
    if (status == XP_OK)
        status = xp_event_create(device, &made->joined);
    for (int i = 0; i < XP_SIDE_N_POINTS && status == XP_OK; i++)
        status = xp_event_create(device, &made->points[i]);
    if (status != XP_OK) {
        xp_side_destroy(made);
        return status;
    }
    *side = made;
    return XP_OK;
}

void xp_side_destroy(xp_side *side) {
    if (!side)
        return;
    xp_stream_destroy(side->stream);
    xp_event_destroy(side->forked);
    xp_event_destroy(side->joined);
    for (int i = 0; i < XP_SIDE_N_POINTS; i++)
        xp_event_destroy(side->points[i]);
    free(side);
}

/* While the pass is recorded, its side stream is part of the recording. */
xp_status xp_side_fork(xp_side *side, xp_stream *stream, xp_stream **beside) {
    *beside = stream;
    if (!side)
        return XP_OK;
    XP_TRY(xp_event_record(side->forked, stream));
    side->stream->recording = stream->recording;
    XP_TRY(xp_event_wait(side->forked, side->stream));
    *beside = side->stream;
    return XP_OK;
}

xp_stream *xp_side_stream(const xp_side *side, xp_stream *stream) {
    return side ? side->stream : stream;
}

xp_status xp_side_mark(xp_side *side, xp_side_point point) {
    if (!side)
        return XP_OK;
    side->marked[point] = true;
    return xp_event_record(side->points[point], side->stream);
}

xp_status xp_side_wait(xp_side *side, xp_side_point point, xp_stream *stream) {
    if (!side || !side->marked[point])
        return XP_OK;
    side->marked[point] = false;
    return xp_event_wait(side->points[point], stream);
}

xp_status xp_side_join(xp_side *side, xp_stream *stream) {
    if (!side)
        return XP_OK;
    for (int i = 0; i < XP_SIDE_N_POINTS; i++)
        side->marked[i] = false;
    XP_TRY(xp_event_record(side->joined, side->stream));
    side->stream->recording = NULL;
    return xp_event_wait(side->joined, stream);
}

void xp_side_abandon(xp_side *side) {
    if (!side)
        return;
    for (int i = 0; i < XP_SIDE_N_POINTS; i++)
        side->marked[i] = false;
    side->stream->recording = NULL;
}
