/**
 * A device with timed events and no hardware. Each stream has a clock that only fake_run() moves;
 * an event keeps its stream's clock, and may be read when somebody has waited for it or for a later
 * one of its stream.
 */
#ifndef XP_TEST_FAKE_TIMED_H
#define XP_TEST_FAKE_TIMED_H

#include "device/device_internal.h"

typedef struct fake_device {
    xp_device base;
    int n_live_events, n_created, n_waits;
    int fail_create_at; /* the n-th creation of an event fails; 0: none */
    bool fail_record, fail_elapsed;
    double coarse_s; /* > 0: longer distances than this are rounded to its multiples */
} fake_device;

void fake_open(fake_device *fake);
/** A stream whose clock stands at `now_s`, counted as the recorder's own stream counts. */
xp_stream *fake_stream(fake_device *fake, xp_stream_kind kind, double now_s);
/** The stream works. */
void fake_run(xp_stream *stream, double seconds);

#endif
