/** How the ranks of a training run start. */
#ifndef XP_TRAIN_START_CHOICE_H
#define XP_TRAIN_START_CHOICE_H

#include "config/config.h"

typedef enum xp_start_kind {
    XP_START_THREADS = 0, /* n_ranks threads of this process */
    XP_START_RANK,        /* a launcher made this process one rank */
    XP_START_PROCESSES    /* n_ranks processes, which the launcher of src/launch starts */
} xp_start_kind;

typedef struct xp_start {
    xp_start_kind kind;
    int n_ranks; /* 0 for XP_START_RANK: the launcher knows */
    int n_nodes;
} xp_start;

/** What the choice depends on besides the configuration. */
typedef struct xp_start_facts {
    bool launched; /* as one of several ranks */
    int n_gpus;    /* that the run may use; 0: it uses the CPU */
    int n_nodes;   /* that the user names; 1: this machine */
    bool on_nodes; /* the user names nodes, so ranks are processes */
} xp_start_facts;

/** @return XP_OK; XP_ECONFIG: job.ranks or NGPU does not fit, the error says what to set */
XP_NODISCARD xp_status xp_start_choose_from(const xp_config *config, const xp_start_facts *facts,
                                            xp_start *start);
/** The same with this machine's facts. Loads the CUDA backend unless the run is one on the CPU. */
XP_NODISCARD xp_status xp_start_choose(const xp_config *config, int n_nodes, bool on_nodes,
                                       xp_start *start);
/** What can be known to be wrong with the configuration for so many ranks before one starts. */
XP_NODISCARD xp_status xp_start_check(const xp_config *config, const xp_start *start);

#endif
