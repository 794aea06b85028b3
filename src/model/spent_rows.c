#include "model/spent_rows.h"

#include <stdlib.h>

#define ALIGN 256 /* bytes: as memory of the device is */

/* Elements that no gradient is written to: the buffer keeps them zero where it has memory of its own. */
static bool has_padding(const xp_param_table *table) {
    int64_t end = 0;
    for (int p = 0; p < xp_param_table_n_params(table); p++) {
        const xp_param *param = xp_param_table_param(table, p);
        if (param->offset != end)
            return true;
        end += param->n_elements;
    }
    return end != xp_param_table_n_elements(table);
}

xp_status xp_spent_rows_create(const xp_arch *arch, const xp_param_table *table,
                               xp_dtype grad_dtype, xp_spent_rows *rows) {
    const int64_t element = (int64_t)xp_dtype_bytes(grad_dtype);
    *rows = (xp_spent_rows){.n_layers = (int)arch->n_layers};
    if (arch->n_experts == 0 || arch->tie_embeddings || has_padding(table))
        return XP_OK;
    rows->first = calloc((size_t)arch->n_layers, sizeof *rows->first);
    if (!rows->first)
        return xp_error(XP_ENOMEM, "gradients: out of memory");
    for (int g = xp_param_table_n_groups(table) - 1; g >= 0; g--) {
        const xp_param_group *group = xp_param_table_group(table, g);
        if (group->layer >= 0 && group->layer < arch->n_layers)
            rows->first[group->layer] = group->offset * element;
    }
    rows->n_bytes = xp_param_table_n_elements(table) * element;
    return XP_OK;
}

void xp_spent_rows_destroy(xp_spent_rows *rows) {
    free(rows->first);
    rows->first = NULL;
    rows->n_bytes = 0;
}

int64_t xp_spent_rows_offset(const xp_spent_rows *rows, int64_t layer_bytes) {
    if (rows->n_bytes == 0 || layer_bytes == 0)
        return -1;
    const int64_t end = rows->n_layers * layer_bytes;
    const int64_t offset = (end - rows->first[rows->n_layers - 1] + ALIGN - 1) / ALIGN * ALIGN;
    /* The embedding's stand at 0 and are written when layer 0's rows have been read: one layer more is left. */
    if (offset < layer_bytes)
        return -1;
    for (int l = 0; l < rows->n_layers; l++)
        if (offset + rows->first[l] < (l + 1) * layer_bytes)
            return -1;
    return offset;
}
