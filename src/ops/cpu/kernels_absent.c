/* In place of the *_kernels.c files on machines that are not x86-64: there the capabilities that
 * lead to them are never set. */
#include <stddef.h>
#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/norm_kernels.h"
#include "ops/cpu/row_kernels.h"

const xp_row_kernels xp_row_kernels_avx2 = {0};
const xp_row_kernels xp_row_kernels_avx512 = {0};

const xp_cpu_attention_kernels *xp_cpu_attention_kernels_avx2(void) {
    return NULL;
}
const xp_cpu_attention_kernels *xp_cpu_attention_kernels_avx512(void) {
    return NULL;
}
const xp_cpu_norm_kernels *xp_cpu_norm_kernels_avx2(void) {
    return NULL;
}
const xp_cpu_norm_kernels *xp_cpu_norm_kernels_avx512(void) {
    return NULL;
}
