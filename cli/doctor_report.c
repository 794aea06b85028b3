#include "doctor.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define WIDTH 110 /* of the screen, as far as words allow */
#define LEFT  30  /* where texts begin */

void doctor_begin_section(doctor *d, const char *name) {
    d->section = name;
    if (!d->json)
        printf("\n%s\n", name);
}

/* Text from column LEFT on; the cursor is there. Lines break at spaces. */
static void print_wrapped(const char *text) {
    int column = LEFT;
    while (*text) {
        const int n = (int)strcspn(text, " ");
        if (column > LEFT && column + 1 + n > WIDTH) {
            printf("\n%*s", LEFT, "");
            column = LEFT;
        } else if (column > LEFT) {
            putchar(' ');
            column++;
        }
        printf("%.*s", n, text);
        column += n;
        text += n;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_line(doctor_finding state, const char *name, const char *advice,
                       const char *text) {
    static const char *const words[] = {"yes", "no", "NO"};
    char remedy[1200];
    printf("  %-4s %-22s ", words[state], name);
    print_wrapped(text);
    if (state == FOUND || !advice)
        return;
    snprintf(remedy, sizeof remedy, "-> %s", advice);
    printf("%*s", LEFT, "");
    print_wrapped(remedy);
}

void doctor_report(doctor *d, doctor_finding state, const char *name, const char *advice,
                   const char *format, ...) {
    char text[1200];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    d->n_broken += state == BROKEN;
    if (!d->json) {
        print_line(state, name, advice, text);
        return;
    }
    xp_text_printf(&d->out, "%s\n  {\"section\": \"%s\", \"name\": \"%s\", \"ok\": %s, ",
                   d->out.length > 1 ? "," : "", d->section, name,
                   state == FOUND ? "true" : "false");
    xp_text_printf(&d->out, "\"needed\": %s, \"text\": ", state == BROKEN ? "true" : "false");
    xp_text_add_json(&d->out, text, strlen(text));
    if (state != FOUND && advice) {
        xp_text_puts(&d->out, ", \"advice\": ");
        xp_text_add_json(&d->out, advice, strlen(advice));
    }
    xp_text_puts(&d->out, "}");
}

void doctor_add_line(const doctor *d, const char *format, ...) {
    va_list args;
    if (d->json)
        return;
    printf("%*s", LEFT, "");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}
