/**
 * Large arrays between the host and a device whose memory it cannot see: in chunks, through two
 * buffers that the device reads while the rank's threads fill the other. For starting, saving and
 * loading; a step does not use it.
 */
#ifndef XP_TRAIN_STAGING_H
#define XP_TRAIN_STAGING_H

#include "expar/device.h"

typedef struct xp_staging xp_staging;

/** @param stream borrowed. @param n_threads that fill and empty the buffers */
XP_NODISCARD xp_status xp_staging_create(xp_device *device, xp_stream *stream, int n_threads,
                                         xp_staging **staging);
void xp_staging_destroy(xp_staging *staging);

/** Copy [n] to the device, or from it. Done when it returns. */
XP_NODISCARD xp_status xp_staging_upload(xp_staging *staging, float *device_data, const float *host,
                                         int64_t n);
XP_NODISCARD xp_status xp_staging_download(xp_staging *staging, float *host,
                                           const float *device_data, int64_t n);

/** fp32 masters and second moments as the device keeps them: see core/remainder.h. */
typedef struct xp_master_parts {
    uint16_t *param, *remainder; /* [n] */
    float *v;                    /* [n] */
} xp_master_parts;
/** The same for both of them, [n] each on the host. */
XP_NODISCARD xp_status xp_staging_download_masters(xp_staging *staging,
                                                   const xp_master_parts *device, float *master,
                                                   float *v, int64_t n);
XP_NODISCARD xp_status xp_staging_upload_masters(xp_staging *staging, const xp_master_parts *device,
                                                 const float *master, const float *v, int64_t n);

#endif
