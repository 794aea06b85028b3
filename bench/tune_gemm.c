#include "tune_gemm.h"

#include <string.h>
#include "core/file.h"
#include "train/run_state.h"

typedef struct search {
    const xp_config_set *config;
    xp_train_shared *shared;
    xp_tune_gemms *found;
} search;

static xp_status step_once(const xp_bench_rank *rank, xp_trainer *t, xp_tune_gemms *found) {
    xp_step_record record;
    if (t->shares_gpus) /* each would time what the others do */
        return XP_OK;
    XP_TRY(xp_ops_gemm_tune(t->device));
    XP_TRY(xp_trainer_start(t));
    XP_TRY(xp_trainer_step(t, &record));
    if (rank->rank == 0)
        found->n = xp_ops_gemm_tuned(t->device, found->shapes, XP_GEMM_CHOICES_MAX);
    return XP_OK;
}

static xp_status run_rank(xp_bench_rank *rank, void *context) {
    const search *s = context;
    xp_trainer *t = NULL;
    XP_TRY(xp_trainer_open(s->config, s->shared, rank->world, rank->n_local, NULL, &t));
    const xp_status status = step_once(rank, t, s->found);
    if (status != XP_OK && rank->world)
        xp_comm_abort(rank->world, NULL);
    xp_trainer_close(t);
    return status;
}

xp_status xp_tune_gemms_run(const xp_config_set *config, const xp_bench_host *host, int n_ranks,
                            xp_tune_gemms *found) {
    search s = {.config = config, .found = found};
    const double began = xp_time_s();
    memset(found, 0, sizeof *found);
    XP_TRY(xp_train_shared_create(xp_config_get(config), NULL, &s.shared));
    const xp_status status = xp_bench_run_ranks(host, n_ranks, run_rank, &s);
    xp_train_shared_destroy(s.shared);
    found->seconds = xp_time_s() - began;
    return status;
}
