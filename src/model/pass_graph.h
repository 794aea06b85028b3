/**
 * Passes of forward_backward recorded as device graphs and launched again. Private to src/model.
 *
 * A pass is recorded behind its batch: tokens, targets, positions and the loss's scale are copied to
 * fixed device memory before each launch, and nothing else that a pass computes with changes between two of
 * its kind. What makes kinds differ (pass_key) is compared before each launch. The caller's hooks
 * group_needed and group_ready cut the recording: a pass is pieces with hooks between them, and the hooks
 * are called for real each time.
 */
#ifndef XP_MODEL_PASS_GRAPH_H
#define XP_MODEL_PASS_GRAPH_H

#include "model/model.h"

typedef struct xp_pass_graphs xp_pass_graphs;

XP_NODISCARD xp_status xp_pass_graphs_create(xp_pass_graphs **graphs);
/** Before the streams of its passes. NULL is accepted. */
void xp_pass_graphs_destroy(xp_pass_graphs *graphs);
/**
 * A training pass whose batch is on its way. The first passes of a kind are run as they are: they load
 * kernels and choose algorithms. A recording that fails switches graphs off, and the pass runs as it is.
 */
XP_NODISCARD xp_status xp_pass_graphs_run(xp_model *model, const xp_model_hooks *hooks,
                                          xp_stream *stream);
/** How many passes were launched from a recording; why there will be no more, or NULL. */
int64_t xp_pass_graphs_n_launched(const xp_pass_graphs *graphs);
const char *xp_pass_graphs_failure(const xp_pass_graphs *graphs);

#endif
