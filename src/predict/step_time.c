#include "predict/step_time.h"

#include <string.h>
#include "ep/internal.h"
#include "parallel/run.h"
#include "predict/step_parts.h"

/* Ranks of a CPU share its cores and its memory's rate; what they exchange goes through that memory. */
static xp_rates rates_of(const xp_cluster *c) {
    const xp_hardware *h = c->hardware;
    const double sharers = h->is_cpu ? c->gpus_per_node : 1,
                 memory = h->limits.memory_tbps * 1e12 * h->reached.memory / sharers,
                 link = h->is_cpu ? h->limits.memory_tbps * 1e12 / sharers / 2
                                  : h->limits.link_gbps * 1e9;
    return (xp_rates){.flops = h->limits.tflops * 1e12 / sharers,
                      .memory = memory,
                      .link = link * h->reached.link_alone,
                      .link_backward = link * h->reached.link_alone,
                      .all_to_all = link * h->reached.all_to_all,
                      .collectives = link * h->reached.collectives,
                      .network = c->network_gbps * 1e9 * h->reached.network};
}

static xp_status read_dtype(const xp_config *config, const xp_hardware *h, xp_sizes *s) {
    const char *dtype = config->training.dtype;
    const bool is_f32 = dtype ? strcmp(dtype, "float32") == 0 : h->is_cpu;
    if (is_f32 && !h->is_cpu)
        return xp_error(XP_ENOTSUP, "how fast float32 is on a GPU was not measured: training.dtype "
                                    "= \"bfloat16\" can be predicted");
    s->element = is_f32 ? 4 : 2;
    s->gradient_bytes = is_f32 || s->n_passes > 1 ? 4 : 2;
    return XP_OK;
}

/* Whether a list of names that are separated by commas has this one. */
static bool has_name(const char *list, const char *name) {
    const size_t n = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strncmp(at, name, n) == 0 && (at[n] == ',' || at[n] == '\0'))
            return true;
    return false;
}

/* Assumed of every GPU, as the shares of an H200 are. */
static bool activates_in_gemms(const xp_config *config, const xp_sizes *s) {
    const char *left_out = config->debug.device_caps;
    return s->is_moe && !s->hardware->is_cpu && !has_name(left_out, "silu_epilogue") &&
           !has_name(left_out, "wgmma");
}

/* As src/model/moe_pass.c takes them. */
static void choose_sms(const xp_config *config, xp_sizes *s) {
    const int64_t few = 16, asked = config->deepep.num_sms, own = config->deepep.overlap_num_sms,
                  chosen = asked > 0 && asked < few ? asked : few;
    s->overlap_sms = (int)(own > 0 ? own : chosen);
    s->send_sms = (int)(own > 0 ? own : chosen + chosen / 2);
}

xp_status xp_predict_sizes(const xp_config *config, const xp_mesh *layout, const xp_cluster *c,
                           xp_sizes *s) {
    const xp_hardware *h = c->hardware;
    int64_t global;
    memset(s, 0, sizeof *s);
    XP_TRY(xp_arch_from_config(config, &s->arch));
    XP_TRY(xp_run_batch_sizes(config, layout->n_ranks, &s->n_passes, &global));
    XP_TRY(read_dtype(config, h, s));
    s->hardware = h;
    s->rates = rates_of(c);
    s->latency_s = c->latency_us * 1e-6;
    s->seq_len = (double)config->training.seq_len;
    s->tokens = (double)config->training.local_batch_size * s->seq_len;
    s->recompute = xp_run_recompute(config->activation_checkpoint.mode);
    s->is_moe = s->arch.n_experts > 0;
    s->activates_in_gemms = activates_in_gemms(config, s);
    s->saves_recv =
        xp_saves_recv(s->recompute, xp_run_save_dispatched(config->moe.save_dispatched));
    s->forced = xp_run_forced(config);
    s->ep_size = layout->ep_size;
    const int ranks = s->is_moe ? s->ep_size : 1;
    const xp_overlap overlap = xp_overlap_choose(config->parallelism.expert_parallel_overlap, ranks,
                                                 !h->is_cpu, layout->shares_gpus);
    s->n_parts = overlap == XP_OVERLAP_HALVES && ranks > 1 ? 2 : 1;
    s->hides_exchange = overlap == XP_OVERLAP_GEMMS;
    s->row_parts = 1; /* rows of other ranks come, and go, all at once */
    choose_sms(config, s);
    if (s->hides_exchange) {
        s->rates.link *= h->reached.link / h->reached.link_alone;
        s->rates.link_backward *= h->reached.link_backward / h->reached.link_alone;
    }
    s->send_copies = (double)config->debug.moe_send_copies;
    s->ep_nodes = layout->ep_nodes > 1 ? layout->ep_nodes : 1;
    xp_ep_config ep = {.transport = xp_run_transport(config, &s->arch), .n_nodes = s->ep_nodes};
    XP_TRY(xp_ep_choose_transport(&ep, s->ep_nodes == 1));
    s->transport = ep.transport;
    return XP_OK;
}

static void add_launches(const xp_sizes *s, bool in_graphs, xp_step_prediction *p) {
    xp_predict_launches(s, in_graphs, p);
    p->step_s = p->dense_s + p->attention_s + p->experts_s + p->memory_s + p->head_s +
                p->exchange_s + p->gradients_s + p->optimizer_s + p->launch_s;
    if (p->host_s > p->step_s) { /* the GPU waits for the host */
        p->launch_s += p->host_s - p->step_s;
        p->step_s = p->host_s;
    }
}

/* Of a step, from which training.cuda_graph = auto records passes. */
static const double launches_worth_graphs = 0.1;

static bool uses_graphs(const xp_config *config, const xp_sizes *s, int n_ranks,
                        const xp_step_prediction *p) {
    const int64_t asked = config->training.cuda_graph;
    if (s->hardware->is_cpu || (s->is_moe && s->ep_size > 1) || asked == 0)
        return false;
    return asked > 0 || (n_ranks == 1 && p->launch_s > launches_worth_graphs * p->step_s);
}

xp_status xp_predict_step(const xp_config *config, const xp_mesh *layout, const xp_cluster *cluster,
                          xp_step_prediction *prediction) {
    xp_step_prediction p = {0};
    xp_sizes s;
    xp_layer_times layer;
    XP_TRY(xp_predict_sizes(config, layout, cluster, &s));
    xp_predict_compute(&s, &layer, &p);
    xp_predict_exchange(&s, &layer, &p);
    xp_predict_update(&s, layout, cluster, &layer, &p);
    add_launches(&s, false, &p);
    p.uses_graphs = uses_graphs(config, &s, layout->n_ranks, &p);
    if (p.uses_graphs)
        add_launches(&s, true, &p);
    p.tokens = s.tokens * (double)s.n_passes;
    p.n_passes = s.n_passes;
    p.ep_size = s.is_moe ? s.ep_size : 1;
    p.transport = s.is_moe && s.ep_size > 1 ? s.transport : XP_EP_AUTO;
    p.flops = p.tokens * xp_arch_flops_per_token(&s.arch, config->training.seq_len);
    *prediction = p;
    return XP_OK;
}
