/**
 * What a run writes down: the step line, metrics.jsonl (one object a step), TensorBoard scalars.
 * docs/reference/metrics.md lists every key.
 */
#ifndef XP_TRAIN_METRICS_H
#define XP_TRAIN_METRICS_H

#include <stdbool.h>
#include "core/text.h"
#include "expar/status.h"

typedef struct xp_step_record {
    int64_t step, tokens_seen, rows_seen;
    double loss, grad_norm, lr;
    double aux_loss, z_loss;           /* 0 when off */
    double memory_gib, memory_percent; /* peak of the device; of the process on the CPU */
    double tps, tflops;                /* of one rank */
    double mfu_percent;                /* < 0: no peak is known for this device */
    double time_s;                     /* the whole step */
    double data_time_s, forward_backward_s, optimizer_s, checkpoint_s, validation_s;
    double validation_loss;                /* NaN when this step had no validation */
    int n_moe_layers;                      /* 0 in a dense model */
    const double *load_max_over_mean;      /* [n_moe_layers] */
    const double *load_busiest_rank_share; /* [n_moe_layers] */
    int64_t ep_bytes, ep_overflow_rows;    /* sent to other ranks, over all ranks */
    int64_t moe_recomputed_rounds, moe_recomputed_overflow; /* over all ranks */
    double ep_wait_s;               /* waiting for peers in expert exchange, mean */
    int64_t n_host_syncs, n_allocs; /* inside the step, of this rank */
    bool first_of_start;            /* the first step since this run was started */
    int64_t resumed_step;           /* where that start resumed; 0: nowhere */
} xp_step_record;

/**
 * "step:  1  loss:  7.62500  grad_norm: ..." as numerics.md has it.
 * tps, tflops and mfu are of the steps since the line before.
 */
void xp_metrics_line(const xp_step_record *record, bool color, xp_text *line);
/** The record as one line of metrics.jsonl, newline included. */
void xp_metrics_json(const xp_step_record *record, xp_text *line);

typedef struct xp_metrics_args {
    const char *jsonl_path;
    const char *tensorboard_folder; /* NULL = off */
    int64_t resumed_step;           /* lines of later steps are cut off; 0: all */
    bool keep_earlier; /* lines that are cut off stay in a file beside: metrics-1.jsonl, -2, ... */
} xp_metrics_args;

typedef struct xp_metrics xp_metrics;
XP_NODISCARD xp_status xp_metrics_open(const xp_metrics_args *args, xp_metrics **metrics);
/** The file in which an earlier run's lines are kept; NULL: there was nothing to keep. */
const char *xp_metrics_kept(const xp_metrics *metrics);
/**
 * With the system (not synced) when this returns. After a failure the next call writes this line
 * too; TensorBoard's file ends at its first failure.
 */
XP_NODISCARD xp_status xp_metrics_add(xp_metrics *metrics, const xp_step_record *record);
/** All lines so far on the disk. */
XP_NODISCARD xp_status xp_metrics_sync(xp_metrics *metrics);
/** NULL is accepted. */
void xp_metrics_close(xp_metrics *metrics);

/** 12345.6 -> "12,346" */
void xp_format_thousands(double value, char out[32]);

#endif
