#include "report/trace_floors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The parts add up to the step by the host's clock within this. */
#define WITHIN 0.03

xp_status xp_trace_floors_fill(const xp_trace_sums *sums, const xp_config *config,
                               const xp_hardware *hardware, int n_ranks, int n_nodes,
                               xp_trace_floors *floors) {
    const char *attention = config->training.attention;
    xp_trace_floors made = {.step_us = sums->run.step_us,
                            .documents = attention && strcmp(attention, "document") == 0};
    xp_mesh layout;
    const xp_cluster cluster = {.hardware = hardware,
                                .gpus_per_node = n_ranks / n_nodes,
                                .network_gbps = hardware->network.gbps,
                                .latency_us = hardware->network.latency_us};
    XP_TRY(xp_mesh_layout(config, n_ranks, sums->rank >= 0 ? (int)sums->rank : 0, &layout));
    layout.ep_nodes = xp_mesh_ep_nodes(&layout, n_nodes);
    XP_TRY(xp_predict_work(config, &layout, &cluster, &made.work));
    for (int i = 0; i < XP_N_PARTS; i++) {
        made.part_us[i] = sums->parts_us[i] + (hardware->is_cpu ? sums->edges_us[i] : 0);
        made.sum_us += made.part_us[i];
        if (made.part_us[i] <= 0) /* no op of its own does it: it is fused into others */
            made.work.parts[i] = (xp_part_work){.floor_s = 0};
        made.floor_us += made.work.parts[i].floor_s * 1e6;
    }
    if (made.sum_us <= 0)
        return xp_error(XP_EFORMAT, "a trace without ops of the compute stream");
    snprintf(made.hardware, sizeof made.hardware, "%s", hardware->name);
    *floors = made;
    return XP_OK;
}

/* ---- order ---------------------------------------------------------------------------------- */

typedef struct entry {
    xp_part part;
    double us;
} entry;

static bool is_work(xp_part part) {
    return part < XP_PART_OTHER;
}

/* Work first, the longest first. */
static int by_time(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (is_work(x->part) != is_work(y->part))
        return is_work(x->part) ? -1 : 1;
    if (x->us != y->us)
        return x->us > y->us ? -1 : 1;
    return (x->part > y->part) - (x->part < y->part);
}

/* @return how many parts there are */
static int sort_parts(const xp_trace_floors *f, entry entries[XP_N_PARTS]) {
    int n = 0;
    for (int i = 0; i < XP_N_PARTS; i++)
        if (f->part_us[i] > 0)
            entries[n++] = (entry){(xp_part)i, f->part_us[i]};
    qsort(entries, (size_t)n, sizeof *entries, by_time);
    return n;
}

/* ---- table ---------------------------------------------------------------------------------- */

static void put_line(const char *name, double us, double floor_us, const char *bound,
                     xp_text *out) {
    xp_text_printf(out, "%-24s %12.3f %12.3f", name, us / 1e3, floor_us / 1e3);
    if (us > 0 && floor_us > 0)
        xp_text_printf(out, " %6.1f%%", 100 * floor_us / us);
    else
        xp_text_printf(out, " %7s", "-");
    xp_text_printf(out, "%s%s\n", bound[0] ? "  " : "", bound);
}

static void put_limits(const xp_trace_floors *f, xp_text *out) {
    const xp_step_limits *l = &f->work.limits;
    xp_text_printf(out, "floors: %s, of one rank: GEMM %.4g TFLOP/s, copy %.4g TB/s", f->hardware,
                   l->flops * 1e-12, l->memory * 1e-12);
    if (f->work.parts[XP_PART_EXCHANGE].link_bytes > 0)
        xp_text_printf(out, ", link %.4g GB/s", l->link * 1e-9);
    xp_text_printf(out, " (%s); ratio: floor over time\n",
                   l->measured ? "measured" : "data sheet: no [measured] in its description");
    if (f->documents)
        xp_text_puts(out, "attention's floors are of whole rows; documents need less\n");
}

static void put_step(const xp_trace_floors *f, xp_text *out) {
    if (f->step_us <= 0)
        return;
    const double share = f->sum_us / f->step_us;
    xp_text_printf(out, "%-24s %12.3f\n", "step by the host's clock", f->step_us / 1e3);
    xp_text_printf(out, "the parts add up to %.1f %% of the step%s\n", 100 * share,
                   fabs(share - 1) <= WITHIN ? "" : ": more than 3 % away from it");
}

void xp_trace_floors_print(const xp_trace_floors *floors, const xp_trace_sums *sums,
                           const char *path, xp_text *out) {
    entry entries[XP_N_PARTS];
    const int n = sort_parts(floors, entries);
    xp_text_printf(out, "%s: step %lld, rank %lld\n", path, (long long)sums->step,
                   (long long)sums->rank);
    if (sums->n_left_out > 0)
        xp_text_printf(out, "%lld events had no room: their time counts as gaps\n",
                       (long long)sums->n_left_out);
    xp_text_printf(out, "\n%-24s %12s %12s %7s  bound by\n", "part", "ms", "floor ms", "ratio");
    for (int i = 0; i < n; i++) {
        const xp_part_work *w = &floors->work.parts[entries[i].part];
        put_line(xp_part_name(entries[i].part), entries[i].us, w->floor_s * 1e6,
                 w->floor_s > 0 ? xp_bound_name(w->bound) : "", out);
    }
    put_line("sum", floors->sum_us, floors->floor_us, "", out);
    put_step(floors, out);
    put_limits(floors, out);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void put_value(xp_text *out, const char *key, double value) {
    xp_text_printf(out, ", \"%s\": ", key);
    xp_text_add_json_double(out, value);
}

static void put_ratio(xp_text *out, const char *key, double part, double of) {
    put_value(out, key, of > 0 ? part / of : (double)NAN);
}

static void put_json_part(const xp_trace_floors *f, xp_part part, xp_text *out) {
    const xp_part_work *w = &f->work.parts[part];
    xp_text_printf(out, "{\"part\": \"%s\"", xp_part_name(part));
    put_value(out, "ms", f->part_us[part] / 1e3);
    put_value(out, "floor_ms", w->floor_s * 1e3);
    put_ratio(out, "ratio", w->floor_s * 1e6, f->part_us[part]);
    xp_text_printf(out, ", \"bound\": \"%s\"", w->floor_s > 0 ? xp_bound_name(w->bound) : "");
    put_value(out, "flops", w->flops);
    put_value(out, "bytes", w->bytes);
    put_value(out, "link_bytes", w->link_bytes);
    xp_text_puts(out, "}");
}

void xp_trace_floors_json(const xp_trace_floors *floors, const xp_trace_sums *sums,
                          const char *path, xp_text *out) {
    const xp_step_limits *l = &floors->work.limits;
    entry entries[XP_N_PARTS];
    const int n = sort_parts(floors, entries);
    xp_text_puts(out, "{\"file\": ");
    xp_text_add_json(out, path, strlen(path));
    xp_text_printf(out, ", \"step\": %lld, \"rank\": %lld, \"events_left_out\": %lld,\n",
                   (long long)sums->step, (long long)sums->rank, (long long)sums->n_left_out);
    xp_text_printf(out, " \"hardware\": \"%s\", \"limits\": {\"measured\": %s", floors->hardware,
                   l->measured ? "true" : "false");
    put_value(out, "gemm_flops_per_s", l->flops);
    put_value(out, "copy_bytes_per_s", l->memory);
    put_value(out, "link_bytes_per_s", l->link);
    xp_text_puts(out, "},\n \"parts\": [");
    for (int i = 0; i < n; i++) {
        xp_text_puts(out, i > 0 ? ",\n  " : "\n  ");
        put_json_part(floors, entries[i].part, out);
    }
    xp_text_puts(out, "]");
    put_value(out, "sum_ms", floors->sum_us / 1e3);
    put_value(out, "floor_ms", floors->floor_us / 1e3);
    put_value(out, "step_ms", floors->step_us > 0 ? floors->step_us / 1e3 : (double)NAN);
    put_ratio(out, "share_of_step", floors->sum_us, floors->step_us);
    xp_text_puts(out, "}");
}
