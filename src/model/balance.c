#include "model/balance.h"

static int64_t sum(int n, const int64_t *counts) {
    int64_t total = 0;
    for (int e = 0; e < n; e++)
        total += counts[e];
    return total;
}

/* sign(mean - count) without a division: exact. */
static int direction(int n_experts, int64_t total, int64_t count) {
    int64_t scaled = count * n_experts;
    return (total > scaled) - (total < scaled);
}

void xp_balance_update(int n_experts, double coeff, const int64_t *counts, float *bias) {
    int64_t total = sum(n_experts, counts);
    int64_t balance = 0;
    for (int e = 0; e < n_experts; e++)
        balance += direction(n_experts, total, counts[e]);
    double mean = coeff * (double)balance / n_experts;
    for (int e = 0; e < n_experts; e++) {
        double d = coeff * direction(n_experts, total, counts[e]) - mean;
        bias[e] = (float)((double)bias[e] + d);
    }
}

double xp_balance_max_over_mean(int n_experts, const int64_t *counts) {
    int64_t total = sum(n_experts, counts);
    int64_t max = 0;
    for (int e = 0; e < n_experts; e++)
        max = counts[e] > max ? counts[e] : max;
    return total > 0 ? (double)max * n_experts / (double)total : 0;
}

double xp_balance_busiest_share(int n_experts, int n_ranks, const int64_t *counts) {
    int64_t total = sum(n_experts, counts);
    int each = n_experts / n_ranks;
    int64_t max = 0;
    for (int r = 0; r < n_ranks; r++) {
        int64_t own = sum(each, counts + r * each);
        max = own > max ? own : max;
    }
    return total > 0 ? (double)max / (double)total : 0;
}
