/* What a guarded CPU's stream was asked to do, kept in a list: a GPU's graphs without a GPU. */
#include "device/cpu/cpu_graph.h"

#include <stdlib.h>
#include <string.h>

typedef struct cpu_graph {
    xp_graph base;
    xp_cpu_job *jobs; /* [capacity] */
    size_t n, capacity;
} cpu_graph;

xp_status xp_cpu_graph_begin(xp_stream *stream, xp_graph **graph) {
    (void)stream;
    cpu_graph *made = calloc(1, sizeof *made);
    if (made == NULL)
        return xp_error(XP_ENOMEM, "graph: out of memory");
    *graph = &made->base;
    return XP_OK;
}

xp_status xp_cpu_graph_add(xp_graph *graph, const char *name, xp_cpu_fn fn, const void *args,
                           size_t n_bytes) {
    cpu_graph *g = (cpu_graph *)graph;
    if (g->n == g->capacity) {
        const size_t capacity = g->capacity == 0 ? 64 : 2 * g->capacity;
        xp_cpu_job *grown = realloc(g->jobs, capacity * sizeof *grown);
        if (grown == NULL)
            return xp_error(XP_ENOMEM, "graph: out of memory");
        g->jobs = grown;
        g->capacity = capacity;
    }
    xp_cpu_job *job = &g->jobs[g->n++];
    job->fn = fn;
    job->name = name;
    job->n_bytes = n_bytes;
    memcpy(job->args, args, n_bytes);
    return XP_OK;
}

xp_status xp_cpu_graph_end(xp_stream *stream, xp_graph *graph, bool *any) {
    (void)stream;
    *any = ((cpu_graph *)graph)->n > 0;
    return XP_OK;
}

const xp_cpu_job *xp_cpu_graph_jobs(const xp_graph *graph, size_t *n) {
    const cpu_graph *g = (const cpu_graph *)graph;
    *n = g->n;
    return g->jobs;
}

void xp_cpu_graph_destroy(xp_graph *graph) {
    free(((cpu_graph *)graph)->jobs);
    free(graph);
}
