#include "tune/tuned_for.h"

#include <stdio.h>
#include <string.h>
#include "expar/version.h"
#include "ops/gemm_choice.h"
#include "parallel/run.h"
#include "tune/hardware.h"

static bool is_deepep(const xp_config *config, const xp_arch *arch) {
    const char *backend = config->parallelism.expert_parallel_comm_backend;
    return backend ? strcmp(backend, "deepep") == 0 : arch->use_deepep;
}

xp_status xp_tune_facts_of(const xp_config *config, int n_ranks, bool processes, int n_cores,
                           xp_tune_facts *facts) {
    xp_arch arch;
    const char *dtype = config->training.dtype;
    XP_TRY(xp_arch_from_config(config, &arch));
    const bool on_gpu = xp_run_device_kind(config) == XP_DEVICE_CUDA;
    *facts = (xp_tune_facts){.n_ranks = n_ranks,
                             .processes = processes,
                             .on_gpu = on_gpu,
                             .n_sms = on_gpu ? xp_hardware_n_sms() : 0,
                             .has_experts = arch.n_experts > 0,
                             .deepep = is_deepep(config, &arch),
                             .dim = arch.dim,
                             .moe_dim = arch.moe_dim,
                             .tokens = config->training.local_batch_size * config->training.seq_len,
                             .n_experts = arch.n_experts,
                             .top_k = arch.top_k,
                             .ep_size = (int)config->parallelism.expert_parallel_degree,
                             .dtype = on_gpu ? XP_BF16 : XP_F32};
    if (dtype && strcmp(dtype, "float32") == 0)
        facts->dtype = XP_F32;
    return xp_hardware_name(on_gpu, n_cores, facts->hardware, sizeof facts->hardware);
}

void xp_tuned_for_print(const xp_tune_facts *f, char *text, size_t n_text) {
    snprintf(text, n_text,
             "%s; %d rank%s (%s); %s; D %lld, F %lld, E %d, K %d; EP %d; %s rows; %lld tokens; "
             "expar " XP_VERSION,
             f->hardware, f->n_ranks, f->n_ranks == 1 ? "" : "s",
             f->processes ? "processes" : "threads", f->deepep ? "deepep" : "standard",
             (long long)f->dim, (long long)f->moe_dim, f->n_experts, f->top_k, f->ep_size,
             xp_dtype_name(f->dtype), (long long)f->tokens);
}

void xp_gemm_tuned_for_print(const xp_tune_facts *f, char *text, size_t n_text) {
    char library[64] = "";
    text[0] = '\0';
    if (f->on_gpu)
        xp_ops_gemm_library(library, sizeof library);
    if (library[0])
        snprintf(text, n_text, "%s; %s; expar " XP_VERSION, f->hardware, library);
}

/* Up to the next ";", and what is behind it. */
static const char *take_part(const char *text, size_t *length) {
    *length = strcspn(text, ";");
    const char *rest = text + *length;
    return rest + strspn(rest, "; ");
}

bool xp_tuned_for_equal(const char *tuned_for, const char *here, char *was, char *is,
                        size_t n_part) {
    while (*tuned_for || *here) {
        size_t n_was, n_is;
        const char *next_was = take_part(tuned_for, &n_was), *next_is = take_part(here, &n_is);
        if (n_was != n_is || strncmp(tuned_for, here, n_was) != 0) {
            snprintf(was, n_part, "%.*s", (int)n_was, n_was > 0 ? tuned_for : "");
            snprintf(is, n_part, "%.*s", (int)n_is, n_is > 0 ? here : "");
            return false;
        }
        tuned_for = next_was;
        here = next_is;
    }
    return true;
}
