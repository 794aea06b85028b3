#include "core/remainder.h"

#include <string.h>
#include "expar/tensor.h"

#define SIGN 0x80000000U

void xp_remainder_split(int64_t n, const float *master, uint16_t *param, uint16_t *remainder,
                        float *v) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits, moment;
        memcpy(&bits, master + i, sizeof bits);
        memcpy(&moment, v + i, sizeof moment);
        param[i] = xp_bf16_from_f32(master[i]);
        remainder[i] = (uint16_t)bits;
        const uint32_t up = ((bits & 0xffffU) + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
        moment = (moment & ~SIGN) | up << 31;
        memcpy(v + i, &moment, sizeof moment);
    }
}

void xp_remainder_join(int64_t n, const uint16_t *param, const uint16_t *remainder, float *v,
                       float *master) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t moment;
        memcpy(&moment, v + i, sizeof moment);
        const uint32_t bits = (param[i] - (moment >> 31)) << 16 | remainder[i];
        moment &= ~SIGN;
        memcpy(v + i, &moment, sizeof moment);
        memcpy(master + i, &bits, sizeof bits);
    }
}
