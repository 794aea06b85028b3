#include "tune_print.h"

#include <stdio.h>
#include <string.h>
#include "expar/version.h"

static double ms(double seconds) {
    return 1e3 * seconds;
}

static double change(double ratio) {
    return 100 * (ratio - 1);
}

/* Half of what the bounds of the median are apart, in per cent. */
static double noise(const xp_tune_pair *pair) {
    return 50 * (pair->high - pair->low);
}

static const char *verdict_word(const xp_tune_candidate *c) {
    static const char *const words[] = {[XP_TUNE_NOT_MEASURED] = "not measured",
                                        [XP_TUNE_FASTER] = "faster",
                                        [XP_TUNE_SLOWER] = "slower",
                                        [XP_TUNE_SAME] = "the same",
                                        [XP_TUNE_UNCLEAR] = "too few passes to judge"};
    return words[c->verdict];
}

void tune_print_head(const xp_tune_args *args, const xp_tune_report *report) {
    const xp_tune_facts *f = args->facts;
    printf("machine: %s; %d rank%s (%s)\n", f->hardware, f->n_ranks, f->n_ranks == 1 ? "" : "s",
           f->processes ? "processes" : "threads");
    printf("layer:   D %lld, F %lld, E %d, K %d, EP %d; %s rows, %lld tokens a rank",
           (long long)f->dim, (long long)f->moe_dim, f->n_experts, f->top_k, f->ep_size,
           xp_dtype_name(f->dtype), (long long)report->n_tokens);
    if (report->n_tokens != f->tokens)
        printf(" (of a microbatch's %lld)", (long long)f->tokens);
    printf("\n");
    if (report->n > 0)
        printf(
            "measured: forward and backward of one MoE layer, in turns with the defaults; at most "
            "%.0f s\n\n%-46s %9s %9s  %s\n",
            args->seconds, "setting", "ms", "default", "against the default");
    fflush(stdout);
}

void tune_print_row(const xp_tune_candidate *c) {
    const xp_tune_pair *p = &c->pair;
    printf("%-46s %9.3f %9.3f  %+5.1f %% +- %.1f, %s%s%s%s\n", c->name, ms(p->other_s),
           ms(p->default_s), change(p->ratio), noise(p), verdict_word(c),
           c->why_not ? " (told only: " : "", c->why_not ? c->why_not : "", c->why_not ? ")" : "");
    fflush(stdout);
}

static void print_told(const xp_tune_report *report) {
    for (int i = 0; i < report->n; i++) {
        const xp_tune_candidate *c = &report->candidates[i];
        if (c->why_not && c->verdict == XP_TUNE_FASTER)
            printf("to consider: %s is %.1f %% faster; not written, since %s\n", c->name,
                   -change(c->pair.ratio), c->why_not);
        if (c->verdict == XP_TUNE_NOT_MEASURED)
            printf("not measured, no time left: %s (--seconds)\n", c->name);
    }
}

static const xp_tune_candidate *winner_of(const xp_tune_report *report) {
    return report->winner == XP_TUNE_DEFAULT ? NULL : &report->candidates[report->winner];
}

/* What is set by hand stays, whatever the file says. What was found, as the file says it: transport, num_sms. */
static void print_explicit(const tune_result *r) {
    const xp_config *c = r->args->config;
    const xp_tune_candidate *won = winner_of(r->report);
    const char *transport = won && won->setting.transport == XP_EP_A2A ? "a2a" : "auto";
    const int num_sms = won ? won->setting.num_sms : 0;
    char sms[32] = "";
    if (r->report->n == 0) /* nothing was measured or written */
        return;
    const bool by_hand =
        strcmp(c->deepep.transport, "auto") != 0 && strcmp(c->deepep.transport, transport) != 0;
    const bool has_sms = c->deepep.num_sms > 0 && c->deepep.num_sms != num_sms;
    if (has_sms)
        snprintf(sms, sizeof sms, "deepep.num_sms %lld", (long long)c->deepep.num_sms);
    if (by_hand || has_sms)
        printf("note: %s%s%s%s %s set by hand: `expar train` keeps that; leave it out to use %s\n",
               by_hand ? "deepep.transport " : "", by_hand ? c->deepep.transport : "",
               by_hand && has_sms ? " and " : "", sms, by_hand && has_sms ? "are" : "is",
               won ? "what was found here" : "the defaults, which were kept here");
}

void tune_print_verdict(const tune_result *r) {
    const xp_tune_report *report = r->report;
    const xp_tune_pair *p = &report->pair;
    printf("\n");
    if (report->n == 0)
        printf("kept: the defaults. With parallelism.expert_parallel_degree 1 no row is "
               "dispatched: there is nothing to choose%s\n",
               r->path ? "" : ", and nothing is written");
    else if (report->winner != XP_TUNE_DEFAULT)
        printf("won: %s, %.3f ms against %.3f ms by default: %.1f %% faster (+- %.1f, %d pairs in "
               "turns)\n",
               report->candidates[report->winner].name, ms(p->other_s), ms(p->default_s),
               -change(p->ratio), noise(p), p->n_pairs);
    else if (report->has_pair)
        printf("kept: the defaults. %s was ahead, but measured again it is within the noise: %+.1f "
               "%% +- %.1f (%d pairs in turns)\n",
               report->candidates[report->best].name, change(p->ratio), noise(p), p->n_pairs);
    else
        printf("kept: the defaults. Nothing that may be written is faster by %.0f %% or more\n",
               100 * XP_TUNE_LEAST_GAIN);
    print_told(report);
    if (r->gemms)
        tune_print_gemms(r->gemms);
    print_explicit(r);
}

/* ---- JSON -------------------------------------------------------------------------------- */

static void add_pair(xp_text *t, const xp_tune_pair *p) {
    xp_text_printf(t,
                   "{\"pairs\": %d, \"default_ms\": %.6g, \"ms\": %.6g, \"ratio\": %.6g, \"low\": "
                   "%.6g, \"high\": %.6g}",
                   p->n_pairs, ms(p->default_s), ms(p->other_s), p->ratio, p->low, p->high);
}

static void add_candidate(xp_text *t, const xp_tune_candidate *c) {
    xp_text_puts(t, "{\"name\": ");
    xp_text_add_json(t, c->name, strlen(c->name));
    const char *same = c->same_bits ? "true" : "false"; /* same_bits is the old name */
    xp_text_printf(
        t, ", \"verdict\": \"%s\", \"same_out_and_dx\": %s, \"same_bits\": %s, \"why_not\": ",
        verdict_word(c), c->verdict == XP_TUNE_NOT_MEASURED ? "null" : same, same);
    if (c->why_not)
        xp_text_add_json(t, c->why_not, strlen(c->why_not));
    else
        xp_text_puts(t, "null");
    xp_text_puts(t, ", \"pair\": ");
    add_pair(t, &c->pair);
    xp_text_puts(t, "}");
}

static void add_name(xp_text *t, const xp_tune_report *report, int i) {
    if (i == XP_TUNE_DEFAULT)
        xp_text_puts(t, "null");
    else
        xp_text_add_json(t, report->candidates[i].name, strlen(report->candidates[i].name));
}

void tune_add_json(xp_text *t, const tune_result *r) {
    const xp_tune_report *report = r->report;
    xp_text_puts(t, "{\"tuned_for\": ");
    xp_text_add_json(t, r->tuned_for, strlen(r->tuned_for));
    xp_text_printf(t, ", \"tokens\": %lld, \"seconds\": %.1f,\n \"candidates\": [",
                   (long long)report->n_tokens, report->seconds);
    for (int i = 0; i < report->n; i++) {
        xp_text_puts(t, i > 0 ? ",\n  " : "\n  ");
        add_candidate(t, &report->candidates[i]);
    }
    xp_text_puts(t, "],\n \"best\": ");
    add_name(t, report, report->best);
    xp_text_puts(t, ", \"pair\": ");
    if (report->has_pair)
        add_pair(t, &report->pair);
    else
        xp_text_puts(t, "null");
    xp_text_puts(t, ", \"gemms\": ");
    tune_add_gemms_json(t, r);
    xp_text_puts(t, ", \"winner\": ");
    add_name(t, report, report->winner);
    xp_text_puts(t, ", \"file\": ");
    if (r->path)
        xp_text_add_json(t, r->path, strlen(r->path));
    else
        xp_text_puts(t, "null");
    xp_text_puts(t, "}\n");
}

/* ---- the tuned file ---------------------------------------------------------------------- */

void tune_add_toml(xp_text *t, const tune_result *r) {
    const xp_tune_report *report = r->report;
    const xp_tune_candidate *won = winner_of(report);
    xp_text_puts(t, TUNE_FILE_START
                 ". `expar train` takes these values where tuned_for fits "
                 "the machine and the model.\n"
                 "# A MoE layer, forward and backward, each setting in turns with the "
                 "defaults:\n");
    for (int i = 0; i < report->n; i++) {
        const xp_tune_candidate *c = &report->candidates[i];
        if (c->verdict != XP_TUNE_NOT_MEASURED)
            xp_text_printf(t, "#   %-46s %9.3f ms, %9.3f by default (%+.1f %% +- %.1f)%s\n",
                           c->name, ms(c->pair.other_s), ms(c->pair.default_s),
                           change(c->pair.ratio), noise(&c->pair), c->why_not ? ", told only" : "");
    }
    if (report->has_pair)
        xp_text_printf(t, "# The best again, both ways round: %+.1f %% +- %.1f.\n",
                       change(report->pair.ratio), noise(&report->pair));
    xp_text_puts(t, won ? "\n" : "# The defaults are kept.\n\n");
    xp_text_puts(t, "[deepep]\ntuned_for = ");
    xp_text_add_json(t, r->tuned_for, strlen(r->tuned_for));
    xp_text_puts(t, "\n");
    if (won && won->setting.transport == XP_EP_A2A && r->args->facts->deepep)
        xp_text_puts(t, "transport = \"a2a\"\n");
    if (won && won->setting.num_sms > 0)
        xp_text_printf(t, "num_sms = %d\n", won->setting.num_sms);
    tune_add_gemms_toml(t, r);
}
