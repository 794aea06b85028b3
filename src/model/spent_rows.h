/**
 * Weight gradients in the memory of expert rows that backward has read.
 *
 * Layers save rows for backward one behind the other, and backward reads them from the last layer to the first, the
 * order in which it writes gradients. The flat buffer of gradients lies so that the last layer's begin where the rows of all
 * layers end: those of layer l are then on rows of layers above l, and what stands before layer 0's (the
 * embedding's, written last) on rows of layers above 0.
 *
 *   rows       | layer 0 | layer 1 | ... | layer L-1 |
 *   gradients              | embed | 0 | 1 | ... |L-2| L-1 | head |
 *
 * A layer's rows are read for the last time by the gradient of w13. So this may not be left until the layer below has
 * written gradients; that of w2 may.
 *
 * The next pass overwrites gradients: they last from backward to the optimizer's update.
 */
#ifndef XP_MODEL_SPENT_ROWS_H
#define XP_MODEL_SPENT_ROWS_H

#include "model/params.h"

typedef struct xp_spent_rows {
    int64_t n_bytes; /* of all gradients; 0: they have memory of their own */
    int n_layers;
    int64_t *first; /* [n_layers] byte at which those of a layer begin; owned */
} xp_spent_rows;

/** n_bytes stays 0 where something is written too early (a tied head, padding that nobody writes). */
XP_NODISCARD xp_status xp_spent_rows_create(const xp_arch *arch, const xp_param_table *table,
                                            xp_dtype grad_dtype, xp_spent_rows *rows);
void xp_spent_rows_destroy(xp_spent_rows *rows);
/** Where gradients begin, in bytes behind the first layer's rows of `layer_bytes` each; -1: they would
 * lie on rows that are still needed. */
int64_t xp_spent_rows_offset(const xp_spent_rows *rows, int64_t layer_bytes);

#endif
