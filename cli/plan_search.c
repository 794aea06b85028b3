/* expar plan --suggest: all combinations that make sense, each at its best batch. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "ep/internal.h"
#include "parallel/run.h"
#include "plan.h"

#define MOST_BATCH 128
#define MAX_BEST   64

static const char *const transports[] = {"auto", "hierarchical"};
enum { N_TRANSPORTS = 2, N_MODES = 3 };

/* The best speed with a value of one setting, whatever the others: reasons are made of them. */
typedef struct best_with {
    int64_t value;
    double speed; /* tok/s a GPU; 0: nothing fits */
} best_with;

typedef struct search {
    plan *p;
    const plan_lists *lists;
    plan_row *rows; /* best first */
    int n_rows, n_most;
    best_with eps[CLI_LIST_MAX], modes[N_MODES], overlaps[2];
    int n_eps;
    int64_t largest;            /* batch of the last combination: neighbours differ little */
    char no_run[PLAN_MAX_TEXT]; /* why the first combination that is no run is none */
    bool has_run;
} search;

static void note(best_with *entry, double speed) {
    if (speed > entry->speed)
        entry->speed = speed;
}

static best_with *entry_of(search *s, int64_t ep) {
    for (int i = 0; i < s->n_eps; i++)
        if (s->eps[i].value == ep)
            return &s->eps[i];
    if (s->n_eps < CLI_LIST_MAX)
        s->eps[s->n_eps++] = (best_with){.value = ep};
    return &s->eps[s->n_eps - 1];
}

static int mode_index(const char *mode) {
    int i = 0;
    while (plan_modes[i] != mode)
        i++;
    return i;
}

static void keep(search *s, const plan_row *r) {
    const double speed = plan_tokens_per_s_gpu(r);
    note(entry_of(s, r->setting.ep), speed);
    note(&s->modes[mode_index(r->setting.mode)], speed);
    note(&s->overlaps[r->setting.overlap], speed);
    int at = s->n_rows;
    while (at > 0 && plan_tokens_per_s_gpu(&s->rows[at - 1]) < speed)
        at--;
    if (at == s->n_most)
        return;
    const int last = s->n_rows < s->n_most ? s->n_rows++ : s->n_most - 1;
    memmove(&s->rows[at + 1], &s->rows[at], (size_t)(last - at) * sizeof s->rows[0]);
    s->rows[at] = *r;
}

/* Of the batches that fit: memory grows with the batch, so the largest bounds them. */
static void try_batches(search *s, const xp_mesh *layout, plan_row *r) {
    plan *p = s->p;
    const cli_int_list *listed = &s->lists->batches;
    int64_t most = MOST_BATCH;
    if (listed->n > 0) {
        most = 1;
        for (int i = 0; i < listed->n; i++)
            most = listed->values[i] > most ? listed->values[i] : most;
    }
    const int64_t largest = plan_largest_batch(p, layout, most, s->largest, &r->memory);
    s->largest = largest;
    int64_t best = 0;
    xp_step_prediction step = {0};
    for (int64_t i = 0; i < (listed->n > 0 ? listed->n : largest); i++) {
        const int64_t batch = listed->n > 0 ? listed->values[i] : i + 1;
        xp_step_prediction now;
        r->setting.batch = batch;
        if (batch > largest || plan_apply(p, &r->setting) != XP_OK ||
            xp_predict_step(p->config, layout, &p->cluster, &now) != XP_OK)
            continue;
        if (best == 0 || now.tokens / now.step_s > step.tokens / step.step_s) {
            best = batch;
            step = now;
        }
    }
    if (best == 0 || (best != largest && plan_memory_at(p, layout, best, &r->memory) != XP_OK))
        return;
    r->setting.batch = best;
    r->step = step;
    r->is_run = r->fits = r->has_speed = true;
    r->ep_size = layout->ep_size;
    keep(s, r);
}

static bool is_wanted(const cli_choice_list *list, int value) {
    for (int i = 0; i < list->n; i++)
        if (list->values[i] == value)
            return true;
    return list->n == 0;
}

/* Recomputation and overlap do not change the layout. */
static void try_modes(search *s, const plan_setting *setting) {
    plan *p = s->p;
    xp_mesh layout;
    for (int mode = 0; mode < N_MODES; mode++)
        for (int overlap = 0; overlap < 2; overlap++) {
            plan_row r = {.setting = *setting, .ranks = setting->nodes * p->cluster.gpus_per_node};
            r.setting.mode = plan_modes[mode];
            r.setting.overlap = overlap == 1;
            if (!is_wanted(&s->lists->modes, mode) || !is_wanted(&s->lists->overlaps, overlap) ||
                (overlap == 1 && setting->ep == 1 && s->lists->overlaps.n == 0))
                continue;
            if (plan_apply(p, &r.setting) == XP_OK && plan_check_ep(p, &r.setting) == XP_OK &&
                plan_layout(p, setting->nodes, &layout) == XP_OK) {
                s->has_run = true;
                try_batches(s, &layout, &r);
            } else if (!s->no_run[0]) {
                snprintf(s->no_run, sizeof s->no_run, "%s", xp_last_error());
            }
        }
}

static void try_transports(search *s, plan_setting *setting) {
    plan *p = s->p;
    const bool deepep = xp_run_transport(p->config, &p->arch) != XP_EP_A2A;
    const bool spans =
        setting->ep > p->cluster.gpus_per_node || p->cluster.gpus_per_node % setting->ep != 0;
    for (int i = 0; i < N_TRANSPORTS; i++) {
        setting->transport = deepep ? transports[i] : NULL;
        if (i == 0 || (deepep && spans))
            try_modes(s, setting);
    }
}

static void try_replicas(search *s, plan_setting *setting) {
    const cli_int_list *listed = &s->lists->replicas;
    for (int64_t n = 1; listed->n == 0 && n <= setting->nodes; n++)
        if (setting->nodes % n == 0) {
            setting->replicas = n;
            try_transports(s, setting);
        }
    for (int i = 0; i < listed->n; i++) {
        setting->replicas = listed->values[i];
        try_transports(s, setting);
    }
}

static void try_eps(search *s, int64_t nodes) {
    const cli_int_list *listed = &s->lists->eps;
    const int n_experts = s->p->arch.n_experts;
    plan_setting setting = plan_own_setting(s->p);
    setting.nodes = nodes;
    for (int i = 0; i < listed->n; i++) {
        setting.ep = listed->values[i];
        entry_of(s, setting.ep);
        try_replicas(s, &setting);
    }
    const int64_t ranks = nodes * s->p->cluster.gpus_per_node;
    for (int64_t ep = 1; listed->n == 0 && ep <= ranks && ep <= XP_EP_GPU_MAX_RANKS; ep++)
        if (ep == 1 || (n_experts > 0 && n_experts % ep == 0)) {
            setting.ep = ep;
            entry_of(s, ep);
            try_replicas(s, &setting);
        }
}

/* ---- reasons -------------------------------------------------------------------------------- */

static void add_alternative(xp_text *t, const char *what, double speed) {
    xp_text_printf(t, "%s%s ", t->length > 0 ? ", " : "", what);
    if (speed > 0)
        xp_text_printf(t, "%.0f", speed);
    else
        xp_text_puts(t, "does not fit");
}

/* The best of each other value of EP, recomputation and overlap, in tok/s a GPU. */
static void explain_best(const search *s, plan_row *r) {
    xp_text t = {0};
    char what[64];
    for (int i = 0; i < s->n_eps; i++)
        if (s->eps[i].value != r->setting.ep) {
            snprintf(what, sizeof what, "EP %lld", (long long)s->eps[i].value);
            add_alternative(&t, what, s->eps[i].speed);
        }
    for (int i = 0; i < N_MODES; i++)
        if (plan_modes[i] != r->setting.mode && is_wanted(&s->lists->modes, i)) {
            snprintf(what, sizeof what, "recomputation %s", plan_modes[i]);
            add_alternative(&t, what, s->modes[i].speed);
        }
    if (s->overlaps[!r->setting.overlap].speed > 0)
        add_alternative(&t, r->setting.overlap ? "without overlap" : "with overlap",
                        s->overlaps[!r->setting.overlap].speed);
    if (t.length > 0 && !t.failed)
        snprintf(r->reason, sizeof r->reason, "at their best, tok/s a %s: %s", plan_unit(s->p),
                 t.data);
    else
        snprintf(r->reason, sizeof r->reason, "the best of all");
    xp_text_free(&t);
}

static void add_difference(xp_text *t, const char *what) {
    xp_text_printf(t, "%s%s", t->length > 0 ? ", " : "", what);
}

/* How a row differs from the best. */
static void explain_other(const plan_row *best, plan_row *r) {
    const plan_setting *a = &best->setting, *b = &r->setting;
    xp_text t = {0};
    char what[80];
    if (a->nodes != b->nodes) {
        snprintf(what, sizeof what, "%lld nodes", (long long)b->nodes);
        add_difference(&t, what);
    }
    if (a->ep != b->ep) {
        snprintf(what, sizeof what, "EP %lld", (long long)b->ep);
        add_difference(&t, what);
    }
    if (a->mode != b->mode) {
        snprintf(what, sizeof what, "recomputation %s", b->mode);
        add_difference(&t, what);
    }
    if (a->overlap != b->overlap)
        add_difference(&t, b->overlap ? "overlap" : "no overlap");
    if (a->replicas != b->replicas) {
        snprintf(what, sizeof what, "%lld replicas", (long long)b->replicas);
        add_difference(&t, what);
    }
    if (a->batch != b->batch) {
        snprintf(what, sizeof what, "batch %lld", (long long)b->batch);
        add_difference(&t, what);
    }
    if (a->transport != b->transport && b->transport)
        add_difference(&t, b->transport);
    const double percent = 100 * (plan_tokens_per_s_gpu(r) / plan_tokens_per_s_gpu(best) - 1);
    const char *other = t.length > 0 && !t.failed ? t.data : "the same settings";
    if (fabs(percent) < 0.05)
        snprintf(r->reason, sizeof r->reason, "as fast with %s", other);
    else
        snprintf(r->reason, sizeof r->reason, "%+.1f %% with %s", percent, other);
    xp_text_free(&t);
}

xp_status plan_search(plan *p, const plan_lists *lists, int n_most, plan_row *rows, int *n) {
    search s = {.p = p, .lists = lists, .rows = rows, .n_most = n_most};
    const plan_setting own = plan_own_setting(p);
    for (int i = 0; i < lists->nodes.n; i++)
        try_eps(&s, lists->nodes.values[i]);
    XP_TRY(plan_apply(p, &own));
    for (int i = 0; i < s.n_rows; i++) {
        if (i == 0)
            explain_best(&s, &rows[i]);
        else
            explain_other(&rows[0], &rows[i]);
    }
    if (!s.has_run)
        snprintf(rows[0].error, sizeof rows[0].error, "%s", s.no_run);
    *n = s.n_rows;
    return XP_OK;
}
