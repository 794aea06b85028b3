/** A training rank from the inside, for the trainer's own files and the benches. */
#ifndef XP_TRAIN_RUN_STATE_H
#define XP_TRAIN_RUN_STATE_H

#include "checkpoint/state.h"
#include "predict/predict.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/schedule.h"
#include "train/shared.h"
#include "train/snapshot.h"
#include "train/staging.h"
#include "train/trace.h"

#define XP_N_RECENT 50

typedef struct xp_trainer xp_trainer;

/** The microbatches of one step: all are read before the first runs, because the loss is a mean
 * over the valid tokens of the global batch. */
typedef struct xp_step_batches {
    int64_t n, n_valid;
    xp_batch *items;   /* [n] */
    xp_device *device; /* borrowed */
    int32_t *memory;   /* copies, when n > 1 or the device takes them later; staging memory */
} xp_step_batches;

struct xp_trainer {
    const xp_config_set *set;
    const xp_config *config;
    xp_train_shared *shared;
    xp_comm *world; /* NULL: one rank */
    int rank, n_ranks, n_local_ranks, n_threads;
    int n_on_device;  /* ranks that share this one's GPU, itself included; 1 elsewhere */
    bool shares_gpus; /* some ranks use the same one */
    bool first_use_waits, has_validated; /* see xp_device_set_host_synchronized() */
    int n_gpus;                          /* of all ranks, where there are several ranks */
    xp_log *log;                         /* NULL on silent ranks */
    bool leads;                          /* rank 0: writes files and messages */
    const char *dump;
    char *ckpt_folder;

    xp_device *device;
    double peak_tflops;             /* of the GPU, dense bf16; 0: not known, or a CPU */
    xp_memory_prediction predicted; /* on the speaking rank */
    xp_run run;
    xp_event *results; /* behind what the host reads of a step, before the update */
    xp_schedule schedule;
    xp_loader *loader;
    xp_step_batches batches;
    int n_moe_layers;
    /* Staging memory: what a step reads from the device and writes to it. */
    double *losses;                /* [n_microbatches, XP_MODEL_N_LOSSES] */
    int64_t *counts;               /* [n_moe_layers, E] */
    float *bias;                   /* [n_moe_layers, E]; NULL in a dense model */
    int32_t *validation_memory;    /* a batch of validation rows */
    double *load_max, *load_share; /* [n_moe_layers] */
    xp_staging *staging;

    xp_snapshot *snapshot;
    xp_ckpt_saver *saver; /* NULL when checkpoints are off */
    xp_metrics *metrics;  /* leader only */
    xp_progress *progress;
    xp_trace *trace; /* NULL: no profiling */
    char *config_toml;
    char *gemms, *gemm_for; /* see xp_gemms_in_force */

    int64_t step, first_step; /* steps done; done before this run started */
    int64_t tokens_seen, rows_seen;
    int64_t schedule_from;              /* the step at which the learning rate's schedule starts */
    int64_t optimizer_steps;            /* updates that the moments hold */
    int64_t last_saved, last_published; /* steps, -1 = none */
    int64_t n_allocs;                   /* of the device after the first step */
    double recent[XP_N_RECENT];
    int64_t n_recent;
    int64_t interval_steps; /* since the last step line */
    double interval_s;
    double run_s, first_step_s; /* all steps of this start, and its first */
    double publish_s;           /* of the save published after the last step's line */
    uint64_t data_hash;         /* of sampled rows */
    bool stop;
    bool publish_now;   /* a save is written, and published once this step's line is */
    bool all_failed;    /* every rank has come to the same failure, at the same place */
    bool graphs_failed; /* and it has been said */
    bool went_back;     /* checkpoint.load_step, with later steps there */
    bool metrics_fail;  /* the last line could not be written */
};

/* announce.c: messages; only the speaking rank's log is not NULL */
void xp_trainer_say(xp_trainer *t, const char *format, ...) XP_PRINTF(2, 3);
void xp_trainer_warn(xp_trainer *t, const char *format, ...) XP_PRINTF(2, 3);
/** Versions and where the configuration comes from. */
void xp_trainer_announce(xp_trainer *t);
/** The predicted memory: before anything is reserved, so that too large a run is known at once. */
XP_NODISCARD xp_status xp_trainer_announce_memory(xp_trainer *t);
/** Once all is reserved, on devices with memory of their own: what was taken, and how far the part
 * that the prediction missed most is from it. */
void xp_trainer_compare_memory(xp_trainer *t);
/** Model, ranks, data, and what does not fit the schedule. */
void xp_trainer_describe(xp_trainer *t);

/* devices.c */
/** The device of this rank: the GPU with the number that the rank has among those of its node. */
XP_NODISCARD xp_status xp_trainer_create_device(xp_trainer *t);
/** Ranks that share a GPU, in one line. Collective: refuses ranks on different kinds of devices. */
XP_NODISCARD xp_status xp_trainer_announce_devices(xp_trainer *t);

/* trainer.c */
/**
 * Everything of a rank made and reserved, nothing initialised yet: xp_trainer_start() is next.
 * Collective over `world`. Parameters as of xp_train_run(). After an error the other ranks have
 * been told.
 */
XP_NODISCARD xp_status xp_trainer_open(const xp_config_set *config, xp_train_shared *shared,
                                       xp_comm *world, int n_local_ranks, xp_log *log,
                                       xp_trainer **trainer);
/** NULL is accepted. */
void xp_trainer_close(xp_trainer *trainer);

/* start.c: where the run begins */
/** Resume, load or initialise. Collective. */
XP_NODISCARD xp_status xp_trainer_start(xp_trainer *t);

/* changes.c: a checkpoint against this run */
/** A few rows of the data, for the checkpoints to come and the one that is resumed. */
XP_NODISCARD xp_status xp_trainer_hash_data(xp_trainer *t);
/** Warn about settings, data and schedule that are others than the checkpoint's. */
XP_NODISCARD xp_status xp_trainer_compare(xp_trainer *t, const xp_ckpt *ckpt, bool data,
                                          bool schedule);

/* graphs.c */
/** Before the first step: training.cuda_graph, which is said or warned about. */
XP_NODISCARD xp_status xp_trainer_choose_graphs(xp_trainer *t);
/** After a step: warns once when a pass could not be recorded, or not launched for want of memory. */
void xp_trainer_check_graphs(xp_trainer *t);

/* batches.c */
XP_NODISCARD xp_status xp_step_batches_create(const xp_run *run, xp_step_batches *batches);
void xp_step_batches_destroy(xp_step_batches *batches);
/** Read the next step's microbatches of this rank. */
XP_NODISCARD xp_status xp_step_batches_read(xp_loader *loader, xp_step_batches *batches);

/* step.c */
/** One optimizer step; fills the record and the stop flag all ranks agree on. Collective. */
XP_NODISCARD xp_status xp_trainer_step(xp_trainer *t, xp_step_record *record);

/* report.c: step lines and metrics */
XP_NODISCARD xp_status xp_trainer_open_metrics(xp_trainer *t);
/** The step's line in the metrics and, where due, on the screen. */
void xp_trainer_report(xp_trainer *t, xp_step_record *record);
/** Mean loss of the last steps; NaN before the first. */
double xp_trainer_recent_loss(const xp_trainer *t);
/** The last lines of a run. */
void xp_trainer_summarise(xp_trainer *t, double seconds);

/* validate.c */
/** Mean loss over the validation rows. Collective. */
XP_NODISCARD xp_status xp_trainer_validate(xp_trainer *t, double *loss);

/* save.c */
XP_NODISCARD xp_status xp_trainer_save(xp_trainer *t, bool last);
/** Publish what is ready; with `wait` everything. Collective. */
XP_NODISCARD xp_status xp_trainer_publish(xp_trainer *t, bool wait);
/** checkpoint.last_save_in_hf */
XP_NODISCARD xp_status xp_trainer_export(xp_trainer *t);

#endif
