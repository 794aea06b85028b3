/* The GEMM half of what `expar tune` says and writes. */
#include <stdio.h>
#include <string.h>
#include "tune_print.h"

static double us(double seconds) {
    return 1e6 * seconds;
}

static void print_shapes(const xp_tune_gemms *gemms) {
    double before = 0, after = 0;
    char text[XP_GEMM_CHOICE_TEXT];
    printf("\n%-40s %10s %10s %8s\n", "dense GEMM: the library's algorithms", "first, us",
           "best, us", "TFLOP/s");
    for (int i = 0; i < gemms->n; i++) {
        const xp_gemm_choice *c = &gemms->shapes[i];
        const double flops = 2 * (double)c->m * (double)c->n * (double)c->k;
        xp_gemm_choice_print(c, text);
        printf("%-40s %10.1f %10.1f %8.0f\n", text, us(c->first_s), us(c->s),
               c->s > 0 ? flops / c->s / 1e12 : 0);
        before += c->first_s;
        after += c->s;
    }
    printf("GEMMs: alone another algorithm is faster for %d of %d shapes; once each: %.0f us "
           "instead of %.0f\n",
           xp_tune_gemms_n_other(gemms), gemms->n, us(after), us(before));
}

/* Why the library's own choices stay. */
static const char *reason_of(xp_tune_verdict verdict) {
    static const char *const words[] = {[XP_TUNE_NOT_MEASURED] = "no step was measured",
                                        [XP_TUNE_FASTER] = "",
                                        [XP_TUNE_SLOWER] = "slower",
                                        [XP_TUNE_SAME] = "not faster by 1 % outside the noise",
                                        [XP_TUNE_UNCLEAR] = "too few turns to judge (--seconds)"};
    return words[verdict];
}

void tune_print_gemms(const xp_tune_gemms *gemms) {
    const xp_tune_pair *p = &gemms->pair;
    if (gemms->n == 0) {
        printf("GEMMs: not timed, since ranks share a GPU\n");
        return;
    }
    print_shapes(gemms);
    if (xp_tune_gemms_n_other(gemms) == 0) {
        printf("GEMMs: kept the library's own choices (%.1f s)\n", gemms->seconds);
        return;
    }
    printf(
        "GEMMs together: a training step takes %.3f ms with them instead of %.3f ms: %+.1f %% +- "
        "%.1f, %d pairs in turns (%.1f s)\n",
        1e3 * p->other_s, 1e3 * p->default_s, 100 * (p->ratio - 1), 50 * (p->high - p->low),
        p->n_pairs, gemms->seconds);
    if (xp_tune_gemms_won(gemms))
        printf("GEMMs: won, written as [gemm]\n");
    else
        printf("GEMMs: kept the library's own choices: %s\n", reason_of(gemms->verdict));
}

void tune_add_gemms_json(xp_text *t, const tune_result *r) {
    char text[XP_GEMM_CHOICE_TEXT];
    if (!r->gemms) {
        xp_text_puts(t, "null");
        return;
    }
    xp_text_puts(t, "{\"tuned_for\": ");
    xp_text_add_json(t, r->gemm_for, strlen(r->gemm_for));
    xp_text_printf(t, ", \"seconds\": %.1f, \"shapes\": [", r->gemms->seconds);
    for (int i = 0; i < r->gemms->n; i++) {
        const xp_gemm_choice *c = &r->gemms->shapes[i];
        xp_gemm_choice_print(c, text);
        xp_text_printf(t, "%s{\"algorithm\": \"%s\", \"first_us\": %.6g, \"us\": %.6g}",
                       i > 0 ? ",\n  " : "\n  ", text, us(c->first_s), us(c->s));
    }
    const xp_tune_pair *p = &r->gemms->pair;
    xp_text_printf(t,
                   "],\n  \"step\": {\"pairs\": %d, \"default_ms\": %.6g, \"ms\": %.6g, \"ratio\": "
                   "%.6g, \"low\": %.6g, \"high\": %.6g}, \"written\": %s}",
                   p->n_pairs, 1e3 * p->default_s, 1e3 * p->other_s, p->ratio, p->low, p->high,
                   xp_tune_gemms_won(r->gemms) ? "true" : "false");
}

void tune_add_gemms_toml(xp_text *t, const tune_result *r) {
    char text[XP_GEMM_CHOICE_TEXT];
    if (!r->gemms || !xp_tune_gemms_won(r->gemms))
        return;
    const xp_tune_pair *p = &r->gemms->pair;
    xp_text_printf(t,
                   "\n# Dense GEMMs of a step that another deterministic algorithm of the library "
                   "than its first computes faster:\n# a training step takes %.3f ms instead of "
                   "%.3f (%+.1f %% +- %.1f).\n[gemm]\ntuned_for = ",
                   1e3 * p->other_s, 1e3 * p->default_s, 100 * (p->ratio - 1),
                   50 * (p->high - p->low));
    xp_text_add_json(t, r->gemm_for, strlen(r->gemm_for));
    xp_text_puts(t, "\nalgorithms = [\n");
    for (int i = 0; i < r->gemms->n; i++) {
        const xp_gemm_choice *c = &r->gemms->shapes[i];
        xp_gemm_choice_print(c, text);
        if (c->index > 0)
            xp_text_printf(t, "    \"%s\", # %.0f us instead of %.0f\n", text, us(c->s),
                           us(c->first_s));
    }
    xp_text_puts(t, "]\n");
}
