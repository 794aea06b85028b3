/** Auxiliary load-balance loss and z-loss of the router, plain: fp64 inside. */
#include "ops/cpu/cpu_ops.h"

static int64_t count_valid(const int32_t *targets, int64_t n) {
    int64_t valid = 0;
    for (int64_t i = 0; i < n; i++)
        valid += targets[i] >= 0;
    return valid;
}

static int64_t count_assignments(const int32_t *ids, int64_t n, int expert) {
    int64_t assignments = 0;
    for (int64_t i = 0; i < n; i++)
        assignments += ids[i] == expert;
    return assignments;
}

/* One sequence: fills its row of the density and returns its part of the loss. */
static double sequence_aux(const xp_router_losses_args *args, int64_t s) {
    int64_t first = s * args->seq_len, n = args->seq_len;
    const float *scores = args->scores + first * args->n_experts;
    const int32_t *ids = args->topk_idx + first * args->top_k;
    double weight = (double)args->aux_coeff * (double)args->loss_scale *
                    (double)count_valid(args->targets + first, n);
    double loss = 0;
    for (int e = 0; e < args->n_experts; e++) {
        double selected = (double)count_assignments(ids, n * args->top_k, e);
        double density =
            weight * args->n_experts * selected / (double)(n * args->top_k) / (double)n;
        double sum = 0;
        for (int64_t t = 0; t < n; t++)
            sum += (double)scores[t * args->n_experts + e];
        args->aux_density[s * args->n_experts + e] = (float)density;
        loss += density * sum;
    }
    return loss;
}

xp_status xp_cpu_router_losses(xp_stream *stream, const xp_router_losses_args *args) {
    (void)stream;
    double aux = 0, z = 0;
    for (int64_t s = 0; args->aux_density && s < args->n_tokens / args->seq_len; s++)
        aux += sequence_aux(args, s);
    for (int64_t t = 0; args->lse && t < args->n_tokens; t++) {
        if (args->targets[t] < 0)
            args->lse[t] = 0;
        z += (double)args->lse[t] * (double)args->lse[t];
    }
    if (args->losses) {
        args->losses[0] += aux;
        args->losses[1] += z * (double)args->z_coeff * (double)args->loss_scale;
    }
    return XP_OK;
}
