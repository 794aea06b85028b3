/* The GEMM half of what `expar tune` says and writes. */
#include <stdio.h>
#include <string.h>
#include "tune_print.h"

static double us(double seconds) {
    return 1e6 * seconds;
}

void tune_print_gemms(const xp_tune_gemms *gemms) {
    double before = 0, after = 0;
    int n_other = 0;
    char text[XP_GEMM_CHOICE_TEXT];
    if (gemms->n == 0) {
        printf("GEMMs: not timed, since ranks share a GPU\n");
        return;
    }
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
        n_other += c->index > 0;
    }
    printf("GEMMs: for %d of %d shapes another algorithm is faster; once each: %.0f us instead of "
           "%.0f (%.1f s)\n",
           n_other, gemms->n, us(after), us(before), gemms->seconds);
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
    xp_text_puts(t, "]}");
}

void tune_add_gemms_toml(xp_text *t, const tune_result *r) {
    char text[XP_GEMM_CHOICE_TEXT];
    int n = 0;
    for (int i = 0; r->gemms && i < r->gemms->n; i++)
        n += r->gemms->shapes[i].index > 0;
    if (n == 0)
        return;
    xp_text_puts(t, "\n# Dense GEMMs of a step that another deterministic algorithm of the library "
                    "than its first computes faster.\n[gemm]\ntuned_for = ");
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
