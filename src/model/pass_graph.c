#include "model/pass_graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device/device_internal.h"
#include "model/model_internal.h"

#define N_WARM_UP 2 /* passes of a kind before it is recorded */
#define N_KINDS   8

/* What a recording depends on besides device memory: equal keys, equal work. */
typedef struct pass_key {
    xp_stream *stream;
    int64_t n_rows, seq_len;
    float loss_scale; /* where losses of the router take it by value; else 0 */
    bool accumulate, has_doc_start, cut_by_needed, cut_by_ready;
} pass_key;

typedef struct pass_piece {
    xp_graph *graph; /* NULL: a hook */
    int group;
    bool ready; /* group_ready, else group_needed */
} pass_piece;

typedef struct pass_kind {
    pass_key key;
    int64_t n_seen;
    pass_piece *pieces; /* [capacity] */
    int n_pieces, capacity;
    bool recorded;
    xp_moe_recomputed recomputed; /* what one pass counts */
} pass_kind;

struct xp_pass_graphs {
    pass_kind kinds[N_KINDS];
    int n_kinds;
    int64_t n_launched;
    bool failed;
    char failure[512];
};

xp_status xp_pass_graphs_create(xp_pass_graphs **graphs) {
    *graphs = calloc(1, sizeof **graphs);
    return *graphs ? XP_OK : xp_error(XP_ENOMEM, "no memory for recorded passes");
}

/* What was launched last may still run. */
static void drop_pieces(pass_kind *kind) {
    if (kind->n_pieces > 0)
        (void)!xp_stream_sync(kind->key.stream);
    for (int i = 0; i < kind->n_pieces; i++)
        xp_graph_destroy(kind->pieces[i].graph);
    free(kind->pieces);
    kind->pieces = NULL;
    kind->n_pieces = kind->capacity = 0;
}

void xp_pass_graphs_destroy(xp_pass_graphs *graphs) {
    if (!graphs)
        return;
    for (int i = 0; i < graphs->n_kinds; i++)
        drop_pieces(&graphs->kinds[i]);
    free(graphs);
}

int64_t xp_pass_graphs_n_launched(const xp_pass_graphs *graphs) {
    return graphs->n_launched;
}

const char *xp_pass_graphs_failure(const xp_pass_graphs *graphs) {
    return graphs->failed ? graphs->failure : NULL;
}

/* ---- kinds --------------------------------------------------------------------------------- */

/* Zeroed first: keys are compared by their bytes. */
static void fill_key(const xp_model *model, const xp_model_hooks *hooks, xp_stream *stream,
                     pass_key *key) {
    const bool by_value =
        model->core && (model->args.aux_loss_coeff != 0.0 || model->args.z_loss_coeff != 0.0);
    memset(key, 0, sizeof *key);
    key->stream = stream;
    key->n_rows = model->n_rows;
    key->seq_len = model->seq_len;
    key->loss_scale = by_value ? model->loss_scale : 0.0F;
    key->accumulate = model->accumulate;
    key->has_doc_start = model->has_doc_start;
    key->cut_by_needed = hooks->group_needed != NULL;
    key->cut_by_ready = hooks->group_ready != NULL;
}

/* A kind that came once or twice gives its place to a new one. NULL: all places hold recordings. */
static pass_kind *find_kind(xp_pass_graphs *graphs, const pass_key *key) {
    pass_kind *free_one = NULL;
    for (int i = 0; i < graphs->n_kinds; i++) {
        pass_kind *kind = &graphs->kinds[i];
        if (memcmp(&kind->key, key, sizeof *key) == 0)
            return kind;
        if (!kind->recorded && (!free_one || kind->n_seen < free_one->n_seen))
            free_one = kind;
    }
    if (graphs->n_kinds < N_KINDS)
        free_one = &graphs->kinds[graphs->n_kinds++];
    if (free_one) {
        memset(free_one, 0, sizeof *free_one);
        memcpy(&free_one->key, key, sizeof *key);
    }
    return free_one;
}

/* ---- recording ----------------------------------------------------------------------------- */

typedef struct recorder {
    pass_kind *kind;
    xp_stream *stream;
    bool recording;
} recorder;

static xp_status add_piece(pass_kind *kind, pass_piece piece) {
    if (kind->n_pieces == kind->capacity) {
        const int capacity = kind->capacity == 0 ? 16 : 2 * kind->capacity;
        pass_piece *grown = realloc(kind->pieces, (size_t)capacity * sizeof *grown);
        if (!grown)
            return xp_error(XP_ENOMEM, "no memory for recorded passes");
        kind->pieces = grown;
        kind->capacity = capacity;
    }
    kind->pieces[kind->n_pieces++] = piece;
    return XP_OK;
}

static xp_status begin_piece(recorder *r) {
    XP_TRY(xp_graph_begin(r->stream));
    r->recording = true;
    return XP_OK;
}

static xp_status end_piece(recorder *r) {
    xp_graph *graph = NULL;
    r->recording = false;
    XP_TRY(xp_graph_end(r->stream, &graph));
    if (!graph)
        return XP_OK;
    const xp_status status = add_piece(r->kind, (pass_piece){.graph = graph});
    if (status != XP_OK)
        xp_graph_destroy(graph);
    return status;
}

static xp_status cut(recorder *r, int group, bool ready) {
    XP_TRY(end_piece(r));
    XP_TRY(add_piece(r->kind, (pass_piece){.group = group, .ready = ready}));
    return begin_piece(r);
}

static xp_status cut_needed(void *context, int group) {
    return cut(context, group, false);
}

static xp_status cut_ready(void *context, int group) {
    return cut(context, group, true);
}

static xp_status record_pieces(xp_model *model, recorder *r) {
    const pass_key *key = &r->kind->key;
    const xp_model_hooks cuts = {.context = r,
                                 .group_needed = key->cut_by_needed ? cut_needed : NULL,
                                 .group_ready = key->cut_by_ready ? cut_ready : NULL};
    XP_TRY(begin_piece(r));
    XP_TRY(xp_pass_run(model, &cuts, r->stream));
    return end_piece(r);
}

static xp_moe_recomputed recomputed_of(const xp_model *model) {
    return model->core ? xp_moe_core_recomputed(model->core) : (xp_moe_recomputed){0};
}

static xp_status record(xp_model *model, pass_kind *kind, xp_stream *stream) {
    recorder r = {.kind = kind, .stream = stream};
    const xp_moe_recomputed before = recomputed_of(model);
    xp_status status = record_pieces(model, &r);
    if (r.recording) {
        xp_graph *rest = NULL;
        char text[512];
        snprintf(text, sizeof text, "%s", xp_last_error()); /* the first cause */
        (void)!xp_graph_end(stream, &rest);
        xp_graph_destroy(rest);
        status = xp_error(status, "%s", text);
    }
    if (status != XP_OK)
        xp_side_abandon(model->side);
    const xp_moe_recomputed after = recomputed_of(model);
    kind->recomputed = (xp_moe_recomputed){.n_rounds = after.n_rounds - before.n_rounds,
                                           .n_overflow = after.n_overflow - before.n_overflow};
    if (model->core)
        xp_moe_core_set_recomputed(model->core, before);
    kind->recorded = status == XP_OK;
    if (status != XP_OK)
        drop_pieces(kind);
    return status;
}

/* ---- launching ----------------------------------------------------------------------------- */

/* @param[out] begun  false: nothing of the pass is under way */
static xp_status launch(xp_model *model, const pass_kind *kind, const xp_model_hooks *hooks,
                        xp_stream *stream, bool *begun) {
    *begun = false;
    for (int i = 0; i < kind->n_pieces; i++) {
        const pass_piece *piece = &kind->pieces[i];
        if (piece->graph)
            XP_TRY(xp_graph_launch(piece->graph, stream));
        else if (piece->ready)
            XP_TRY(hooks->group_ready(hooks->context, piece->group));
        else
            XP_TRY(hooks->group_needed(hooks->context, piece->group));
        *begun = true;
    }
    if (model->core) {
        xp_moe_recomputed sum = recomputed_of(model);
        sum.n_rounds += kind->recomputed.n_rounds;
        sum.n_overflow += kind->recomputed.n_overflow;
        xp_moe_core_set_recomputed(model->core, sum);
    }
    return XP_OK;
}

/* A trace wants each op by itself, host-synchronised mode a host that waits. */
static bool runs_as_it_is(const xp_device *device) {
    return device->recorder != NULL || device->host_synchronized;
}

/* From now on; the last error says why. */
static xp_status go_on_without(xp_model *model, const xp_model_hooks *hooks, xp_stream *stream) {
    xp_pass_graphs *graphs = model->graphs;
    graphs->failed = true;
    snprintf(graphs->failure, sizeof graphs->failure, "%s", xp_last_error());
    xp_error_clear();
    model->side = NULL;
    if (model->core)
        xp_moe_core_begin(model->core);
    return xp_pass_run(model, hooks, stream);
}

xp_status xp_pass_graphs_run(xp_model *model, const xp_model_hooks *hooks, xp_stream *stream) {
    xp_pass_graphs *graphs = model->graphs;
    pass_key key;
    if (graphs->failed || runs_as_it_is(model->device))
        return xp_pass_run(model, hooks, stream);
    fill_key(model, hooks, stream, &key);
    /* Reductions start from the pass's stream, at each group that is ready. */
    model->side = !key.cut_by_needed && !key.cut_by_ready ? model->side_stream : NULL;
    pass_kind *kind = find_kind(graphs, &key);
    if (!kind || (!kind->recorded && kind->n_seen++ < N_WARM_UP))
        return xp_pass_run(model, hooks, stream);
    if (!kind->recorded && record(model, kind, stream) != XP_OK)
        return go_on_without(model, hooks, stream);
    bool begun;
    const xp_status status = launch(model, kind, hooks, stream, &begun);
    /* The first launch of a graph takes memory of the GPU. */
    if (status == XP_ENOMEM && !begun)
        return go_on_without(model, hooks, stream);
    if (status == XP_OK)
        graphs->n_launched++;
    return status;
}
