/**
 * What a device does between two moments: each op by name, when it ran, and on which stream.
 *
 * A CPU's threads say when an op has run. A device whose ops run after they are queued has timed
 * events (xp_device_vtable): two are recorded around each op on its stream, and are read when the
 * device has passed them. Room is taken once, at create. A device has one recorder at most.
 */
#ifndef XP_DEVICE_RECORDER_H
#define XP_DEVICE_RECORDER_H

#include <stdbool.h>
#include "expar/device.h"

#define XP_RECORDER_MAX_ROWS 8
/** Ops with timed events, whatever xp_recorder_create() is asked for. */
#define XP_RECORDER_MAX_TIMED 32768

#define XP_RECORDER_NO_TAG (-1)

typedef struct xp_recorder xp_recorder;

typedef struct xp_recorded_op {
    const char *name;
    int row;                 /* of its stream */
    int tag;                 /* xp_recorder_set_tag(), XP_RECORDER_NO_TAG */
    double began_s, ended_s; /* as xp_time_s() counts. Of one stream with timed events: in order */
} xp_recorded_op;

typedef struct xp_recording {
    const xp_recorded_op *ops; /* [n_ops], a stream's own in the order in which they began to be
                                  queued (CPU: in which they ended) */
    int64_t n_ops;
    int64_t n_lost; /* had no room */
    /* One a stream, by first use: "compute stream", "communication stream", "communication stream
     * 2" */
    const char *rows[XP_RECORDER_MAX_ROWS];
    int n_rows;
} xp_recording;

/**
 * Call it while nothing is queued.
 * @param device  borrowed; a null device records nothing
 * @param max_ops  of one recording
 * @return XP_OK; XP_ENOMEM, XP_EDEVICE
 */
XP_NODISCARD xp_status xp_recorder_create(xp_device *device, int64_t max_ops,
                                          xp_recorder **recorder);
/** While nothing is queued. NULL is accepted. */
void xp_recorder_destroy(xp_recorder *recorder);

/**
 * What is queued from now on is recorded; the last recording is gone. Waits for an
 * event on a stream of its own, which does not count as a wait (xp_device_n_syncs()).
 * @return XP_OK; XP_EDEVICE: nothing is recorded
 */
XP_NODISCARD xp_status xp_recorder_start(xp_recorder *recorder);
/**
 * Ends it. With timed events waits until the device has passed the recorded ops; not counted. On a
 * CPU nothing waits: an op that has not run by now is not recorded.
 * @param[out] recording  points into the recorder, until the next start
 * @return XP_OK; XP_EDEVICE: the device has failed
 */
XP_NODISCARD xp_status xp_recorder_stop(xp_recorder *recorder, xp_recording *recording);

/**
 * Ops that are queued from now on have this tag. On a CPU only a stream that runs ops at once has
 * tags: one with a thread of its own runs them later.
 * @param tag  XP_RECORDER_NO_TAG: none
 */
void xp_recorder_set_tag(xp_recorder *recorder, int tag);

/**
 * Before one op is queued on a stream that has timed events: what is queued up to
 * xp_recorder_end_op() is recorded under this name. An op inside of another one's belongs to that
 * one. Without timed events, and while nobody records, both do nothing.
 * @param name  static string, the one that a CPU is told (xp_cpu_submit_named())
 * @return for xp_recorder_end_op()
 */
int64_t xp_recorder_begin_op(xp_stream *stream, const char *name);
/** @param status  of the queueing: a failed op is not recorded. @return status */
XP_NODISCARD xp_status xp_recorder_end_op(xp_stream *stream, int64_t op, xp_status status);

#endif
