/* How far a candidate may be from the plain code. Every row says why. */
#include "checkop.h"

static const ck_tolerance_row rows[CK_N_TOLERANCES] = {
    [CK_EXACT] = {0, 0, 0, 0, "integers and copies have one right answer"},
    [CK_ROUNDED] =
        {2e-6, 0x1p-7, 1e-6, 0x1p-9,
         "a few fp32 roundings an element; in bf16 one unit where they end on two sides of a tie"},
    [CK_SUM] = {1e-5, 0x1p-7, 1e-5, 0x1p-9,
                "fp32 sums of up to some thousand terms in another order than the plain fp64 sum"},
    [CK_CHAIN] = {5e-5, 0x1p-6, 5e-5, 0x1p-7,
                  "sums of products of sums and exponentials: rounding of each link adds up"},
    [CK_F64_SUM] = {1e-12, 1e-12, 1e-14, 1e-14, "fp64 sums in another order"},
};

const ck_tolerance_row *ck_tolerance_get(ck_tolerance tolerance) {
    return &rows[tolerance];
}
