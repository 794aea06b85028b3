/**
 * Work of a stream, recorded once and queued again with one call: a CUDA graph, which costs the host one
 * launch instead of one for each kernel. A guarded CPU keeps the work in a list.
 *
 * What is recorded has its arguments fixed: addresses, sizes, numbers by value. What changes from one
 * launch to the next must be in memory that the work reads.
 */
#ifndef XP_DEVICE_GRAPH_H
#define XP_DEVICE_GRAPH_H

#include "expar/device.h"

typedef struct xp_graph xp_graph;

/** Whether streams of this device can be recorded. */
bool xp_graph_is_supported(const xp_device *device);

/**
 * From here to xp_graph_end() what is queued on the stream is recorded and does not run. Only kernels,
 * copies and fills that involve this stream alone; whatever waits, allocates, or loads a library for
 * the first time fails.
 */
XP_NODISCARD xp_status xp_graph_begin(xp_stream *stream);
/**
 * Ends the recording, whatever happened in between: the stream works again.
 * @param[out] graph  to be launched on this stream alone; NULL when nothing was queued, and after an error
 */
XP_NODISCARD xp_status xp_graph_end(xp_stream *stream, xp_graph **graph);
/** Queues the recorded work. */
XP_NODISCARD xp_status xp_graph_launch(xp_graph *graph, xp_stream *stream);
/** Once the device has done what was launched. NULL is accepted. */
void xp_graph_destroy(xp_graph *graph);

#endif
