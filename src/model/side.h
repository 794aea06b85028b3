/**
 * A second stream of a pass, for what the next layer does not wait for: weight gradients, what is computed
 * again for them, counts. In a CUDA graph it becomes a second branch, so that small kernels of the two run
 * at the same time. Order within the side stream, and every op's sums, are those of one stream: the same bits.
 *
 * All functions take NULL: everything is queued on the pass's stream then.
 */
#ifndef XP_MODEL_SIDE_H
#define XP_MODEL_SIDE_H

#include "expar/device.h"

typedef struct xp_side xp_side;

XP_NODISCARD xp_status xp_side_create(xp_device *device, xp_side **side);
void xp_side_destroy(xp_side *side);

/** What is queued on *beside from here on waits for what is queued on the pass's stream so far. */
XP_NODISCARD xp_status xp_side_fork(xp_side *side, xp_stream *stream, xp_stream **beside);
/** The same stream without that wait: for work that needs nothing since the last fork of the pass. */
xp_stream *xp_side_stream(const xp_side *side, xp_stream *stream);

/** Points of the side stream that the pass's stream waits for. */
typedef enum xp_side_point {
    XP_SIDE_RESIDUAL = 0, /* work.d_residual has been read */
    XP_SIDE_QK,           /* work.q and work.k are there, work.dqkv has been read */
    XP_SIDE_NORM,         /* work.norm_scratch has been read */
    XP_SIDE_N_POINTS
} xp_side_point;
/** Behind what is queued on the side stream so far. */
XP_NODISCARD xp_status xp_side_mark(xp_side *side, xp_side_point point);
/** What is queued on the stream from here on waits for the last mark; without one, for nothing. */
XP_NODISCARD xp_status xp_side_wait(xp_side *side, xp_side_point point, xp_stream *stream);
/** The stream waits for all of the side stream: before a pass ends. */
XP_NODISCARD xp_status xp_side_join(xp_side *side, xp_stream *stream);
/** After a recording that failed: the side stream is no part of it, and has no marks. */
void xp_side_abandon(xp_side *side);

#endif
