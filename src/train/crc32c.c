#include "train/crc32c.h"

uint32_t xp_crc32c(const void *data, size_t n_bytes) {
    const unsigned char *bytes = data;
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < n_bytes; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1u)));
    }
    return ~crc;
}

uint32_t xp_crc32c_masked(const void *data, size_t n_bytes) {
    uint32_t crc = xp_crc32c(data, n_bytes);
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}
