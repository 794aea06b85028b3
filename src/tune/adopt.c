#include "tune/adopt.h"

#include <stdio.h>
#include <string.h>
#include "config/tuned.h"
#include "core/error.h"
#include "tune/tuned_for.h"

typedef enum action { NOTHING = 0, TAKE, DROP_OWN, SAY } action;

/* Plain data: rank 0's goes to all. */
typedef struct decision {
    action action;
    bool warns;
    char text[2048];
    xp_tuned tuned;
} decision;

static const char *config_name(const xp_config_set *set) {
    const char *file = xp_config_get(set)->job.config_file;
    return file && file[0] ? file : "CONFIG";
}

/* The configuration carries tuned values itself: a saved config.toml of a tuned run, or a pasted section. */
static void judge_own(const xp_config_set *set, const char *own, const char *where,
                      const char *here, decision *d) {
    char was[256], is[256];
    if (xp_tuned_for_equal(own, here, was, is, sizeof was)) {
        *d = (decision){.action = SAY};
        snprintf(d->text, sizeof d->text, "[deepep] of %s fits this machine and model", where);
        return;
    }
    *d = (decision){.action = DROP_OWN, .warns = true};
    snprintf(d->text, sizeof d->text,
             "deepep.tuned_for (%s): measured for \"%s\", this run has \"%s\": the defaults are "
             "used; remove tuned_for to keep the values beside it, or run `expar tune %s`",
             where, was, is, config_name(set));
}

static void judge_file(const xp_config_set *set, const char *here, decision *d) {
    char was[256], is[256];
    if (xp_tuned_for_equal(d->tuned.tuned_for, here, was, is, sizeof was)) {
        d->action = TAKE;
        return;
    }
    d->action = SAY;
    d->warns = true;
    snprintf(d->text, sizeof d->text,
             "%s was measured for \"%s\", this run has \"%s\": the defaults are used; `expar tune "
             "%s` measures again",
             d->tuned.path, was, is, config_name(set));
}

static xp_status decide(const xp_config_set *set, const xp_adopt_args *args, decision *d) {
    const xp_config *config = xp_config_get(set);
    char path[1024], here[XP_TUNED_FOR_MAX], where[1100];
    xp_tune_facts facts;
    bool named;
    *d = (decision){.action = NOTHING};
    XP_TRY(xp_config_tuned_path(set, path, sizeof path, &named));
    const char *own = xp_config_own_tuned_for(set, where, sizeof where);
    if (config->parallelism.expert_parallel_degree == 1 || (!own && !path[0]))
        return XP_OK; /* nothing is dispatched, or nothing was tuned */
    XP_TRY(xp_tune_facts_of(config, args->n_ranks, args->world != NULL, args->n_cores, &facts));
    xp_tuned_for_print(&facts, here, sizeof here);
    if (own) {
        judge_own(set, own, where, here, d);
        return XP_OK;
    }
    const xp_status status = xp_tuned_read(path, &d->tuned);
    if (status == XP_OK) {
        judge_file(set, here, d);
        return XP_OK;
    }
    if (named) {
        snprintf(d->text, sizeof d->text, "%s", xp_last_error());
        return xp_error(status == XP_ENOENT ? XP_ECONFIG : status, "deepep.tuned_file: %s",
                        d->text);
    }
    if (status == XP_ENOENT) {
        xp_error_clear();
        return XP_OK;
    }
    d->action = SAY;
    d->warns = true;
    snprintf(d->text, sizeof d->text,
             "%s: the defaults are used; remove the file, or run `expar tune %s`", xp_last_error(),
             config_name(set));
    xp_error_clear();
    return XP_OK;
}

static xp_status take(xp_config_set *set, const decision *d) {
    const xp_tuned *tuned = &d->tuned;
    char text[1400];
    int n_taken;
    XP_TRY(xp_config_take_tuned(set, tuned, &n_taken));
    const xp_config *c = xp_config_get(set);
    const int n_values = (tuned->transport[0] != '\0') + (tuned->num_sms > 0);
    int n = snprintf(text, sizeof text, "%s fits this machine and model", tuned->path);
    if (n_values == 0)
        snprintf(text + n, sizeof text - (size_t)n, ": the defaults are the fastest that it found");
    else if (n_taken == 0)
        snprintf(text + n, sizeof text - (size_t)n, ", but [deepep] is set already");
    else if (c->deepep.num_sms > 0)
        snprintf(text + n, sizeof text - (size_t)n, ": deepep.transport %s, deepep.num_sms %lld%s",
                 c->deepep.transport, (long long)c->deepep.num_sms,
                 n_taken < n_values ? " (one of them is the user's)" : "");
    else
        snprintf(text + n, sizeof text - (size_t)n, ": deepep.transport %s", c->deepep.transport);
    return xp_config_set_tuned_note(set, text, false);
}

static xp_status apply(xp_config_set *set, const decision *d) {
    if (d->action == NOTHING)
        return XP_OK;
    if (d->action == TAKE)
        return take(set, d);
    if (d->action == DROP_OWN)
        XP_TRY(xp_config_drop_tuned(set));
    return xp_config_set_tuned_note(set, d->text, d->warns);
}

xp_status xp_tune_adopt(xp_config_set *set, const xp_adopt_args *args) {
    decision d = {.action = NOTHING};
    if (!args->world || xp_comm_rank(args->world) == 0)
        XP_TRY(decide(set, args, &d));
    if (args->world) {
        xp_comm_set_phase(args->world, "looking for tuned settings");
        XP_TRY(xp_comm_broadcast(args->world, &d, sizeof d, 0, NULL));
    }
    XP_TRY(apply(set, &d));
    return xp_tune_adopt_gemms(set, args);
}
