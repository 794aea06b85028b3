/** A trace of one step and rank (train/trace.h writes it), added up. */
#ifndef XP_REPORT_TRACE_H
#define XP_REPORT_TRACE_H

#include <stdbool.h>
#include <stdint.h>
#include "core/text.h"
#include "predict/step_work.h"

typedef struct xp_trace_op {
    char *name;
    int64_t n_calls;
    double total_us;
} xp_trace_op;

typedef struct xp_trace_row {
    char *name;       /* "ops, compute stream" */
    xp_trace_op *ops; /* [n_ops] longest first */
    int n_ops;
    bool has_idle;  /* the compute stream */
    double idle_us; /* of the step, in which it ran no op */
} xp_trace_row;

/** Ops that were queued for one layer, of all microbatches. Communication is the exchange of expert
 * rows with its plan, and collectives; it is exposed while the compute stream runs nothing else. */
typedef struct xp_trace_layer {
    int layer;                      /* -1: outside of layers */
    double forward_us, backward_us; /* of the compute stream's ops */
    double communication_us, exposed_us;
} xp_trace_layer;

/** Plans, dispatches and combines, those of one time counted once. */
typedef struct xp_trace_exchange {
    double us, exposed_us;
} xp_trace_exchange;

/** What the file says about its run. */
typedef struct xp_trace_run {
    char *config, *device; /* TOML; a GPU model name, or "cpu". NULL: not said */
    int n_ranks, n_nodes;  /* 0: not said */
    double step_us;        /* of the step by the host's clock; 0: not said */
} xp_trace_run;

typedef struct xp_trace_sums {
    int64_t step, rank; /* -1: the file does not say */
    int64_t n_left_out; /* events that had no room */
    double step_us;     /* from the first event to the end of the last */
    xp_trace_row *rows; /* [n_rows] */
    int n_rows;
    xp_trace_layer *layers; /* [n_layers] ascending; none: ops do not say their layers */
    int n_layers;
    xp_trace_layer all;            /* of all ops */
    xp_trace_exchange exchange[2]; /* of all layers; forward, backward */
    /* Every moment from the compute stream's first op to the end of its last counts for one part: the op that
     * runs, else an exchange or a collective on another stream, else a gap. edges_us: the moments before and after,
     * in which a GPU still runs the previous step's update and begins the next step. */
    double parts_us[XP_N_PARTS], edges_us[XP_N_PARTS];
    xp_trace_run run;
} xp_trace_sums;

/**
 * @param[out] sums  set only on success; xp_trace_sums_free() it
 * @return XP_OK; XP_EFORMAT: no trace; XP_ENOENT, XP_EIO, XP_ENOMEM. Errors begin with the path
 */
XP_NODISCARD xp_status xp_trace_sums_read(const char *path, xp_trace_sums *sums);
void xp_trace_sums_free(xp_trace_sums *sums);

/** A table for each row, and one of the layers. Check out->failed. */
void xp_trace_sums_print(const xp_trace_sums *sums, const char *path, xp_text *out);
/** One JSON object. Check out->failed. */
void xp_trace_sums_json(const xp_trace_sums *sums, const char *path, xp_text *out);

#endif
