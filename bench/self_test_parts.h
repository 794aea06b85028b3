/** What the self tests share. */
#ifndef XP_BENCH_SELF_TEST_PARTS_H
#define XP_BENCH_SELF_TEST_PARTS_H

#include "ops/ops.h"

/** A device and a compute stream. After an error xp_self_test_close() it too. */
typedef struct xp_self_test_device {
    xp_device *device;
    xp_stream *stream;
} xp_self_test_device;
XP_NODISCARD xp_status xp_self_test_open(xp_device_kind kind, int index, xp_self_test_device *d);
void xp_self_test_close(xp_self_test_device *d);

/** n values about 1 in size, rounded to dtype; room for n floats whatever the type. */
void xp_self_test_fill(uint64_t seed, int64_t n, xp_dtype dtype, float *values);
/** Host memory. @return XP_OK; XP_EINTERNAL: `what` is wrong, with the largest difference */
XP_NODISCARD xp_status xp_self_test_compare(const char *what, const void *got, const void *wanted,
                                            int64_t n, xp_dtype dtype);

#endif
