/**
 * Operation graphs of cuDNN's backend API. A graph collects descriptors and remembers its first
 * error: the calls that build it need no checks, xp_cudnn_graph_plan() reports. Everything a graph
 * made lives until xp_cudnn_graph_release().
 */
#ifndef XP_OPS_CUDA_CUDNN_CUDNN_GRAPH_H
#define XP_OPS_CUDA_CUDNN_CUDNN_GRAPH_H

#include <cudnn_graph.h>
#include <stdbool.h>
#include "expar/status.h"

/** Entry points of the opened library. */
typedef struct xp_cudnn_api {
    cudnnStatus_t (*create)(cudnnHandle_t *handle);
    cudnnStatus_t (*destroy)(cudnnHandle_t handle);
    cudnnStatus_t (*set_stream)(cudnnHandle_t handle, cudaStream_t stream);
    size_t (*version)(void);
    const char *(*error_string)(cudnnStatus_t status);
    void (*last_error)(char *message, size_t max_size);
    cudnnStatus_t (*descriptor_create)(cudnnBackendDescriptorType_t type,
                                       cudnnBackendDescriptor_t *descriptor);
    cudnnStatus_t (*descriptor_destroy)(cudnnBackendDescriptor_t descriptor);
    cudnnStatus_t (*finalize)(cudnnBackendDescriptor_t descriptor);
    cudnnStatus_t (*set)(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                         cudnnBackendAttributeType_t type, int64_t n, const void *values);
    cudnnStatus_t (*get)(const cudnnBackendDescriptor_t descriptor,
                         cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                         int64_t n_wanted, int64_t *n, void *values);
    cudnnStatus_t (*execute)(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                             cudnnBackendDescriptor_t variant_pack);
} xp_cudnn_api;

/** The process's entry points, or NULL with the reason. */
const xp_cudnn_api *xp_cudnn_api_get(const char **why);

/** XP_OK, or XP_EDEVICE with what was being done and what cuDNN says. */
xp_status xp_cudnn_check(const xp_cudnn_api *api, cudnnStatus_t status, const char *doing);

enum { XP_CUDNN_MAX_DESCRIPTORS = 192, XP_CUDNN_MAX_OPS = 40 };

typedef struct xp_cudnn_graph {
    const xp_cudnn_api *api;
    cudnnHandle_t handle;
    cudnnBackendDescriptor_t made[XP_CUDNN_MAX_DESCRIPTORS];
    int n_made;
    cudnnBackendDescriptor_t ops[XP_CUDNN_MAX_OPS];
    int n_ops;
    int64_t next_virtual;
    xp_status status;
} xp_cudnn_graph;

/** Four dimensions; uid 0: a result that stays inside the graph. */
typedef struct xp_cudnn_tensor {
    int64_t dims[4], strides[4];
    cudnnDataType_t dtype;
    int64_t uid;
    bool by_value; /* host memory, read when the plan runs */
} xp_cudnn_tensor;

void xp_cudnn_graph_init(xp_cudnn_graph *graph, const xp_cudnn_api *api, cudnnHandle_t handle);
void xp_cudnn_graph_release(xp_cudnn_graph *graph);

typedef cudnnBackendDescriptor_t xp_cudnn_node;

xp_cudnn_node xp_cudnn_add_tensor(xp_cudnn_graph *graph, const xp_cudnn_tensor *tensor);

/** Operands of an element-wise operation; b and t NULL where the mode has none. */
typedef struct xp_cudnn_pointwise {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t math;
    xp_cudnn_node x, b, t, y;
    int64_t axis; /* of CUDNN_POINTWISE_GEN_INDEX */
} xp_cudnn_pointwise;
void xp_cudnn_add_pointwise(xp_cudnn_graph *graph, const xp_cudnn_pointwise *op);
/** c = a b, summed in fp32. */
void xp_cudnn_add_matmul(xp_cudnn_graph *graph, xp_cudnn_node a, xp_cudnn_node b, xp_cudnn_node c);
/** y = x reduced along the dimensions in which y has 1 (or fewer). */
void xp_cudnn_add_reduction(xp_cudnn_graph *graph, cudnnReduceTensorOp_t op, xp_cudnn_node x,
                            xp_cudnn_node y);
void xp_cudnn_add_reshape(xp_cudnn_graph *graph, xp_cudnn_node x, xp_cudnn_node y);

/**
 * Choose an engine and build its plan, which the graph owns.
 * @param[out] workspace_bytes  of device memory, 256-byte aligned, for every run
 * @return XP_OK; XP_ENOTSUP: no engine takes this graph
 */
xp_status xp_cudnn_graph_plan(xp_cudnn_graph *graph, xp_cudnn_node *plan, size_t *workspace_bytes);

/** Queue a plan on the handle's stream. */
typedef struct xp_cudnn_run {
    const int64_t *uids;
    void *const *pointers;
    int64_t n;
    void *workspace;
} xp_cudnn_run;
xp_status xp_cudnn_execute(const xp_cudnn_graph *graph, xp_cudnn_node plan,
                           const xp_cudnn_run *run);

#endif
