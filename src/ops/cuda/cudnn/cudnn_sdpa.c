/*
 * The plans of one device: built once a shape, kept in a list.
 *
 * A deterministic backward plan keeps dP in memory, 2 bytes per query-key pair and head, instead of
 * adding to dq atomically. Calls with many rows therefore run in pieces of shape.n_rows rows;
 * attention.c chooses how many.
 */
#include "ops/cuda/cudnn_sdpa.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "ops/cuda/cudnn/sdpa_graphs.h"
#include "ops/cuda/libraries.h"

#define ALIGNMENT 256

struct xp_sdpa_plan {
    xp_sdpa_plan *next;
    xp_sdpa_shape shape;
    xp_cudnn_graph graph;
    xp_cudnn_node plan; /* NULL: no engine takes this shape */
    size_t workspace_bytes, sums_bytes, dq_bytes;
    char why[400];
};

/** What a device keeps of cuDNN. */
typedef struct sdpa_device {
    const xp_cudnn_api *api;
    cudnnHandle_t handle;
    xp_sdpa_plan *plans; /* newest first */
} sdpa_device;

static void destroy_device(void *state) {
    sdpa_device *device = state;
    while (device->plans != NULL) {
        xp_sdpa_plan *plan = device->plans;
        device->plans = plan->next;
        xp_cudnn_graph_release(&plan->graph);
        free(plan);
    }
    device->api->destroy(device->handle);
    free(device);
}

static sdpa_device *open_device(xp_cuda_device *cuda, const char **why) {
    const xp_cudnn_api *api = xp_cudnn_api_get(why);
    if (api == NULL)
        return NULL;
    xp_cuda_library_state *slot = xp_cuda_library_slot(cuda, XP_CUDNN);
    *why = "out of memory";
    if (slot == NULL || slot->state != NULL)
        return slot == NULL ? NULL : slot->state;
    sdpa_device *device = calloc(1, sizeof *device);
    if (device == NULL)
        return NULL;
    device->api = api;
    if (xp_cudnn_check(api, api->create(&device->handle), "a handle") != XP_OK) {
        *why = "cuDNN does not start on this device";
        free(device);
        return NULL;
    }
    slot->state = device;
    slot->destroy = destroy_device;
    return device;
}

static size_t rounded_up(size_t n_bytes) {
    return (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static xp_status build(xp_sdpa_plan *plan) {
    const xp_sdpa_shape *s = &plan->shape;
    const size_t queries = (size_t)(s->n_rows * s->n_heads * s->seq_len);
    if (s->backward) {
        xp_sdpa_backward_graph(&plan->graph, s);
        plan->sums_bytes = rounded_up(queries * sizeof(float));
        plan->dq_bytes =
            s->deterministic ? 0 : rounded_up(queries * (size_t)s->head_dim * sizeof(float));
    } else {
        xp_sdpa_forward_graph(&plan->graph, s);
    }
    return xp_cudnn_graph_plan(&plan->graph, &plan->plan, &plan->workspace_bytes);
}

xp_sdpa_plan *xp_sdpa_plan_get(xp_cuda_device *cuda, const xp_sdpa_shape *shape, const char **why) {
    sdpa_device *device = open_device(cuda, why);
    if (device == NULL)
        return NULL;
    xp_sdpa_plan *plan = device->plans;
    while (plan != NULL && memcmp(&plan->shape, shape, sizeof *shape) != 0)
        plan = plan->next;
    if (plan == NULL) {
        plan = calloc(1, sizeof *plan);
        if (plan == NULL)
            return NULL;
        memcpy(&plan->shape, shape, sizeof *shape);
        xp_cudnn_graph_init(&plan->graph, device->api, device->handle);
        if (build(plan) != XP_OK) { /* remembered, so that it is not tried at every call */
            snprintf(plan->why, sizeof plan->why, "%s", xp_last_error());
            xp_error_clear();
            plan->plan = NULL;
        }
        plan->next = device->plans;
        device->plans = plan;
    }
    *why = plan->why;
    return plan->plan == NULL ? NULL : plan;
}

size_t xp_sdpa_plan_scratch(const xp_sdpa_plan *plan) {
    return plan->sums_bytes + plan->dq_bytes + rounded_up(plan->workspace_bytes);
}

static xp_status run(xp_sdpa_plan *plan, cudaStream_t stream, const int64_t *uids, void **pointers,
                     int64_t n, void *workspace) {
    const xp_cudnn_graph *graph = &plan->graph;
    XP_TRY(xp_cudnn_check(graph->api, graph->api->set_stream(graph->handle, stream),
                          "choosing the stream"));
    const xp_cudnn_run call = {.uids = uids, .pointers = pointers, .n = n, .workspace = workspace};
    return xp_cudnn_execute(graph, plan->plan, &call);
}

xp_status xp_sdpa_plan_forward(xp_sdpa_plan *plan, cudaStream_t stream,
                               const xp_attention_args *a) {
    float scale = a->scale, hidden = xp_sdpa_hidden_score(plan->graph.api);
    const int64_t uids[] = {XP_SDPA_Q,   XP_SDPA_K,     XP_SDPA_V,     XP_SDPA_OUT,
                            XP_SDPA_LSE, XP_SDPA_SCALE, XP_SDPA_HIDDEN};
    void *pointers[] = {(void *)a->q, (void *)a->k, (void *)a->v, a->out, a->lse, &scale, &hidden};
    return run(plan, stream, uids, pointers, sizeof uids / sizeof uids[0], a->scratch);
}

xp_status xp_sdpa_plan_backward(xp_sdpa_plan *plan, cudaStream_t stream,
                                const xp_attention_backward_args *args) {
    const xp_attention_args *a = &args->forward;
    float scale = a->scale, hidden = xp_sdpa_hidden_score(plan->graph.api), one = 1.0F;
    char *sums = a->scratch, *dq_sums = sums + plan->sums_bytes;
    const int64_t uids[] = {XP_SDPA_Q,      XP_SDPA_K,      XP_SDPA_V,     XP_SDPA_OUT,
                            XP_SDPA_LSE,    XP_SDPA_DOUT,   XP_SDPA_DQ,    XP_SDPA_DK,
                            XP_SDPA_DV,     XP_SDPA_SUMS,   XP_SDPA_SCALE, XP_SDPA_ONE,
                            XP_SDPA_HIDDEN, XP_SDPA_DQ_SUMS};
    void *pointers[] = {
        (void *)a->q, (void *)a->k, (void *)a->v, a->out, a->lse, (void *)args->dout,
        args->dq,     args->dk,     args->dv,     sums,   &scale, &one,
        &hidden,      dq_sums};
    int64_t n = sizeof uids / sizeof uids[0];
    n -= plan->shape.deterministic; /* dq has no sums of its own then */
    return run(plan, stream, uids, pointers, n, dq_sums + plan->dq_bytes);
}
