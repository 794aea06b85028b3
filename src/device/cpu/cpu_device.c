#include "device/cpu/cpu_device.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/process.h"
#include "device/cpu/blas_memory.h"
#include "device/cpu/cpu_graph.h"
#include "device/cpu/cpu_stream.h"
#include "device/cpu/test_protect.h"
#include "device/device_internal.h"

#define PAGE_BYTES ((size_t)4096)

unsigned xp_cpu_machine_caps(void) {
    unsigned caps = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        caps |= XP_CPU_AVX2;
    if (caps != 0 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        caps |= XP_CPU_AVX512;
#endif
    return caps;
}

/* Take the capabilities named in `list` out of cpu->caps. Two more words are for tests, see
 * device/cpu/test_protect.h. */
static xp_status leave_out(const char *list, xp_cpu_device *cpu) {
    for (const char *at = list; at != NULL && *at != '\0';) {
        size_t n = strcspn(at, ",");
        if (n == 4 && memcmp(at, "avx2", 4) == 0)
            cpu->caps &= ~(XP_CPU_AVX2 | XP_CPU_AVX512);
        else if (n == 6 && memcmp(at, "avx512", 6) == 0)
            cpu->caps &= ~XP_CPU_AVX512;
        else if (n == 12 && memcmp(at, "test_protect", 12) == 0)
            cpu->base.hides_memory = true;
        else if (n == 10 && memcmp(at, "test_defer", 10) == 0)
            cpu->deferred = true;
        else if (n == 11 && memcmp(at, "side_stream", 11) == 0)
            cpu->base.without_side_stream = true;
        else if (n != 0)
            return xp_error(XP_EINVAL, "cpu: no capability \"%.*s\"; there are avx2 and avx512",
                            (int)n, at);
        at += n;
        if (*at == ',')
            at++;
    }
    if (cpu->deferred && !cpu->base.hides_memory)
        return xp_error(XP_EINVAL,
                        "cpu: \"test_defer\" needs \"test_protect\": without it results are read "
                        "where they lie");
    return XP_OK;
}

static void cpu_destroy(xp_device *device) {
    xp_cpu_device *cpu = (xp_cpu_device *)device;
    xp_pool_destroy(cpu->pool);
    xp_pool_destroy(cpu->worker_pool);
    xp_blas_memory_give_back(cpu->n_blas_threads);
    free(cpu);
}

static xp_status cpu_alloc(xp_device *device, size_t n_bytes, void **data) {
    if (device->hides_memory)
        return xp_test_protect_alloc(n_bytes, data);
    *data = aligned_alloc(256, n_bytes);
    if (*data == NULL)
        return xp_error(XP_ENOMEM, "out of memory");
    /* The pages are taken now, so that memory that is not there is missed before the first step. */
    for (size_t at = 0; at < n_bytes; at += PAGE_BYTES)
        ((volatile char *)*data)[at] = 0;
    return XP_OK;
}

static void cpu_free(xp_device *device, void *data) {
    if (device->hides_memory)
        xp_test_protect_free(data);
    else
        free(data);
}

static xp_status cpu_stream_from_native(xp_device *device, void *native, xp_stream **stream) {
    if (native != NULL)
        return xp_error(XP_EINVAL, "xp_stream_from_native: a CPU has no streams of its own; give "
                                   "NULL for one that works on the calling thread");
    return xp_cpu_stream_create(device, XP_STREAM_COMPUTE, stream);
}

static xp_status cpu_graph_launch(xp_graph *graph, xp_stream *stream) {
    size_t n;
    const xp_cpu_job *jobs = xp_cpu_graph_jobs(graph, &n);
    for (size_t i = 0; i < n; i++)
        XP_TRY(
            xp_cpu_submit_named(stream, jobs[i].name, jobs[i].fn, jobs[i].args, jobs[i].n_bytes));
    return XP_OK;
}

static const xp_device_vtable cpu_vtable = {
    .destroy = cpu_destroy,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .stream_create = xp_cpu_stream_create,
    .stream_from_native = cpu_stream_from_native,
    .stream_destroy = xp_cpu_stream_destroy,
    .stream_sync = xp_cpu_stream_sync,
    .event_create = xp_cpu_event_create,
    .event_destroy = xp_cpu_event_destroy,
    .event_record = xp_cpu_event_record,
    .event_wait = xp_cpu_event_wait,
    .event_sync = xp_cpu_event_sync,
    .event_query = xp_cpu_event_query,
    .copy = xp_cpu_copy,
    .zero = xp_cpu_zero,
    .graph_begin = xp_cpu_graph_begin,
    .graph_end = xp_cpu_graph_end,
    .graph_launch = cpu_graph_launch,
    .graph_destroy = xp_cpu_graph_destroy,
};

xp_status xp_cpu_device_create(const xp_device_args *args, xp_device **device) {
    const int n_threads = args->n_threads != 0 ? args->n_threads : xp_process_n_cores();
    xp_cpu_device *cpu = calloc(1, sizeof *cpu);
    if (cpu == NULL)
        return xp_error(XP_ENOMEM, "cpu device: out of memory");
    cpu->base.vtable = &cpu_vtable;
    cpu->caps = xp_cpu_machine_caps();
    snprintf(cpu->base.name, sizeof cpu->base.name, "cpu");
    xp_status status = leave_out(args->caps, cpu);
    if (status == XP_OK)
        status = xp_blas_memory_take(n_threads);
    if (status == XP_OK) {
        cpu->n_blas_threads = n_threads;
        status = xp_pool_create(n_threads, &cpu->pool);
    }
    if (status == XP_OK)
        status = xp_pool_create(1, &cpu->worker_pool);
    if (status != XP_OK) {
        cpu_destroy(&cpu->base);
        return status;
    }
    *device = &cpu->base;
    return XP_OK;
}

unsigned xp_cpu_device_caps(const xp_device *device) {
    return ((const xp_cpu_device *)device)->caps;
}

int64_t xp_cpu_device_n_pageable(const xp_device *device) {
    return __atomic_load_n(&((const xp_cpu_device *)device)->n_pageable, __ATOMIC_RELAXED);
}

void xp_cpu_device_observe(xp_device *device, const xp_cpu_observer *observer) {
    ((xp_cpu_device *)device)->observer = observer ? *observer : (xp_cpu_observer){0};
}
