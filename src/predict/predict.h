/**
 * What a run will need before it is started: memory, by the run's own reservation on the null
 * device.
 */
#ifndef XP_PREDICT_PREDICT_H
#define XP_PREDICT_PREDICT_H

#include "config/config.h"
#include "parallel/mesh.h"

#define XP_PREDICT_MAX_TAGS 16

typedef struct xp_predicted_tag {
    char tag[32];
    int64_t n_bytes;
} xp_predicted_tag;

typedef struct xp_memory_prediction {
    int n_tags;
    xp_predicted_tag tags[XP_PREDICT_MAX_TAGS]; /* as xp_device_bytes() will count them */
    int64_t device_bytes;                       /* of one rank: the sum over tags */
    xp_device_kind kind;
    int64_t host_bytes; /* of one rank: checkpoint staging, batches read ahead, tables */
} xp_memory_prediction;

/**
 * Memory of one rank on the kind of device that training.backend chooses here.
 * @param layout  from xp_mesh_layout(): which rank of how many
 * @return XP_OK; XP_ECONFIG as the run itself would give
 */
XP_NODISCARD xp_status xp_predict_memory(const xp_config *config, const xp_mesh *layout,
                                         xp_memory_prediction *prediction);

/** The same on a device of this kind, which need not exist: a GPU run on a machine without GPU. */
XP_NODISCARD xp_status xp_predict_memory_on(xp_device_kind kind, const xp_config *config,
                                            const xp_mesh *layout,
                                            xp_memory_prediction *prediction);

/** The same on a device with so much memory, which moe.saved_rows_factor looks at; 0: not known. */
XP_NODISCARD xp_status xp_predict_memory_within(xp_device_kind kind, int64_t total_bytes,
                                                const xp_config *config, const xp_mesh *layout,
                                                xp_memory_prediction *prediction);

/** The largest tags first. */
void xp_predict_sort_tags(xp_memory_prediction *prediction);

/**
 * Resident set of a process on the CPU.
 * @param n_local_ranks  rank threads of the process
 * @param base_bytes     resident before the run reserves anything (program, libraries, data)
 */
int64_t xp_predict_process_bytes(const xp_memory_prediction *prediction, int n_local_ranks,
                                 int64_t base_bytes);

#endif
