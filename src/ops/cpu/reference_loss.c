/** Cross-entropy, plain: fp64 inside. */
#include <math.h>
#include "ops/cpu/cpu_ops.h"

static void row_loss(const xp_cross_entropy_args *args, int64_t r) {
    int64_t first = r * args->vocab;
    int32_t target = args->targets[r];
    bool counts = target >= 0 && target < args->vocab;
    double max = -INFINITY;
    double sum = 0;
    if (counts) {
        for (int64_t v = 0; v < args->vocab; v++)
            max = fmax(max, (double)xp_cpu_load(args->logits, args->dtype, first + v));
        for (int64_t v = 0; v < args->vocab; v++)
            sum += exp((double)xp_cpu_load(args->logits, args->dtype, first + v) - max);
        double logit = (double)xp_cpu_load(args->logits, args->dtype, first + target);
        args->loss[r] = (float)(max + log(sum) - logit);
    } else {
        /* A target past the vocabulary is a caller's mistake that must not pass for a masked token.
         */
        args->loss[r] = target < 0 ? 0 : NAN;
    }
    if (!args->write_grad)
        return;
    double scale = (double)*args->grad_scale;
    for (int64_t v = 0; v < args->vocab; v++) {
        double gradient = 0;
        if (counts) {
            double logit = (double)xp_cpu_load(args->logits, args->dtype, first + v);
            gradient = (exp(logit - max) / sum - (v == target ? 1 : 0)) * scale;
        }
        xp_cpu_store(args->logits, args->dtype, first + v, (float)gradient);
    }
}

static xp_status cross_entropy(xp_stream *stream, const xp_cross_entropy_args *args) {
    (void)stream;
    for (int64_t r = 0; r < args->n_rows; r++)
        row_loss(args, r);
    return XP_OK;
}

void xp_cpu_loss_reference(xp_ops *ops) {
    ops->cross_entropy = cross_entropy;
}
