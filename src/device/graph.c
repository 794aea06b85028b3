#include "device/graph.h"

#include "device/device_internal.h"
#include "device/scope.h"

bool xp_graph_is_supported(const xp_device *device) {
    return device->vtable->graph_begin != NULL && device->hides_memory;
}

xp_status xp_graph_begin(xp_stream *stream) {
    XP_DEVICE_SCOPE(stream->device);
    if (!xp_graph_is_supported(stream->device))
        return xp_error(XP_ENOTSUP, "%s: streams cannot be recorded", stream->device->name);
    if (stream->recording != NULL)
        return xp_error(XP_EINVAL, "%s: the stream is being recorded already",
                        stream->device->name);
    xp_graph *graph = NULL;
    XP_TRY(stream->device->vtable->graph_begin(stream, &graph));
    graph->device = stream->device;
    stream->recording = graph;
    return XP_OK;
}

xp_status xp_graph_end(xp_stream *stream, xp_graph **graph) {
    XP_DEVICE_SCOPE(stream->device);
    xp_graph *recorded = stream->recording;
    bool any = false;
    *graph = NULL;
    if (recorded == NULL)
        return xp_error(XP_EINVAL, "%s: the stream is not being recorded", stream->device->name);
    stream->recording = NULL;
    const xp_status status = stream->device->vtable->graph_end(stream, recorded, &any);
    if (status == XP_OK && any)
        *graph = recorded;
    else
        stream->device->vtable->graph_destroy(recorded);
    return status;
}

xp_status xp_graph_launch(xp_graph *graph, xp_stream *stream) {
    XP_DEVICE_SCOPE(stream->device);
    return stream->device->vtable->graph_launch(graph, stream);
}

void xp_graph_destroy(xp_graph *graph) {
    XP_DEVICE_SCOPE(graph != NULL ? graph->device : NULL);
    if (graph != NULL)
        graph->device->vtable->graph_destroy(graph);
}
