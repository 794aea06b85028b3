#include "ops/cpu/cpu_ops.h"

void xp_cpu_attention_fast(xp_attention_ops *ops, unsigned caps) {
    (void)ops;
    (void)caps;
}
