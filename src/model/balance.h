/** Expert load: the bias update that balances without a loss term, and the load figures. */
#ifndef XP_MODEL_BALANCE_H
#define XP_MODEL_BALANCE_H

#include <stdint.h>

/**
 * One layer: d = coeff * sign(mean - count); d -= mean(d); bias += d.
 * @param counts  [E] tokens of a step over all ranks that see different data
 * @param bias    [E] updated
 */
void xp_balance_update(int n_experts, double coeff, const int64_t *counts, float *bias);

/** Largest over mean tokens of an expert; 1 for an even load, 0 without tokens. */
double xp_balance_max_over_mean(int n_experts, const int64_t *counts);
/** Fraction of the assignments that go to the busiest of n_ranks ranks with n_experts / n_ranks each. */
double xp_balance_busiest_share(int n_experts, int n_ranks, const int64_t *counts);

#endif
