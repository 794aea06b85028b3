/** The search of `expar tune`: settings of dispatch and combine on one MoE layer of a model, each in turns with the default. */
#ifndef XP_BENCH_TUNE_H
#define XP_BENCH_TUNE_H

#include "config/config.h"
#include "layer.h"
#include "tune/tuned_for.h"

#define XP_TUNE_MAX     16
#define XP_TUNE_DEFAULT (-1)
/** Less than this of a layer's time is not worth another setting than the default. */
#define XP_TUNE_LEAST_GAIN 0.01

/** Two settings in turns: the default's and the other's pass, and their ratio with the bounds of its median (95 %). */
typedef struct xp_tune_pair {
    int n_pairs;
    double default_s, other_s;
    double ratio, low, high;
} xp_tune_pair;

typedef enum xp_tune_verdict {
    XP_TUNE_NOT_MEASURED = 0, /* no time left */
    XP_TUNE_FASTER,           /* by XP_TUNE_LEAST_GAIN or more, outside the noise */
    XP_TUNE_SLOWER,           /* outside the noise */
    XP_TUNE_SAME,             /* within the noise, or faster by less */
    XP_TUNE_UNCLEAR           /* too few passes in the time there was */
} xp_tune_verdict;

xp_tune_verdict xp_tune_judge(const xp_bench_layer_result *result, xp_tune_pair *pair);

typedef struct xp_tune_candidate {
    char name[64]; /* "deepep.num_sms 24" */
    xp_bench_setting setting;
    const char *why_not; /* it is only told, not written, and why; NULL: may be written */
    bool same_bits;
    xp_tune_verdict verdict;
    xp_tune_pair pair;
} xp_tune_candidate;

typedef struct xp_tune_args {
    const xp_config *config;
    const xp_tune_facts *facts;
    const xp_bench_host *host;
    int n_ranks, n_cores;
    double seconds;
    /* Measures two settings; NULL: xp_bench_layer() */
    xp_status (*layer)(const xp_bench_host *host, const xp_bench_layer_case *c,
                       xp_bench_layer_result *result);
    /* rank 0: before and while something is measured; `done` of `total` seconds are over at most */
    void (*progress)(void *context, const char *what, double done, double total);
    void (*measured)(void *context, const xp_tune_candidate *candidate);
    void *context;
} xp_tune_args;

typedef struct xp_tune_report {
    int64_t n_tokens; /* that were measured with */
    int n;
    xp_tune_candidate candidates[XP_TUNE_MAX];
    int best;      /* of the candidates that may be written the fastest, else XP_TUNE_DEFAULT */
    int winner;    /* the same after the last comparison, both orders */
    bool has_pair; /* there was a last comparison */
    xp_tune_pair pair;
    double seconds;
} xp_tune_report;

/** What would be measured, without measuring. */
XP_NODISCARD xp_status xp_tune_plan(const xp_tune_args *args, xp_tune_report *report);
/**
 * Measure. The default is one side of every comparison; the best candidate is compared with it once more at the
 * end, and wins only if it is faster then, too.
 * @return XP_OK; XP_ENOMEM; XP_ECOMM
 */
XP_NODISCARD xp_status xp_tune_run(const xp_tune_args *args, xp_tune_report *report);

#endif
