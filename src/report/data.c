#include "report/data.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- numbers ----------------------------------------------------------------------------- */

static void put_number(xp_text *out, double value, int digits) {
    char text[40];
    if (!isfinite(value)) {
        xp_text_add(out, "null", 4);
        return;
    }
    const int n = snprintf(text, sizeof text, "%.*g", digits, value);
    xp_text_add(out, text, (size_t)n);
}

static void put_key(xp_text *out, const char *before, const char *key) {
    xp_text_puts(out, before);
    xp_text_add_json(out, key, strlen(key));
    xp_text_puts(out, ":");
}

static void put_value(xp_text *out, const char *key, double value) {
    put_key(out, ",", key);
    put_number(out, value, 15);
}

static void put_string(xp_text *out, const char *before, const char *key, const char *value) {
    put_key(out, before, key);
    xp_text_add_json(out, value, strlen(value));
}

/* ---- points ------------------------------------------------------------------------------ */

typedef enum part { PART_MEAN, PART_LOW, PART_HIGH, PART_LAST } part;

static double part_of(const double *values, int64_t from, int64_t to, part which) {
    if (which == PART_LAST)
        return values[to - 1];
    const xp_report_range range = xp_report_range_of(values, from, to);
    return which == PART_LOW ? range.low : which == PART_HIGH ? range.high : range.mean;
}

static void put_points(xp_text *out, const char *key, const xp_report_run *run,
                       xp_report_column column, int64_t bucket, part which) {
    const int digits = which == PART_LAST ? 15 : 6;
    put_key(out, ",", key);
    xp_text_puts(out, "[");
    for (int64_t from = 0; from < run->n_steps; from += bucket) {
        const int64_t to = from + bucket < run->n_steps ? from + bucket : run->n_steps;
        if (from > 0)
            xp_text_add(out, ",", 1);
        put_number(out, part_of(run->columns[column], from, to, which), digits);
    }
    xp_text_puts(out, "]");
}

/* What is drawn against the steps; those whose spikes matter keep their range. */
static const struct {
    xp_report_column column;
    bool range;
} drawn[] = {
    {XP_COLUMN_LOSS, true},        {XP_COLUMN_GRAD_NORM, true},
    {XP_COLUMN_LR, false},         {XP_COLUMN_AUX_LOSS, false},
    {XP_COLUMN_Z_LOSS, false},     {XP_COLUMN_MEMORY_GIB, false},
    {XP_COLUMN_TPS, true},         {XP_COLUMN_TFLOPS, false},
    {XP_COLUMN_MFU, true},         {XP_COLUMN_TIME, true},
    {XP_COLUMN_DATA, false},       {XP_COLUMN_FORWARD_BACKWARD, false},
    {XP_COLUMN_OPTIMIZER, false},  {XP_COLUMN_CHECKPOINT, false},
    {XP_COLUMN_VALIDATION, false}, {XP_COLUMN_EP_BYTES, false},
    {XP_COLUMN_EP_OVERFLOW, true}, {XP_COLUMN_EP_WAIT, true},
    {XP_COLUMN_RECOMPUTED, true},
};

static void put_series(xp_text *out, const xp_report_run *run, int64_t bucket) {
    char key[64];
    xp_text_puts(out, ",\"series\":{\"\":0");
    for (size_t i = 0; i < sizeof drawn / sizeof drawn[0]; i++) {
        const xp_report_column column = drawn[i].column;
        if (isnan(xp_report_range_of(run->columns[column], 0, run->n_steps).mean))
            continue;
        put_points(out, xp_report_column_key(column), run, column, bucket, PART_MEAN);
        if (!drawn[i].range || bucket == 1)
            continue;
        snprintf(key, sizeof key, "%s.low", xp_report_column_key(column));
        put_points(out, key, run, column, bucket, PART_LOW);
        snprintf(key, sizeof key, "%s.high", xp_report_column_key(column));
        put_points(out, key, run, column, bucket, PART_HIGH);
    }
    xp_text_puts(out, "}");
}

/* The rows in which a column has a number, with where they lie on every axis; every n-th of very
 * many. */
static void put_events(xp_text *out, const char *key, const xp_report_run *run,
                       xp_report_column column) {
    int64_t n = 0, nth = 0;
    for (int64_t i = 0; i < run->n_steps; i++)
        n += isfinite(run->columns[column][i]);
    const int64_t every = xp_report_bucket(n, XP_REPORT_MAX_POINTS);
    bool first = true;
    put_key(out, ",", key);
    xp_text_puts(out, "[");
    for (int64_t i = 0; i < run->n_steps; i++) {
        if (!isfinite(run->columns[column][i]) || nth++ % every != 0)
            continue;
        xp_text_puts(out, first ? "[" : ",[");
        put_number(out, run->columns[XP_COLUMN_STEP][i], 15);
        xp_text_puts(out, ",");
        put_number(out, run->columns[XP_COLUMN_TOKENS][i], 15);
        xp_text_puts(out, ",");
        put_number(out, run->columns[XP_COLUMN_ELAPSED][i], 9);
        xp_text_puts(out, ",");
        put_number(out, run->columns[column][i], 8);
        xp_text_puts(out, "]");
        first = false;
    }
    xp_text_puts(out, "]");
}

/* ---- expert load ------------------------------------------------------------------------- */

static double load_mean(const xp_report_run *run, const float *load, int layer, int64_t from,
                        int64_t to) {
    double sum = 0;
    int64_t n = 0;
    for (int64_t i = from; i < to; i++) {
        const float value = load[i * run->n_layers + layer];
        if (!isfinite(value))
            continue;
        sum += value;
        n++;
    }
    return n > 0 ? sum / (double)n : NAN;
}

static void put_load(xp_text *out, const xp_report_run *run, xp_report_load which, int64_t bucket) {
    put_key(out, ",", xp_report_load_key(which));
    xp_text_puts(out, "[");
    for (int layer = 0; layer < run->n_layers; layer++) {
        xp_text_puts(out, layer > 0 ? ",[" : "[");
        for (int64_t from = 0; from < run->n_steps; from += bucket) {
            const int64_t to = from + bucket < run->n_steps ? from + bucket : run->n_steps;
            if (from > 0)
                xp_text_add(out, ",", 1);
            put_number(out, load_mean(run, run->loads[which], layer, from, to), 4);
        }
        xp_text_puts(out, "]");
    }
    xp_text_puts(out, "]");
}

static void put_loads(xp_text *out, const xp_report_run *run) {
    const int64_t bucket = xp_report_bucket(run->n_steps, XP_REPORT_MAX_COLUMNS);
    xp_text_printf(out, ",\"load\":{\"layers\":%d", run->n_layers);
    put_points(out, "step", run, XP_COLUMN_STEP, bucket, PART_LAST);
    put_points(out, "tokens", run, XP_COLUMN_TOKENS, bucket, PART_LAST);
    put_points(out, "time", run, XP_COLUMN_ELAPSED, bucket, PART_LAST);
    for (int k = 0; k < XP_N_LOADS; k++)
        put_load(out, run, k, bucket);
    xp_text_puts(out, "}");
}

/* ---- the whole --------------------------------------------------------------------------- */

static xp_status put_summary(xp_text *out, const xp_report_run *run) {
    xp_report_summary s;
    XP_TRY(xp_report_summarise(run, &s));
    xp_text_printf(out, ",\"summary\":{\"steps\":%lld", (long long)run->n_steps);
    put_value(out, "last_loss", s.last_loss);
    put_value(out, "validation", s.validation);
    put_value(out, "validation_step", s.validation_step);
    put_value(out, "tps", s.tps);
    put_value(out, "mfu", s.mfu);
    put_value(out, "memory_gib", s.memory_gib);
    put_value(out, "tokens", s.tokens);
    put_value(out, "seconds", s.seconds);
    put_value(out, "restarts", (double)s.n_restarts);
    put_value(out, "not_finite", (double)s.n_not_finite);
    put_value(out, "damaged", (double)run->n_damaged);
    put_value(out, "first_damaged", (double)run->first_damaged);
    xp_text_puts(out, "}");
    return XP_OK;
}

static void put_config(xp_text *out, const xp_report_run *run) {
    xp_text_puts(out, ",\"config\":{");
    for (int i = 0; i < run->n_settings; i++)
        put_string(out, i > 0 ? "," : "", run->settings[i].key, run->settings[i].value);
    xp_text_puts(out, "},\"checkpoints\":[");
    for (int64_t i = 0; i < run->n_checkpoints; i++)
        xp_text_printf(out, "%s%lld", i > 0 ? "," : "", (long long)run->checkpoints[i]);
    xp_text_puts(out, "]");
}

static xp_status put_run(xp_text *out, const xp_report_run *run) {
    const int64_t bucket = xp_report_bucket(run->n_steps, XP_REPORT_MAX_POINTS);
    put_string(out, "{", "name", run->name);
    put_string(out, ",", "metrics", run->metrics_path);
    xp_text_printf(out, ",\"bucket\":%lld", (long long)bucket);
    put_points(out, "step", run, XP_COLUMN_STEP, bucket, PART_LAST);
    put_points(out, "tokens", run, XP_COLUMN_TOKENS, bucket, PART_LAST);
    put_points(out, "time", run, XP_COLUMN_ELAPSED, bucket, PART_LAST);
    put_series(out, run, bucket);
    put_events(out, "validation", run, XP_COLUMN_VALIDATION_LOSS);
    put_events(out, "resumed", run, XP_COLUMN_RESUMED);
    put_loads(out, run);
    put_config(out, run);
    XP_TRY(put_summary(out, run));
    xp_text_puts(out, "}");
    return XP_OK;
}

/* These stand in strings only. */
static void escape_for_html(const xp_text *json, xp_text *out) {
    const char *from = json->data, *end = json->data + json->length;
    for (const char *at = from; at < end; at++) {
        if (*at != '<' && *at != '>' && *at != '&')
            continue;
        xp_text_add(out, from, (size_t)(at - from));
        xp_text_printf(out, "\\u%04x", (unsigned)*at);
        from = at + 1;
    }
    xp_text_add(out, from, (size_t)(end - from));
}

xp_status xp_report_data(xp_report_run *const *runs, int n_runs, int64_t version, xp_text *out) {
    xp_text json = {0};
    xp_status status = XP_OK;
    xp_text_printf(&json, "{\"version\":%lld,\"runs\":[", (long long)version);
    for (int i = 0; i < n_runs && status == XP_OK; i++) {
        xp_text_puts(&json, i > 0 ? ",\n" : "\n");
        status = put_run(&json, runs[i]);
    }
    xp_text_puts(&json, "\n]}");
    if (status == XP_OK && !json.failed)
        escape_for_html(&json, out);
    if (status == XP_OK && (json.failed || out->failed))
        status = xp_error(XP_ENOMEM, "no memory for the report's numbers");
    xp_text_free(&json);
    return status;
}
