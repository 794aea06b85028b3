/** Inside `expar plan`: a row is one combination of settings, worked out. */
#ifndef XP_CLI_PLAN_H
#define XP_CLI_PLAN_H

#include "config_words.h"
#include "lists.h"
#include "model/arch.h"
#include "predict/predict.h"
#include "predict/step_time.h"

#define PLAN_MAX_TEXT 400
#define PLAN_GIB      ((double)(1 << 30))

typedef struct plan_options {
    const char *gpu, *nodes, *batch, *ep, *recompute, *overlap, *replicas, *scaling, *tokens;
    int64_t gpus_per_node, n_best;
    double network_gbps, latency_us, price; /* < 0: not given */
    bool suggest, json, markdown, explain;
    cli_config_words words;
} plan_options;

typedef struct plan {
    const plan_options *o;
    xp_config_set *set;
    const xp_config *config;
    xp_arch arch;
    xp_hardware hardware;
    xp_cluster cluster;
    double room_gib;      /* of a rank, for a run */
    double tokens, price; /* to train on, 0: not given; of a GPU-hour, < 0: not given */
    double base_speed;    /* of the first row of a scaling table, tok/s a GPU */
} plan;

/** What a row varies. Strings are static. */
typedef struct plan_setting {
    int64_t nodes, batch, ep, replicas;
    const char *mode;      /* activation_checkpoint.mode */
    bool overlap;          /* parallelism.expert_parallel_overlap */
    const char *transport; /* deepep.transport; NULL: as configured */
} plan_setting;

typedef struct plan_row {
    plan_setting setting;
    const char *scaling; /* "weak", "strong"; NULL: no scaling table */
    int64_t ranks;
    int ep_size;
    bool is_run, fits, has_speed;   /* speed: of what fits */
    char error[PLAN_MAX_TEXT];      /* why it is no run, or why its speed is not known */
    char advice[PLAN_MAX_TEXT];     /* what would fit */
    char reason[2 * PLAN_MAX_TEXT]; /* why this was suggested */
    xp_memory_prediction memory;
    xp_step_prediction step;
} plan_row;

/** Modes of recomputation, least first; NULL past the last. */
extern const char *const plan_modes[];

/** What the figures are of: "GPU", or "rank" where ranks share a CPU. */
const char *plan_unit(const plan *p);
double plan_memory_gib(const plan *p, const plan_row *r);
double plan_tokens_per_s_gpu(const plan_row *r);
double plan_mfu_percent(const plan *p, const plan_row *r);
const char *plan_transport_name(const plan_row *r);
/** Whether launches take so much of a step that its time is known to 15 % only. */
bool plan_is_short(const plan_row *r);
bool plan_is_measured(const plan *p, const plan_row *r);
/** Training on p->tokens. */
double plan_days(const plan *p, const plan_row *r);
double plan_gpu_hours(const plan *p, const plan_row *r);

/* ---- plan_row.c: one combination ---- */

/** The configuration's own settings. */
plan_setting plan_own_setting(const plan *p);
/** Put the setting into the configuration. */
XP_NODISCARD xp_status plan_apply(plan *p, const plan_setting *setting);
/** Whether the EP degree divides the ranks, in terms of this command's options: XP_ECONFIG. */
XP_NODISCARD xp_status plan_check_ep(const plan *p, const plan_setting *setting);
/** The layout of a rank whose EP group lies on the most nodes; the setting is applied. */
XP_NODISCARD xp_status plan_layout(const plan *p, int64_t nodes, xp_mesh *layout);
XP_NODISCARD xp_status plan_memory_at(plan *p, const xp_mesh *layout, int64_t batch,
                                      xp_memory_prediction *memory);
bool plan_fits(const plan *p, const xp_memory_prediction *memory);
/** The largest batch up to `most` that fits, and what it needs; 0: none. The search begins at `guess`. */
int64_t plan_largest_batch(plan *p, const xp_mesh *layout, int64_t most, int64_t guess,
                           xp_memory_prediction *memory);
/** A row for r->setting, with advice where it does not fit. */
void plan_work_out(plan *p, plan_row *r);

/* ---- plan_search.c ---- */

/** Which values --suggest tries; n = 0: all that make sense. */
typedef struct plan_lists {
    cli_int_list nodes, batches, eps, replicas;
    cli_choice_list modes, overlaps;
} plan_lists;

/**
 * The best combinations, best first, each at its best batch: at most n_most rows, of what fits only.
 * @param[out] n  how many; where it is 0, rows[0].error says why when no combination is a run at all
 */
XP_NODISCARD xp_status plan_search(plan *p, const plan_lists *lists, int n_most, plan_row *rows,
                                   int *n);

/* ---- output ---- */

typedef struct plan_output {
    plan *p;
    xp_text json;
    int n_rows;
    bool many_gpus, several_nodes, short_steps, overlap_without_ep;
} plan_output;

void plan_output_begin(plan_output *out, plan *p);
void plan_output_row(plan_output *out, const plan_row *r);
/** Notes, and details of a single row. @return false after an error was printed */
bool plan_output_end(plan_output *out, const plan_row *last);
void plan_add_json(const plan *p, const plan_row *r, xp_text *t);
void plan_print_notes(const plan_output *out);

#endif
