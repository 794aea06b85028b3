/** CRC-32C (Castagnoli), reflected, as RFC 3720 appendix B.4 tests it; and TFRecord's masked form.
 */
#ifndef XP_TRAIN_CRC32C_H
#define XP_TRAIN_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t xp_crc32c(const void *data, size_t n_bytes);
/** Rotated and offset, so that a CRC of data that holds CRCs stays a good check. */
uint32_t xp_crc32c_masked(const void *data, size_t n_bytes);

#endif
