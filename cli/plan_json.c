/* expar plan --json: an object a row. */
#include <stdio.h>
#include <string.h>
#include "plan.h"

static void add_number(xp_text *t, const char *name, double value) {
    xp_text_printf(t, ", \"%s\": ", name);
    xp_text_add_json_double(t, value);
}

static void add_string(xp_text *t, const char *name, const char *value) {
    xp_text_printf(t, ", \"%s\": ", name);
    xp_text_add_json(t, value, strlen(value));
}

static void add_bool(xp_text *t, const char *name, bool value) {
    xp_text_printf(t, ", \"%s\": %s", name, value ? "true" : "false");
}

static void add_speed(const plan *p, const plan_row *r, xp_text *t) {
    const xp_step_prediction *s = &r->step;
    const double speed = plan_tokens_per_s_gpu(r);
    const struct {
        const char *name;
        double value;
    } all[] = {{"mfu_percent", plan_mfu_percent(p, r)},
               {"passes", (double)s->n_passes},
               {"tokens_per_s_gpu", speed},
               {"tokens_per_s", speed * (double)r->ranks},
               {"tflops_gpu", s->flops / s->step_s * 1e-12},
               {"step_s", s->step_s},
               {"experts_s", s->experts_s},
               {"attention_s", s->attention_s},
               {"dense_s", s->dense_s},
               {"head_s", s->head_s},
               {"memory_bound_s", s->memory_s},
               {"optimizer_s", s->optimizer_s},
               {"exchange_s", s->exchange_s},
               {"gradients_s", s->gradients_s},
               {"launch_s", s->launch_s},
               {"hidden_exchange_s", s->hidden_exchange_s},
               {"exposed_forward_s", s->exposed_forward_s},
               {"exposed_backward_s", s->exposed_backward_s},
               {"slowed_experts_s", s->slowed_experts_s},
               {"reduced_s", s->reduced_s},
               {"gathered_s", s->gathered_s},
               {"exposed_reduced_s", s->exposed_reduced_s},
               {"exposed_gathered_s", s->exposed_gathered_s},
               {"link_bytes", s->link_bytes},
               {"network_bytes", s->network_bytes},
               {"gradient_bytes", s->gradient_bytes}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        add_number(t, all[i].name, all[i].value);
    add_string(t, "transport", plan_transport_name(r));
    add_bool(t, "measured", plan_is_measured(p, r));
    add_bool(t, "too_short", plan_is_short(r));
    if (p->tokens > 0) {
        add_number(t, "days", plan_days(p, r));
        add_number(t, "gpu_hours", plan_gpu_hours(p, r));
    }
    if (p->tokens > 0 && p->price >= 0)
        add_number(t, "cost", plan_gpu_hours(p, r) * p->price);
}

static void add_memory(const plan *p, const plan_row *r, xp_text *t) {
    add_bool(t, "fits", r->fits);
    add_number(t, "memory_gib", plan_memory_gib(p, r));
    add_number(t, "room_gib", p->room_gib);
    for (int i = 0; i < r->memory.n_tags; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s_gib", r->memory.tags[i].tag);
        add_number(t, name, (double)r->memory.tags[i].n_bytes / PLAN_GIB);
    }
    if (p->hardware.is_cpu)
        add_number(t, "host_gib", (double)r->memory.host_bytes / PLAN_GIB);
}

void plan_add_json(const plan *p, const plan_row *r, xp_text *t) {
    const plan_setting *s = &r->setting;
    xp_text_printf(t, "%s\n  {\"gpu\": ", t->length > 1 ? "," : "");
    xp_text_add_json(t, p->hardware.name, strlen(p->hardware.name));
    add_string(t, "flavor", p->arch.flavor);
    add_number(t, "nodes", (double)s->nodes);
    add_number(t, "gpus_per_node", p->cluster.gpus_per_node);
    add_number(t, "gpus", (double)r->ranks);
    add_number(t, "batch", (double)s->batch);
    add_number(t, "seq_len", (double)p->config->training.seq_len);
    add_string(t, "recompute", s->mode);
    add_bool(t, "overlap", s->overlap);
    add_number(t, "replicas", (double)s->replicas);
    if (s->transport)
        add_string(t, "deepep_transport", s->transport);
    if (r->scaling) {
        add_string(t, "scaling", r->scaling);
        if (r->has_speed && p->base_speed > 0)
            add_number(t, "of_first_percent", 100 * plan_tokens_per_s_gpu(r) / p->base_speed);
    }
    if (r->is_run) {
        add_number(t, "ep", r->ep_size);
        add_memory(p, r, t);
    }
    if (r->has_speed)
        add_speed(p, r, t);
    if (r->error[0] != '\0')
        add_string(t, "error", r->error);
    if (r->advice[0] != '\0')
        add_string(t, "advice", r->advice);
    if (r->reason[0] != '\0')
        add_string(t, "reason", r->reason);
    xp_text_puts(t, "}");
}
