/**
 * The CPU device's insides, for code that runs on it: ops/cpu, the EP kernels, the communication
 * providers.
 *
 * A compute stream is inline: xp_cpu_submit() runs the function before it returns. A worker stream
 * has a thread that runs submitted functions in order; the first failure is kept and returned by
 * xp_stream_sync(), later work is skipped.
 */
#ifndef XP_DEVICE_CPU_CPU_DEVICE_H
#define XP_DEVICE_CPU_CPU_DEVICE_H

#include <stdbool.h>
#include "core/pool.h"
#include "expar/device.h"

#define XP_CPU_AVX2   1U /* AVX2 and FMA */
#define XP_CPU_AVX512 2U /* AVX-512 F, BW, DQ, VL */

/** What this machine has. */
unsigned xp_cpu_machine_caps(void);
/** What this machine has, less what xp_device_args.caps leaves out. */
unsigned xp_cpu_device_caps(const xp_device *device);

/** The pool that work on this stream may use: the rank's on a compute stream, one thread on a
 * worker stream. */
xp_pool *xp_cpu_stream_pool(const xp_stream *stream);

/** A function queued on a stream; `args` is the stream's copy of what was submitted. */
typedef xp_status (*xp_cpu_fn)(xp_stream *stream, void *args);

/**
 * Run fn(stream, copy of args) in the stream's order.
 * @param n_bytes  of args, at most XP_CPU_MAX_ARGS; copied, so args may live on the caller's stack
 * @return inline streams: fn's status; worker streams: XP_OK once queued (waits while the queue is
 * full)
 */
#define XP_CPU_MAX_ARGS 512
XP_NODISCARD xp_status xp_cpu_submit(xp_stream *stream, xp_cpu_fn fn, const void *args,
                                     size_t n_bytes);

/** The same for work that an observer hears of. @param name static string: "gemm", "dispatch" */
XP_NODISCARD xp_status xp_cpu_submit_named(xp_stream *stream, const char *name, xp_cpu_fn fn,
                                           const void *args, size_t n_bytes);

/**
 * Hears of each named piece of work after it ran, on the thread that ran it. `args` is
 * what was submitted; for an op the struct that ops.h declares for it.
 */
typedef struct xp_cpu_observer {
    void (*ran)(void *context, xp_stream *stream, const char *name, const void *args,
                double began_s, double ended_s);
    void *context;
} xp_cpu_observer;

/** Guarded devices: copies between device memory and host memory that is not xp_host_alloc()'s,
 * which a GPU would wait for. */
int64_t xp_cpu_device_n_pageable(const xp_device *device);

/** Copied; NULL: nobody listens any more. Call it while nothing is queued. */
void xp_cpu_device_observe(xp_device *device, const xp_cpu_observer *observer);

/** True when submitted work runs before xp_cpu_submit() returns. */
bool xp_cpu_stream_is_inline(const xp_stream *stream);

/**
 * Scratch of one pool worker on this stream, 64-byte aligned, contents undefined, kept between
 * calls. It grows when a call asks for more than any before (so the first step of a run may
 * allocate; later ones do not) and is accounted under the tag "workspace". NULL when memory is out:
 * return xp_cpu_scratch_error().
 */
void *xp_cpu_stream_scratch(xp_stream *stream, int worker, size_t n_bytes);
xp_status xp_cpu_scratch_error(size_t n_bytes);

#endif
