#include "ops/cuda/cudnn/cudnn_graph.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include "ops/cuda/libraries.h"

/* ---- the library ----------------------------------------------------------------------------- */

/* Loaded once a process, constant afterwards. */
static pthread_once_t load_once = PTHREAD_ONCE_INIT;
static xp_cudnn_api loaded;
static bool is_loaded;
static const char *load_reason;

static void load(void) {
    void *library = xp_cuda_library_open(XP_CUDNN, &load_reason);
    if (library == NULL)
        return;
    const struct {
        void **to;
        const char *name;
    } symbols[] = {
        {(void **)&loaded.create, "cudnnCreate"},
        {(void **)&loaded.destroy, "cudnnDestroy"},
        {(void **)&loaded.set_stream, "cudnnSetStream"},
        {(void **)&loaded.version, "cudnnGetVersion"},
        {(void **)&loaded.error_string, "cudnnGetErrorString"},
        {(void **)&loaded.last_error, "cudnnGetLastErrorString"},
        {(void **)&loaded.descriptor_create, "cudnnBackendCreateDescriptor"},
        {(void **)&loaded.descriptor_destroy, "cudnnBackendDestroyDescriptor"},
        {(void **)&loaded.finalize, "cudnnBackendFinalize"},
        {(void **)&loaded.set, "cudnnBackendSetAttribute"},
        {(void **)&loaded.get, "cudnnBackendGetAttribute"},
        {(void **)&loaded.execute, "cudnnBackendExecute"},
    };
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        *symbols[i].to = dlsym(library, symbols[i].name);
        if (*symbols[i].to == NULL) {
            load_reason = "cuDNN lacks an entry point of version 9; install cuDNN 9.6 or newer";
            return;
        }
    }
    if (loaded.version() < 90600) {
        load_reason = "cuDNN is older than 9.6";
        return;
    }
    is_loaded = true;
}

const xp_cudnn_api *xp_cudnn_api_get(const char **why) {
    pthread_once(&load_once, load);
    *why = load_reason;
    return is_loaded ? &loaded : NULL;
}

xp_status xp_cudnn_check(const xp_cudnn_api *api, cudnnStatus_t status, const char *doing) {
    if (status == CUDNN_STATUS_SUCCESS)
        return XP_OK;
    char detail[256] = "";
    api->last_error(detail, sizeof detail);
    for (char *c = detail; *c != '\0'; c++)
        *c = *c == '\n' ? ' ' : *c;
    return xp_error(status == CUDNN_STATUS_ALLOC_FAILED ? XP_ENOMEM : XP_EDEVICE,
                    "cuDNN, %s: %s; %s", doing, api->error_string(status), detail);
}

/* ---- building -------------------------------------------------------------------------------- */

void xp_cudnn_graph_init(xp_cudnn_graph *graph, const xp_cudnn_api *api, cudnnHandle_t handle) {
    *graph = (xp_cudnn_graph){.api = api, .handle = handle, .next_virtual = 1000};
}

void xp_cudnn_graph_release(xp_cudnn_graph *graph) {
    while (graph->n_made > 0)
        graph->api->descriptor_destroy(graph->made[--graph->n_made]);
}

static void note(xp_cudnn_graph *graph, cudnnStatus_t status, const char *doing) {
    if (graph->status == XP_OK)
        graph->status = xp_cudnn_check(graph->api, status, doing);
}

static xp_cudnn_node make(xp_cudnn_graph *graph, cudnnBackendDescriptorType_t type) {
    if (graph->status == XP_OK && graph->n_made == XP_CUDNN_MAX_DESCRIPTORS)
        graph->status = xp_error(XP_EINTERNAL, "cuDNN graph: too many descriptors");
    if (graph->status != XP_OK)
        return NULL;
    xp_cudnn_node made = NULL;
    note(graph, graph->api->descriptor_create(type, &made), "creating a descriptor");
    if (graph->status == XP_OK)
        graph->made[graph->n_made++] = made;
    return made;
}

static void set(xp_cudnn_graph *graph, xp_cudnn_node node, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t n, const void *values) {
    if (graph->status == XP_OK)
        note(graph, graph->api->set(node, name, type, n, values), "setting an attribute");
}

static void set_node(xp_cudnn_graph *graph, xp_cudnn_node node, cudnnBackendAttributeName_t name,
                     xp_cudnn_node value) {
    if (value != NULL)
        set(graph, node, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finalize(xp_cudnn_graph *graph, xp_cudnn_node node, const char *what) {
    if (graph->status == XP_OK)
        note(graph, graph->api->finalize(node), what);
}

static void finalize_op(xp_cudnn_graph *graph, xp_cudnn_node node, const char *what) {
    finalize(graph, node, what);
    if (graph->status == XP_OK && graph->n_ops == XP_CUDNN_MAX_OPS)
        graph->status = xp_error(XP_EINTERNAL, "cuDNN graph: too many operations");
    if (graph->status == XP_OK)
        graph->ops[graph->n_ops++] = node;
}

xp_cudnn_node xp_cudnn_add_tensor(xp_cudnn_graph *graph, const xp_cudnn_tensor *tensor) {
    const int64_t alignment = 16;
    const bool is_virtual = tensor->uid == 0;
    const int64_t uid = is_virtual ? graph->next_virtual++ : tensor->uid;
    xp_cudnn_node node = make(graph, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(graph, node, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &tensor->dtype);
    set(graph, node, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, tensor->dims);
    set(graph, node, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, tensor->strides);
    set(graph, node, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    set(graph, node, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    if (is_virtual)
        set(graph, node, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    if (tensor->by_value)
        set(graph, node, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &tensor->by_value);
    finalize(graph, node, "a tensor");
    return node;
}

void xp_cudnn_add_pointwise(xp_cudnn_graph *graph, const xp_cudnn_pointwise *op) {
    const float one = 1.0F;
    xp_cudnn_node kind = make(graph, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(graph, kind, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &op->mode);
    set(graph, kind, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &op->math);
    if (op->mode == CUDNN_POINTWISE_GEN_INDEX)
        set(graph, kind, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &op->axis);
    finalize(graph, kind, "an element-wise kind");
    xp_cudnn_node node = make(graph, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_node(graph, node, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
    set_node(graph, node, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, op->x);
    set_node(graph, node, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, op->y);
    set_node(graph, node, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, op->b);
    set_node(graph, node, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, op->t);
    set(graph, node, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA1, CUDNN_TYPE_FLOAT, 1, &one);
    set(graph, node, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA2, CUDNN_TYPE_FLOAT, 1, &one);
    finalize_op(graph, node, "an element-wise operation");
}

void xp_cudnn_add_matmul(xp_cudnn_graph *graph, xp_cudnn_node a, xp_cudnn_node b, xp_cudnn_node c) {
    const cudnnDataType_t math = CUDNN_DATA_FLOAT;
    xp_cudnn_node kind = make(graph, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(graph, kind, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math);
    finalize(graph, kind, "a GEMM descriptor");
    xp_cudnn_node node = make(graph, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_node(graph, node, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_node(graph, node, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_node(graph, node, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    set_node(graph, node, CUDNN_ATTR_OPERATION_MATMUL_DESC, kind);
    finalize_op(graph, node, "a GEMM");
}

void xp_cudnn_add_reduction(xp_cudnn_graph *graph, cudnnReduceTensorOp_t op, xp_cudnn_node x,
                            xp_cudnn_node y) {
    const cudnnDataType_t math = CUDNN_DATA_FLOAT;
    xp_cudnn_node kind = make(graph, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(graph, kind, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &math);
    set(graph, kind, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &op);
    finalize(graph, kind, "a kind of reduction");
    xp_cudnn_node node = make(graph, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_node(graph, node, CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind);
    set_node(graph, node, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_node(graph, node, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    finalize_op(graph, node, "a reduction");
}

void xp_cudnn_add_reshape(xp_cudnn_graph *graph, xp_cudnn_node x, xp_cudnn_node y) {
    xp_cudnn_node node = make(graph, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_node(graph, node, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_node(graph, node, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    finalize_op(graph, node, "a reshape");
}

/* ---- plans ----------------------------------------------------------------------------------- */

/* Try the engines that the heuristic names, best first; false when none builds a plan. */
static bool try_mode(xp_cudnn_graph *graph, xp_cudnn_node operations, cudnnBackendHeurMode_t mode,
                     xp_cudnn_node *plan) {
    enum { MOST = 8 };
    const xp_cudnn_api *api = graph->api;
    xp_cudnn_node heuristic = make(graph, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_node(graph, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations);
    set(graph, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finalize(graph, heuristic, "asking for engines");
    xp_cudnn_node configs[MOST];
    int64_t n = 0;
    for (int i = 0; i < MOST; i++)
        configs[i] = make(graph, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (graph->status != XP_OK)
        return false;
    if (api->get(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, MOST, &n,
                 configs) != CUDNN_STATUS_SUCCESS)
        return false;
    for (int64_t i = 0; i < n && i < MOST; i++) {
        xp_cudnn_node made = make(graph, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        if (made == NULL)
            return false;
        const bool built =
            api->set(made, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
                     &graph->handle) == CUDNN_STATUS_SUCCESS &&
            api->set(made, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                     1, &configs[i]) == CUDNN_STATUS_SUCCESS &&
            api->finalize(made) == CUDNN_STATUS_SUCCESS;
        if (built) {
            *plan = made;
            return true;
        }
    }
    return false;
}

xp_status xp_cudnn_graph_plan(xp_cudnn_graph *graph, xp_cudnn_node *plan, size_t *workspace_bytes) {
    const xp_cudnn_api *api = graph->api;
    xp_cudnn_node operations = make(graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(graph, operations, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
        graph->n_ops, graph->ops);
    set(graph, operations, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &graph->handle);
    finalize(graph, operations, "the operation graph");
    XP_TRY(graph->status);
    xp_cudnn_node found = NULL;
    if (!try_mode(graph, operations, CUDNN_HEUR_MODE_A, &found)) {
        graph->status = XP_OK;
        if (!try_mode(graph, operations, CUDNN_HEUR_MODE_FALLBACK, &found)) {
            char detail[256] = "";
            api->last_error(detail, sizeof detail);
            return xp_error(XP_ENOTSUP, "cuDNN has no engine for this graph: %s", detail);
        }
    }
    int64_t n = 0, bytes = 0;
    XP_TRY(xp_cudnn_check(
        api,
        api->get(found, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &bytes),
        "reading the plan's workspace"));
    *plan = found;
    *workspace_bytes = (size_t)bytes;
    return XP_OK;
}

static cudnnStatus_t fill_pack(const xp_cudnn_api *api, xp_cudnn_node pack,
                               const xp_cudnn_run *run) {
    cudnnStatus_t status =
        api->set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, run->n, run->uids);
    if (status == CUDNN_STATUS_SUCCESS)
        status = api->set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, run->n,
                          run->pointers);
    if (status == CUDNN_STATUS_SUCCESS)
        status = api->set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                          &run->workspace);
    return status == CUDNN_STATUS_SUCCESS ? api->finalize(pack) : status;
}

xp_status xp_cudnn_execute(const xp_cudnn_graph *graph, xp_cudnn_node plan,
                           const xp_cudnn_run *run) {
    const xp_cudnn_api *api = graph->api;
    xp_cudnn_node pack = NULL;
    XP_TRY(xp_cudnn_check(api, api->descriptor_create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack),
                          "a run"));
    cudnnStatus_t status = fill_pack(api, pack, run);
    if (status == CUDNN_STATUS_SUCCESS)
        status = api->execute(graph->handle, plan, pack);
    const xp_status result = xp_cudnn_check(api, status, "running a plan");
    api->descriptor_destroy(pack);
    return result;
}
