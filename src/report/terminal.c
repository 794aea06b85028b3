#include "report/terminal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "report/data.h"

#define LABEL_COLUMNS 10 /* numbers left of a curve */
#define MIN_COLUMNS   30
#define MAX_COLUMNS   400
#define MAX_ROWS      12

/* ---- numbers ----------------------------------------------------------------------------- */

static void format_number(double value, char out[32]) {
    static const struct {
        double unit;
        const char *name;
    } units[] = {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "k"}};
    const double size = fabs(value);
    if (!isfinite(value)) {
        snprintf(out, 32, "-");
        return;
    }
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (size < (units[i].unit > 1e3 ? units[i].unit : 1e4))
            continue;
        snprintf(out, 32, "%.4g%s", value / units[i].unit, units[i].name);
        return;
    }
    snprintf(out, 32, size > 0 && size < 1e-3 ? "%.1e" : "%.4g", value);
}

/* ---- one curve --------------------------------------------------------------------------- */

typedef struct curve {
    const char *title, *unit;
    xp_report_column column, second; /* second: XP_N_COLUMNS for none */
    int rows;
    bool zero_is_off; /* not drawn when it never is above 0 */
} curve;

static const curve curves[] = {
    {"loss", "", XP_COLUMN_LOSS, XP_COLUMN_VALIDATION_LOSS, 10, false},
    {"gradient norm", "", XP_COLUMN_GRAD_NORM, XP_N_COLUMNS, 5, false},
    {"learning rate", "", XP_COLUMN_LR, XP_N_COLUMNS, 4, false},
    {"tokens per second of a rank", "", XP_COLUMN_TPS, XP_N_COLUMNS, 5, false},
    {"MFU", "%", XP_COLUMN_MFU, XP_N_COLUMNS, 4, false},
    {"memory, peak so far", " GiB", XP_COLUMN_MEMORY_GIB, XP_N_COLUMNS, 3, false},
    {"time of a step", " s", XP_COLUMN_TIME, XP_N_COLUMNS, 4, false},
    {"expert-parallel bytes of a step", "", XP_COLUMN_EP_BYTES, XP_N_COLUMNS, 4, true},
    {"waiting for peers", " s", XP_COLUMN_EP_WAIT, XP_N_COLUMNS, 4, true},
};

/* Dots: two columns and four rows in a character of Braille, one of each in ASCII. */
typedef struct canvas {
    int columns, rows;                          /* characters */
    int dots_x, dots_y;                         /* of a character */
    unsigned char cells[MAX_ROWS][MAX_COLUMNS]; /* dots, or which curve */
    unsigned char marks[MAX_COLUMNS];           /* a restart */
} canvas;

static void set_dot(canvas *c, int x, int y, int curve_number) {
    static const unsigned char braille[4][2] = {
        {0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    unsigned char *cell = &c->cells[y / c->dots_y][x / c->dots_x];
    if (c->dots_x == 2)
        *cell |= braille[y % 4][x % 2];
    else
        *cell = (unsigned char)curve_number;
}

static int dot_row(const canvas *c, double value, double low, double high) {
    const int last = c->rows * c->dots_y - 1;
    const double from_top = (high / 2 - value / 2) / (high / 2 - low / 2) * last; /* no overflow */
    return from_top > 0 ? from_top < last ? (int)(from_top + 0.5) : last : 0;
}

/* The steps of one column of dots, as a line from the smallest to the largest. Steps share the width evenly. */
static void draw_curve(canvas *c, const double *values, int64_t n, double low, double high,
                       int curve_number) {
    const int width = c->columns * c->dots_x;
    double before = NAN;
    for (int x = 0; x < width; x++) {
        const int64_t from = n * x / width, to = n * (x + 1) / width;
        if (to == from && n >= width)
            continue;
        const xp_report_range range = xp_report_range_of(values, from, to > from ? to : from + 1);
        if (!isfinite(range.mean))
            continue;
        int top = dot_row(c, range.high, low, high), bottom = dot_row(c, range.low, low, high);
        if (isfinite(before) && curve_number == 1) { /* joined to what stands left of it */
            const int left = dot_row(c, before, low, high);
            top = left < top - 1 ? left + 1 : top;
            bottom = left > bottom + 1 ? left - 1 : bottom;
        }
        for (int y = top; y <= bottom; y++)
            set_dot(c, x, y, curve_number);
        before = range.mean;
    }
}

static void put_cell(const canvas *c, int row, int column, xp_text *out) {
    const unsigned char cell = c->cells[row][column];
    char utf8[4];
    if (cell == 0)
        xp_text_puts(out, c->marks[column] ? (c->dots_x == 2 ? "\xe2\x94\x8a" : ":") : " ");
    else if (c->dots_x == 2)
        xp_text_add(out, utf8, (size_t)xp_utf8_encode(0x2800U + cell, utf8));
    else
        xp_text_puts(out, cell == 2 ? "o" : "*");
}

static void put_canvas(const canvas *c, double low, double high, const xp_report_terminal *t,
                       xp_text *out) {
    char number[32];
    for (int row = 0; row < c->rows; row++) {
        number[0] = '\0';
        if (row == 0 || row == c->rows - 1)
            format_number(row == 0 ? high : low, number);
        xp_text_printf(out, "%*s %s", LABEL_COLUMNS - 2, number, t->utf8 ? "\xe2\x94\x82" : "|");
        if (t->color)
            xp_text_puts(out, "\033[34m");
        int used = c->columns;
        while (used > 0 && c->cells[row][used - 1] == 0 && !c->marks[used - 1])
            used--;
        for (int column = 0; column < used; column++)
            put_cell(c, row, column, out);
        xp_text_puts(out, t->color ? "\033[0m\n" : "\n");
    }
}

static void mark_restarts(canvas *c, const xp_report_run *run) {
    for (int64_t i = 0; i < run->n_steps; i++)
        if (run->columns[XP_COLUMN_RESUMED][i] > 0)
            c->marks[i * c->columns / run->n_steps] = 1;
}

/* "loss: first 6.231, last 5.642, min 5.638 at step 58, max ..." */
static void put_title(const xp_report_run *run, const curve *drawn, const xp_report_terminal *t,
                      xp_text *out) {
    const double *values = run->columns[drawn->column], *steps = run->columns[XP_COLUMN_STEP];
    int64_t first = -1, last = -1, low = -1;
    char numbers[3][32], step[32];
    for (int64_t i = 0; i < run->n_steps; i++) {
        if (!isfinite(values[i]))
            continue;
        first = first < 0 ? i : first;
        low = low < 0 || values[i] < values[low] ? i : low;
        last = i;
    }
    format_number(values[first], numbers[0]);
    format_number(values[last], numbers[1]);
    format_number(values[low], numbers[2]);
    snprintf(step, sizeof step, "%.0f", steps[low]);
    xp_text_printf(out, "\n%s%s%s: first %s%s, last %s%s, min %s%s at step %s\n",
                   t->color ? "\033[1m" : "", drawn->title, t->color ? "\033[0m" : "", numbers[0],
                   drawn->unit, numbers[1], drawn->unit, numbers[2], drawn->unit, step);
}

static xp_report_range range_of_both(const xp_report_run *run, const curve *drawn) {
    xp_report_range range = xp_report_range_of(run->columns[drawn->column], 0, run->n_steps);
    if (drawn->second < XP_N_COLUMNS) {
        const xp_report_range second =
            xp_report_range_of(run->columns[drawn->second], 0, run->n_steps);
        range.low = fmin(range.low, second.low);
        range.high = fmax(range.high, second.high);
    }
    return range;
}

static void put_curve(const xp_report_run *run, const curve *drawn, const xp_report_terminal *t,
                      xp_text *out, canvas *c) {
    xp_report_range range = range_of_both(run, drawn);
    if (!isfinite(range.mean) || (drawn->zero_is_off && range.high <= 0))
        return;
    int columns = t->columns < MIN_COLUMNS ? MIN_COLUMNS : t->columns;
    columns = columns - LABEL_COLUMNS > MAX_COLUMNS ? MAX_COLUMNS : columns - LABEL_COLUMNS;
    memset(c, 0, sizeof *c);
    c->columns = columns;
    c->rows = drawn->rows;
    c->dots_x = t->utf8 ? 2 : 1;
    c->dots_y = t->utf8 ? 4 : 1;
    if (range.high <= range.low) { /* a flat line lies in the middle */
        range.low -= fabs(range.low) > 0 ? 0.5 * fabs(range.low) : 1;
        range.high += fabs(range.high) > 0 ? 0.5 * fabs(range.high) : 1;
    }
    mark_restarts(c, run);
    put_title(run, drawn, t, out);
    draw_curve(c, run->columns[drawn->column], run->n_steps, range.low, range.high, 1);
    if (drawn->second < XP_N_COLUMNS)
        draw_curve(c, run->columns[drawn->second], run->n_steps, range.low, range.high, 2);
    put_canvas(c, range.low, range.high, t, out);
}

/* ---- the run ----------------------------------------------------------------------------- */

static void put_axis(const xp_report_run *run, const xp_report_terminal *t, xp_text *out) {
    const double *steps = run->columns[XP_COLUMN_STEP];
    char left[32], right[48];
    int columns = t->columns < MIN_COLUMNS ? MIN_COLUMNS : t->columns;
    columns = columns > MAX_COLUMNS + LABEL_COLUMNS ? MAX_COLUMNS + LABEL_COLUMNS : columns;
    snprintf(left, sizeof left, "step %.0f", steps[0]);
    snprintf(right, sizeof right, "step %.0f", steps[run->n_steps - 1]);
    xp_text_printf(out, "%*s%s%*s\n", LABEL_COLUMNS, "", left,
                   columns - LABEL_COLUMNS - (int)strlen(left), right);
}

static void put_phases(const xp_report_run *run, xp_text *out) {
    static const struct {
        xp_report_column column;
        const char *name;
    } phases[] = {{XP_COLUMN_FORWARD_BACKWARD, "forward and backward"},
                  {XP_COLUMN_OPTIMIZER, "optimizer"},
                  {XP_COLUMN_DATA, "data wait"},
                  {XP_COLUMN_VALIDATION, "validation"},
                  {XP_COLUMN_CHECKPOINT, "checkpoint"}};
    const double n = (double)run->n_steps;
    const double all = n * xp_report_range_of(run->columns[XP_COLUMN_TIME], 0, run->n_steps).mean;
    if (!(all > 0))
        return;
    xp_text_printf(out, "\ntime: %.4g s", all);
    for (size_t i = 0; i < sizeof phases / sizeof phases[0]; i++) {
        const xp_report_range range =
            xp_report_range_of(run->columns[phases[i].column], 0, run->n_steps);
        const double share = 100 * n * range.mean / all; /* phases are in all lines or in none */
        if (share >= 0.05)
            xp_text_printf(out, ", %s %.1f%%", phases[i].name, share);
    }
    xp_text_puts(out, "\n");
}

static void put_heading(const xp_report_run *run, const xp_report_summary *s,
                        const xp_report_terminal *t, xp_text *out) {
    char tokens[32], loss[32], validation[32], step[32];
    format_number(s->tokens, tokens);
    format_number(s->last_loss, loss);
    format_number(s->validation, validation);
    xp_text_printf(out, "%s%s%s: %lld step%s, %s tokens, loss %s (mean of the last %d)",
                   t->color ? "\033[1m" : "", run->name, t->color ? "\033[0m" : "",
                   (long long)run->n_steps, run->n_steps == 1 ? "" : "s", tokens, loss,
                   run->n_steps < XP_REPORT_LAST ? (int)run->n_steps : XP_REPORT_LAST);
    if (isfinite(s->validation)) {
        snprintf(step, sizeof step, "%.0f", s->validation_step);
        xp_text_printf(out, ", best validation %s at step %s (drawn beside the loss)", validation,
                       step);
    }
    xp_text_puts(out, "\n");
    for (int64_t i = 0; i < run->n_steps; i++)
        if (run->columns[XP_COLUMN_RESUMED][i] > 0)
            xp_text_printf(out, "resumed from step %.0f\n", run->columns[XP_COLUMN_RESUMED][i]);
    if (s->n_not_finite > 0)
        xp_text_printf(out, "the loss of %lld step%s is not a finite number\n",
                       (long long)s->n_not_finite, s->n_not_finite == 1 ? "" : "s");
}

xp_status xp_report_draw(const xp_report_run *run, const xp_report_terminal *terminal,
                         xp_text *out) {
    xp_report_summary summary;
    canvas *c = malloc(sizeof *c);
    if (!c)
        return xp_error(XP_ENOMEM, "no memory for a curve");
    const xp_status status = xp_report_summarise(run, &summary);
    if (status == XP_OK) {
        put_heading(run, &summary, terminal, out);
        for (size_t i = 0; i < sizeof curves / sizeof curves[0]; i++)
            put_curve(run, &curves[i], terminal, out, c);
        put_axis(run, terminal, out);
        put_phases(run, out);
    }
    free(c);
    if (status == XP_OK && out->failed)
        return xp_error(XP_ENOMEM, "no memory for the curves");
    return status;
}
