/**
 * profiling.enable_profiling: every profile_freq steps one step is written down as a file in
 * Chrome's trace format (chrome://tracing, ui.perfetto.dev), one file a rank:
 * DUMP/traces/step-N-rank-R.json. docs/reference/metrics.md tells what stands in it.
 *
 * Room for events is taken once, at create; between traced steps an op costs a CPU two readings of
 * the clock, a GPU a look at whether it is recorded, and nothing where there is no trace. All
 * functions belong to the rank's own thread, and every one but create accepts NULL.
 */
#ifndef XP_TRAIN_TRACE_H
#define XP_TRAIN_TRACE_H

#include <stdbool.h>
#include "expar/device.h"

/* Of one step: ops (XP_RECORDER_MAX_TIMED on a GPU), and phases with layers. What comes after is
 * counted and left out. */
#define XP_TRACE_MAX_OPS    65536
#define XP_TRACE_MAX_EVENTS 16384

typedef struct xp_trace xp_trace;

/**
 * Records what the device runs. Call before anything is queued.
 * @param device  borrowed; its streams must be gone before the trace is
 * @param folder  copied; made when the first trace is written
 * @param every   steps between traces, >= 1
 */
XP_NODISCARD xp_status xp_trace_create(xp_device *device, const char *folder, int rank,
                                       int64_t every, xp_trace **trace);
void xp_trace_destroy(xp_trace *trace);

/** What the file says about the run, so that it can be read without the run's folder. */
typedef struct xp_trace_run_info {
    const char *config; /* TOML */
    const char *device; /* GPU model name, "cpu" */
    int n_ranks, n_nodes;
} xp_trace_run_info;

/** Copies what is given. @return XP_OK; XP_ENOMEM */
XP_NODISCARD xp_status xp_trace_describe(xp_trace *trace, const xp_trace_run_info *info);

/**
 * Before a step: starts recording when this one is traced.
 * @return XP_OK; XP_EDEVICE: it is not traced
 */
XP_NODISCARD xp_status xp_trace_begin(xp_trace *trace, int64_t step);
/** A part of the step from xp_time_s() values. `name` is static. */
void xp_trace_phase(xp_trace *trace, const char *name, double began_s, double ended_s);
/** What is queued up to xp_trace_layer_ends() belongs to this layer. */
void xp_trace_layer_begins(xp_trace *trace, int layer, bool backward);
void xp_trace_layer_ends(xp_trace *trace, int layer, bool backward);
/** How long the step took by the host's clock, for the file. */
void xp_trace_took(xp_trace *trace, double seconds);
/**
 * After the step: waits for the ops that it has queued and writes the file when this step was
 * traced.
 * @return XP_OK; XP_EIO, XP_ENOMEM, XP_EDEVICE: no file, the next traced step tries again
 */
XP_NODISCARD xp_status xp_trace_end(xp_trace *trace);

#endif
