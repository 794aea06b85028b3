/* expar plan: the table as text and as markdown, and what follows it. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "plan.h"

#define MAX_COLUMNS 24

typedef struct column {
    const char *title;
    int width; /* of text */
} column;

/* A line: cells in the columns' order, then free text. */
typedef struct line {
    int n;
    column columns[MAX_COLUMNS];
    char cells[MAX_COLUMNS][32];
} line;

static const column col_scaling = {"scaling", 7}, col_nodes = {"nodes", 5}, col_gpus = {"GPUs", 5},
                    col_ranks = {"ranks", 5}, col_ep = {"EP", 4}, col_batch = {"batch", 5},
                    col_mode = {"recompute", 9}, col_overlap = {"overlap", 7},
                    col_replicas = {"replicas", 8}, col_gib = {"GiB", 8}, col_share = {"share", 6},
                    col_speed = {"tok/s/GPU", 10}, col_rank_speed = {"tok/s/rank", 10},
                    col_all = {"tok/s", 12}, col_scale = {"of first", 8},
                    col_tflops = {"TFLOPS", 6}, col_mfu = {"MFU", 6}, col_link = {"in node", 8},
                    col_network = {"network", 8}, col_sharding = {"sharding", 8},
                    col_transport = {"transport", 12}, col_days = {"days", 8},
                    col_hours = {"GPU-hours", 11}, col_cost = {"cost", 12};

static void add(line *l, column c, const char *format, ...) XP_PRINTF(3, 4);
static void add(line *l, column c, const char *format, ...) {
    va_list args;
    l->columns[l->n] = c;
    va_start(args, format);
    vsnprintf(l->cells[l->n++], sizeof l->cells[0], format, args);
    va_end(args);
}

/* Before memory and speed. */
static void add_setting(const plan *p, const plan_row *r, line *l) {
    const plan_setting *s = &r->setting;
    const bool varies = p->o->suggest;
    if (p->o->scaling)
        add(l, col_scaling, "%s", r->scaling ? r->scaling : "");
    add(l, col_nodes, "%lld", (long long)s->nodes);
    add(l, p->hardware.is_cpu ? col_ranks : col_gpus, "%lld", (long long)r->ranks);
    add(l, col_ep, "%lld", (long long)(r->is_run ? r->ep_size : s->ep));
    add(l, col_batch, "%lld", (long long)s->batch);
    if (varies || p->o->recompute)
        add(l, col_mode, "%s", s->mode);
    if (varies || p->o->overlap)
        add(l, col_overlap, "%s", s->overlap ? "on" : "off");
    if (varies || p->o->replicas)
        add(l, col_replicas, "%lld", (long long)s->replicas);
}

static void add_memory(const plan *p, const plan_row *r, line *l) {
    const double need = plan_memory_gib(p, r);
    add(l, col_gib, "%.1f", need);
    add(l, col_share, "%.0f%%", 100 * need / p->room_gib);
}

static void add_speed(const plan *p, const plan_row *r, line *l) {
    const xp_step_prediction *s = &r->step;
    const double speed = plan_tokens_per_s_gpu(r);
    add(l, p->hardware.is_cpu ? col_rank_speed : col_speed, "%.0f", speed);
    add(l, col_all, "%.0f", speed * (double)r->ranks);
    if (p->o->scaling)
        add(l, col_scale, "%.1f%%", p->base_speed > 0 ? 100 * speed / p->base_speed : 0);
    add(l, col_tflops, "%.3g", s->flops / s->step_s * 1e-12);
    add(l, col_mfu, "%.1f%%", plan_mfu_percent(p, r));
    add(l, col_link, "%.1fGB", s->link_bytes * 1e-9);
    add(l, col_network, "%.1fGB", s->network_bytes * 1e-9);
    add(l, col_sharding, "%.1fGB", s->gradient_bytes * 1e-9);
    add(l, col_transport, "%s", plan_transport_name(r));
    if (p->tokens > 0) {
        add(l, col_days, "%.1f", plan_days(p, r));
        add(l, col_hours, "%.0f", plan_gpu_hours(p, r));
    }
    if (p->tokens > 0 && p->price >= 0)
        add(l, col_cost, "%.0f", plan_gpu_hours(p, r) * p->price);
}

static void print_cell(const plan *p, const char *text, int width) {
    if (p->o->markdown)
        printf(" %s |", text);
    else
        printf("%*s ", width, text);
}

static void print_line(const plan *p, const line *l, const char *rest) {
    if (p->o->markdown)
        fputs("|", stdout);
    for (int i = 0; i < l->n; i++)
        print_cell(p, l->cells[i], l->columns[i].width);
    if (!p->o->markdown)
        printf(" %s\n", rest);
}

/* The largest parts of the memory. */
static void add_parts(const plan_row *r, int n_most, xp_text *t) {
    xp_memory_prediction sorted = r->memory;
    xp_predict_sort_tags(&sorted);
    for (int i = 0; i < sorted.n_tags && i < n_most && sorted.tags[i].n_bytes > 0; i++)
        xp_text_printf(t, "%s%s %.1f", i > 0 ? ", " : "", sorted.tags[i].tag,
                       (double)sorted.tags[i].n_bytes / PLAN_GIB);
}

static void print_titles(const plan *p) {
    plan_row none = {.setting = {.mode = "", .overlap = false}, .step = {.step_s = 1}};
    line l = {0};
    add_setting(p, &none, &l);
    add_memory(p, &none, &l);
    add_speed(p, &none, &l);
    for (int i = 0; i < l.n; i++)
        snprintf(l.cells[i], sizeof l.cells[i], "%s", l.columns[i].title);
    print_line(p, &l, "");
    if (!p->o->markdown)
        return;
    fputs(" note |\n|", stdout);
    for (int i = 0; i <= l.n; i++)
        fputs("---|", stdout);
    fputs("\n", stdout);
}

static void print_head(const plan *p) {
    const xp_config *c = p->config;
    const char *mode = c->activation_checkpoint.mode;
    printf("model: %s, %lld million parameters, %lld million active; rows of %lld tokens%s%s\n",
           p->arch.flavor, (long long)(xp_arch_n_params(&p->arch) / 1000000),
           (long long)(xp_arch_n_active_params(&p->arch) / 1000000), (long long)c->training.seq_len,
           p->o->suggest || p->o->recompute ? "" : "; recomputation: ",
           p->o->suggest || p->o->recompute ? ""
           : mode                           ? mode
                                            : "none");
    const xp_hardware *h = &p->hardware;
    if (h->is_cpu)
        printf("CPU: %s, %.0f cores and %.1f GiB a node, shared by its ranks: %d a node "
               "(--gpus-per-node), %.1f GiB each for a run; %.3g GB/s between nodes\n\n",
               h->name, h->limits.units, h->limits.memory_gib, p->cluster.gpus_per_node,
               p->room_gib, p->cluster.network_gbps);
    else
        printf("GPUs: %s, %.1f GiB for a run of %.1f, %d a node; %.3g GB/s between nodes\n\n",
               h->name, p->room_gib, h->limits.memory_gib, p->cluster.gpus_per_node,
               p->cluster.network_gbps);
}

static void print_row(const plan *p, const plan_row *r, bool is_best) {
    line l = {0};
    xp_text rest = {0};
    add_setting(p, r, &l);
    if (r->is_run)
        add_memory(p, r, &l);
    if (!r->is_run) {
        xp_text_printf(&rest, "no run: %s", r->error);
    } else if (!r->fits) {
        xp_text_printf(&rest, "out of memory: %.1f GiB too much (",
                       plan_memory_gib(p, r) - p->room_gib);
        add_parts(r, 3, &rest);
        xp_text_printf(&rest, "); %s", r->advice);
    } else if (!r->has_speed) {
        xp_text_printf(&rest, "fits; no speed: %s", r->error);
    } else {
        add_speed(p, r, &l);
        xp_text_puts(&rest, is_best ? "the best" : r->reason); /* why: a line below the table */
    }
    print_line(p, &l, rest.length > 0 && !rest.failed ? rest.data : "");
    if (p->o->markdown) {
        /* Every row has all columns. */
        plan_row full = {.setting = r->setting, .step = {.step_s = 1}};
        line all = {0};
        add_setting(p, &full, &all);
        add_memory(p, &full, &all);
        add_speed(p, &full, &all);
        for (int i = l.n; i < all.n; i++)
            fputs(" |", stdout);
        printf(" %s |\n", rest.length > 0 && !rest.failed ? rest.data : "");
    }
    xp_text_free(&rest);
}

/* A layer's exchange beside the GEMMs that can hide it. */
static void print_layer(const xp_step_prediction *s) {
    const xp_exchange_layer *e = &s->exchange_layer;
    printf("  a layer, us: dispatch %.0f beside 1/%d of w13's %.0f, combine %.0f",
           e->dispatch_s * 1e6, s->ep_size, e->w13_s * 1e6, e->send_s * 1e6);
    if (e->w2_s > 0)
        printf(" beside 1/%d of w2's %.0f, sums %.0f", s->ep_size, e->w2_s * 1e6, e->recv_s * 1e6);
    printf(";\n  backward combine %.0f beside weight gradients of %.0f, dispatch %.0f beside %.0f",
           e->combine_backward_s * 1e6, e->w2_wgrad_s * 1e6, e->dispatch_backward_s * 1e6,
           e->w13_wgrad_s * 1e6);
    if (e->again_s > 0)
        printf(", rows that were not kept %.0f", e->again_s * 1e6);
    printf("\n");
}

/* What runs beside other work: how long it takes alone, what of it the step waits for, and what it costs others. */
static void print_hidden(const plan *p, const xp_step_prediction *s) {
    if (s->hidden_exchange_s > 0)
        printf(
            "exchange, ms: %.1f exposed forward and %.1f backward, %.1f hidden, for which expert "
            "GEMMs take %.1f longer\n",
            s->exposed_forward_s * 1e3, s->exposed_backward_s * 1e3, s->hidden_exchange_s * 1e3,
            s->slowed_experts_s * 1e3);
    if (s->exchange_layer.w13_s > 0)
        print_layer(s);
    if (s->gradient_bytes > 0 && !p->hardware.is_cpu)
        printf(
            "gradients, ms: %.1f of reductions (%.1f exposed), %.1f of parameters gathered (%.1f "
            "exposed); other work loses %.1f to them\n",
            s->reduced_s * 1e3, s->exposed_reduced_s * 1e3, s->gathered_s * 1e3,
            s->exposed_gathered_s * 1e3,
            (s->gradients_s - s->exposed_reduced_s - s->exposed_gathered_s) * 1e3);
}

/* Where one run's memory and time go. */
static void print_details(const plan *p, const plan_row *r) {
    const xp_step_prediction *s = &r->step;
    xp_text parts = {0};
    if (!r->is_run)
        return;
    add_parts(r, XP_PREDICT_MAX_TAGS, &parts);
    printf("\nmemory of a %s, GiB: %s\n", plan_unit(p),
           parts.length > 0 && !parts.failed ? parts.data : "");
    xp_text_free(&parts);
    if (!r->has_speed)
        return;
    printf("a step, ms: %.1f = experts %.1f, attention %.1f, dense GEMMs %.1f, head %.1f, "
           "memory-bound ops %.1f,\n  optimizer %.1f, exchange %.1f, gradients %.1f, kernel "
           "launches %.1f\n",
           s->step_s * 1e3, s->experts_s * 1e3, s->attention_s * 1e3, s->dense_s * 1e3,
           s->head_s * 1e3, s->memory_s * 1e3, s->optimizer_s * 1e3, s->exchange_s * 1e3,
           s->gradients_s * 1e3, s->launch_s * 1e3);
    print_hidden(p, s);
}

/* ---- all rows ------------------------------------------------------------------------------- */

void plan_output_begin(plan_output *out, plan *p) {
    *out = (plan_output){.p = p};
    if (p->o->json) {
        xp_text_puts(&out->json, "[");
        return;
    }
    if (!p->o->markdown)
        print_head(p);
    print_titles(p);
}

void plan_output_row(plan_output *out, const plan_row *r) {
    plan *p = out->p;
    out->n_rows++;
    out->many_gpus |= r->has_speed && !plan_is_measured(p, r);
    out->several_nodes |= r->setting.nodes > 1;
    out->short_steps |= plan_is_short(r);
    out->overlap_without_ep |= r->setting.overlap && r->is_run && r->ep_size == 1;
    if (p->o->json)
        plan_add_json(p, r, &out->json);
    else
        print_row(p, r, p->o->suggest && out->n_rows == 1);
}

bool plan_output_end(plan_output *out, const plan_row *last) {
    plan *p = out->p;
    if (p->o->json) {
        xp_text_puts(&out->json, "\n]\n");
        const bool failed = out->json.failed;
        fputs(failed ? "" : out->json.data, stdout);
        xp_text_free(&out->json);
        if (failed)
            fputs("error: no memory for the JSON\n", stderr);
        return !failed;
    }
    if (p->o->markdown)
        return true;
    if (out->n_rows == 1 || (p->o->suggest && out->n_rows > 0))
        print_details(p, last);
    plan_print_notes(out);
    return true;
}
