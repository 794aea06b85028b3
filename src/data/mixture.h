/**
 * Rows of several sources in given shares. The order is a fixed pattern that repeats: XP_MIXTURE_PERIOD rows, in which each
 * source has its share, spread as evenly as it can be. So row n of the mixture is row k of one source, both known from n.
 */
#ifndef XP_DATA_MIXTURE_H
#define XP_DATA_MIXTURE_H

#include <stdint.h>
#include "expar/status.h"

#define XP_MIXTURE_PERIOD      10000
#define XP_MIXTURE_MAX_SOURCES 256

typedef struct xp_mixture {
    int n_sources;
    int32_t *quota;  /* [n_sources] rows of a period */
    uint8_t *source; /* [XP_MIXTURE_PERIOD] */
    int32_t *
        rank; /* [XP_MIXTURE_PERIOD] how many rows of the same source come before it in the period */
} xp_mixture;

/** @param weights [n] positive; only their ratios count
 *  @return XP_OK; XP_ECONFIG: a share below half a row of the period; XP_ENOMEM */
XP_NODISCARD xp_status xp_mixture_create(const double *weights, int n, xp_mixture *mixture);
void xp_mixture_destroy(xp_mixture *mixture);
/** Row n of the mixture is row *row of source *source. */
void xp_mixture_row(const xp_mixture *mixture, int64_t n, int *source, int64_t *row);

#endif
