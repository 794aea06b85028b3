/* The GEMM algorithms of a tuned file, where GPU and library are those that it was measured on. */
#include <stdio.h>
#include <string.h>
#include "config/tuned.h"
#include "core/error.h"
#include "parallel/run.h"
#include "tune/adopt.h"
#include "tune/tuned_for.h"

typedef enum action { NOTHING = 0, TAKE, KEEP_OWN, DROP_OWN, WARN } action;

/* Plain data: rank 0's goes to all. */
typedef struct decision {
    action action;
    char text[2048];
    xp_tuned tuned;
} decision;

static void judge(const char *tuned_for, const char *here, const char *where, action fits,
                  action fits_not, decision *d) {
    char was[256], is[256];
    if (xp_tuned_for_equal(tuned_for, here, was, is, sizeof was)) {
        d->action = fits;
        snprintf(d->text, sizeof d->text, "[gemm] of %s fits this GPU and library", where);
        return;
    }
    d->action = fits_not;
    snprintf(d->text, sizeof d->text,
             "[gemm] of %s was measured for \"%s\", this run has \"%s\": the library's own "
             "algorithms are used; `expar tune` measures again",
             where, was, is);
}

static xp_status decide(const xp_config_set *set, const xp_adopt_args *args, decision *d) {
    char path[1024], here[XP_TUNED_FOR_MAX], where[1100];
    xp_tune_facts facts;
    bool named;
    XP_TRY(xp_config_tuned_path(set, path, sizeof path, &named));
    const char *own = xp_config_own_gemm_tuned_for(set, where, sizeof where);
    if (xp_run_device_kind(xp_config_get(set)) != XP_DEVICE_CUDA || (!own && !path[0]))
        return XP_OK;
    XP_TRY(xp_tune_facts_of(xp_config_get(set), args->n_ranks, args->world != NULL, args->n_cores,
                            &facts));
    xp_gemm_tuned_for_print(&facts, here, sizeof here);
    if (own) {
        judge(own, here, where, KEEP_OWN, DROP_OWN, d);
        return XP_OK;
    }
    const xp_status status = xp_tuned_read(path, &d->tuned);
    if (status == XP_OK) {
        if (d->tuned.gemms[0])
            judge(d->tuned.gemm_for, here, d->tuned.path, TAKE, WARN, d);
        return XP_OK;
    }
    if (named) {
        snprintf(d->text, sizeof d->text, "%s", xp_last_error());
        return xp_error(status == XP_ENOENT ? XP_ECONFIG : status, "deepep.tuned_file: %s",
                        d->text);
    }
    if (status != XP_ENOENT && xp_config_get(set)->parallelism.expert_parallel_degree == 1) {
        d->action = WARN; /* with more the first half has said so */
        snprintf(d->text, sizeof d->text,
                 "%s: the defaults are used; remove the file, or run `expar tune` again",
                 xp_last_error());
    }
    xp_error_clear();
    return XP_OK;
}

/* One line tells of everything that was tuned. */
static xp_status add_note(xp_config_set *set, const char *text) {
    char both[4096];
    const char *before = xp_config_tuned_note(set);
    snprintf(both, sizeof both, "%s%s%s", before ? before : "", before ? "; " : "", text);
    return xp_config_set_tuned_note(set, both, false);
}

static xp_status apply(xp_config_set *set, decision *d) {
    bool taken = true;
    switch (d->action) {
    case NOTHING:
        return XP_OK;
    case TAKE:
        XP_TRY(xp_config_take_tuned_gemms(set, &d->tuned, &taken));
        break;
    case KEEP_OWN:
        break;
    case DROP_OWN:
        XP_TRY(xp_config_drop_tuned_gemms(set));
        return xp_config_set_tuned_note(set, d->text, true);
    case WARN:
        return xp_config_set_tuned_note(set, d->text, true);
    }
    const size_t length = strlen(d->text);
    const int n = xp_config_get(set)->gemm.algorithms.n;
    if (taken)
        snprintf(d->text + length, sizeof d->text - length, ": algorithms of %d GEMM shape%s", n,
                 n == 1 ? "" : "s");
    else
        snprintf(d->text + length, sizeof d->text - length, ", but gemm.algorithms is set already");
    return add_note(set, d->text);
}

xp_status xp_tune_adopt_gemms(xp_config_set *set, const xp_adopt_args *args) {
    decision d = {.action = NOTHING};
    if (!args->world || xp_comm_rank(args->world) == 0)
        XP_TRY(decide(set, args, &d));
    if (args->world)
        XP_TRY(xp_comm_broadcast(args->world, &d, sizeof d, 0, NULL));
    return apply(set, &d);
}
