/** Recorded work of the CPU's streams: see device/graph.h. Private to src/device/cpu. */
#ifndef XP_DEVICE_CPU_CPU_GRAPH_H
#define XP_DEVICE_CPU_CPU_GRAPH_H

#include "device/cpu/cpu_device.h"
#include "device/device_internal.h"

xp_status xp_cpu_graph_begin(xp_stream *stream, xp_graph **graph);
/** A stream that is being recorded: keep what was submitted. */
xp_status xp_cpu_graph_add(xp_graph *graph, const char *name, xp_cpu_fn fn, const void *args,
                           size_t n_bytes);
xp_status xp_cpu_graph_end(xp_stream *stream, xp_graph *graph, bool *any);
xp_status xp_cpu_graph_launch(xp_graph *graph, xp_stream *stream);
void xp_cpu_graph_destroy(xp_graph *graph);

#endif
