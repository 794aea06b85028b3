/* The sums of a trace as tables and as JSON. */
#include <stdio.h>
#include <string.h>
#include "report/trace.h"

#define IDLE "(idle)"

static double share(double us, double of_us) {
    return of_us > 0 ? us / of_us : 0;
}

/* ---- tables ------------------------------------------------------------------------------ */

/* Characters, not bytes: names may be any text. */
static int width_of(const char *text) {
    int n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static void put_padded(xp_text *out, const char *text, int width) {
    xp_text_printf(out, "%s%*s", text, width > width_of(text) ? width - width_of(text) : 0, "");
}

static void put_row(const xp_trace_row *row, double step_us, xp_text *out) {
    int width = width_of(row->name);
    for (int i = 0; i < row->n_ops; i++)
        width = width_of(row->ops[i].name) > width ? width_of(row->ops[i].name) : width;
    xp_text_puts(out, "\n");
    put_padded(out, row->name, width);
    xp_text_printf(out, " %8s %12s %7s %12s\n", "calls", "total ms", "share", "mean us");
    for (int i = 0; i < row->n_ops; i++) {
        const xp_trace_op *op = &row->ops[i];
        put_padded(out, op->name, width);
        xp_text_printf(out, " %8lld %12.3f %6.1f%% %12.1f\n", (long long)op->n_calls,
                       op->total_us / 1e3, 100 * share(op->total_us, step_us),
                       op->total_us / (double)op->n_calls);
    }
    if (!row->has_idle)
        return;
    put_padded(out, IDLE, width);
    xp_text_printf(out, " %8s %12.3f %6.1f%%\n", "", row->idle_us / 1e3,
                   100 * share(row->idle_us, step_us));
}

static void put_layer(const xp_trace_layer *l, const char *name, xp_text *out) {
    xp_text_printf(out, "%-9s %12.3f %12.3f %12.3f %12.3f %6.1f%%\n", name, l->forward_us / 1e3,
                   l->backward_us / 1e3, l->communication_us / 1e3, l->exposed_us / 1e3,
                   100 * share(l->exposed_us, l->communication_us));
}

static int n_in_model(const xp_trace_sums *sums) {
    int n = 0;
    for (int i = 0; i < sums->n_layers; i++)
        n += sums->layers[i].layer >= 0;
    return n;
}

/* What a layer's exchange costs, on average. */
static void put_exchange(const xp_trace_sums *sums, xp_text *out) {
    const xp_trace_exchange *forward = &sums->exchange[0], *backward = &sums->exchange[1];
    const double n = n_in_model(sums);
    if (n == 0 || forward->us + backward->us == 0)
        return;
    xp_text_printf(
        out, "exchange exposed, us a layer: forward %.1f of %.1f, backward %.1f of %.1f\n",
        forward->exposed_us / n, forward->us / n, backward->exposed_us / n, backward->us / n);
}

static void put_layers(const xp_trace_sums *sums, xp_text *out) {
    char name[24];
    if (sums->n_layers == 0)
        return;
    xp_text_printf(out, "\n%-9s %12s %12s %12s %12s\n", "layer", "forward ms", "backward ms",
                   "comm. ms", "exposed ms");
    for (int i = 0; i < sums->n_layers; i++) {
        snprintf(name, sizeof name, "%d", sums->layers[i].layer);
        put_layer(&sums->layers[i], sums->layers[i].layer < 0 ? "(none)" : name, out);
    }
    put_layer(&sums->all, "all", out);
    put_exchange(sums, out);
}

void xp_trace_sums_print(const xp_trace_sums *sums, const char *path, xp_text *out) {
    char step[24] = "?", rank[24] = "?";
    if (sums->step >= 0)
        snprintf(step, sizeof step, "%lld", (long long)sums->step);
    if (sums->rank >= 0)
        snprintf(rank, sizeof rank, "%lld", (long long)sums->rank);
    xp_text_printf(out, "%s: step %s, rank %s, %.3f ms\n", path, step, rank, sums->step_us / 1e3);
    if (sums->n_left_out > 0)
        xp_text_printf(out, "%lld events had no room: sums are too small\n",
                       (long long)sums->n_left_out);
    for (int i = 0; i < sums->n_rows; i++)
        put_row(&sums->rows[i], sums->step_us, out);
    put_layers(sums, out);
}

/* ---- JSON -------------------------------------------------------------------------------- */

static void put_value(xp_text *out, const char *key, double value) {
    xp_text_printf(out, ", \"%s\": ", key);
    xp_text_add_json_double(out, value);
}

static void put_json_row(const xp_trace_row *row, double step_us, xp_text *out) {
    xp_text_puts(out, "{\"name\": ");
    xp_text_add_json(out, row->name, strlen(row->name));
    if (row->has_idle)
        put_value(out, "idle_ms", row->idle_us / 1e3);
    xp_text_puts(out, ", \"ops\": [");
    for (int i = 0; i < row->n_ops; i++) {
        const xp_trace_op *op = &row->ops[i];
        xp_text_puts(out, i > 0 ? ",\n    {\"name\": " : "\n    {\"name\": ");
        xp_text_add_json(out, op->name, strlen(op->name));
        xp_text_printf(out, ", \"calls\": %lld", (long long)op->n_calls);
        put_value(out, "total_ms", op->total_us / 1e3);
        put_value(out, "share", share(op->total_us, step_us));
        put_value(out, "mean_us", op->total_us / (double)op->n_calls);
        xp_text_puts(out, "}");
    }
    xp_text_puts(out, "]}");
}

static void put_json_times(const xp_trace_layer *l, xp_text *out) {
    put_value(out, "forward_ms", l->forward_us / 1e3);
    put_value(out, "backward_ms", l->backward_us / 1e3);
    put_value(out, "communication_ms", l->communication_us / 1e3);
    put_value(out, "exposed_ms", l->exposed_us / 1e3);
    xp_text_puts(out, "}");
}

static void put_json_exchange(const xp_trace_sums *sums, xp_text *out) {
    static const char *const names[] = {"forward", "backward"};
    const int n = n_in_model(sums);
    xp_text_puts(out, ",\n \"exchange_us_a_layer\": ");
    for (int pass = 0; pass < 2 && n > 0; pass++) {
        xp_text_printf(out, "%s\"%s\": {\"all\": ", pass == 0 ? "{" : ", ", names[pass]);
        xp_text_add_json_double(out, sums->exchange[pass].us / n);
        put_value(out, "exposed", sums->exchange[pass].exposed_us / n);
        xp_text_puts(out, "}");
    }
    xp_text_puts(out, n > 0 ? "}" : "null");
}

static void put_number_or_null(xp_text *out, const char *key, int64_t value) {
    if (value >= 0)
        xp_text_printf(out, ", \"%s\": %lld", key, (long long)value);
    else
        xp_text_printf(out, ", \"%s\": null", key);
}

void xp_trace_sums_json(const xp_trace_sums *sums, const char *path, xp_text *out) {
    xp_text_puts(out, "{\"file\": ");
    xp_text_add_json(out, path, strlen(path));
    put_number_or_null(out, "step", sums->step);
    put_number_or_null(out, "rank", sums->rank);
    put_value(out, "step_ms", sums->step_us / 1e3);
    put_number_or_null(out, "events_left_out", sums->n_left_out);
    xp_text_puts(out, ",\n \"rows\": [");
    for (int i = 0; i < sums->n_rows; i++) {
        xp_text_puts(out, i > 0 ? ",\n  " : "\n  ");
        put_json_row(&sums->rows[i], sums->step_us, out);
    }
    xp_text_puts(out, "],\n \"layers\": [");
    for (int i = 0; i < sums->n_layers; i++) {
        xp_text_puts(out, i > 0 ? ",\n  {\"layer\": " : "\n  {\"layer\": ");
        if (sums->layers[i].layer < 0)
            xp_text_puts(out, "null");
        else
            xp_text_printf(out, "%d", sums->layers[i].layer);
        put_json_times(&sums->layers[i], out);
    }
    xp_text_puts(out, "],\n \"all\": {\"layer\": null");
    put_json_times(&sums->all, out);
    put_json_exchange(sums, out);
    xp_text_puts(out, "}");
}
