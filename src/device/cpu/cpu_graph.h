/** Recorded work of the CPU's streams: see device/graph.h. Private to src/device/cpu. */
#ifndef XP_DEVICE_CPU_CPU_GRAPH_H
#define XP_DEVICE_CPU_CPU_GRAPH_H

#include "device/cpu/cpu_device.h"
#include "device/device_internal.h"

typedef struct xp_cpu_job {
    xp_cpu_fn fn;
    const char *name;
    size_t n_bytes; /* of args */
    _Alignas(16) char args[XP_CPU_MAX_ARGS];
} xp_cpu_job;

xp_status xp_cpu_graph_begin(xp_stream *stream, xp_graph **graph);
/** A stream that is being recorded: keep what was submitted. */
xp_status xp_cpu_graph_add(xp_graph *graph, const char *name, xp_cpu_fn fn, const void *args,
                           size_t n_bytes);
xp_status xp_cpu_graph_end(xp_stream *stream, xp_graph *graph, bool *any);
/** What xp_cpu_submit_named() is to be called with, in order. */
const xp_cpu_job *xp_cpu_graph_jobs(const xp_graph *graph, size_t *n);
void xp_cpu_graph_destroy(xp_graph *graph);

#endif
