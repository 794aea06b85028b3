/** Which algorithms of a GPU's library compute the dense GEMMs: measured by `expar tune`, given to runs as text. */
#ifndef XP_OPS_GEMM_CHOICE_H
#define XP_OPS_GEMM_CHOICE_H

#include "ops/op_gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

#define XP_GEMM_CHOICES_MAX 64
#define XP_GEMM_CHOICE_TEXT 96

/** "16384x5120x2048:nt:bf16:bf16:3": m x n x k, which operands are stored transposed, types of a, b and of c
 * ("+": added to), index. */
void xp_gemm_choice_print(const xp_gemm_choice *choice, char text[XP_GEMM_CHOICE_TEXT]);
/** @return XP_ECONFIG: no such text. Times are 0 */
XP_NODISCARD xp_status xp_gemm_choice_parse(const char *text, xp_gemm_choice *choice);

/**
 * The device computes these shapes with the chosen algorithms from now on and all others with the library's own, also
 * where it has computed the shape before; an index past the library's algorithms means 0. Nothing is timed any more.
 * Nothing happens on other devices than GPUs.
 * @param n  at most XP_GEMM_CHOICES_MAX
 */
XP_NODISCARD xp_status xp_ops_gemm_choose(xp_device *device, const xp_gemm_choice *choices, int n);
/**
 * From now on a GEMM of a new shape times the library's deterministic algorithms on its own operands, and the
 * fastest serves. Its result is right all the same. GPUs only.
 */
XP_NODISCARD xp_status xp_ops_gemm_tune(xp_device *device);
/** The shapes that were timed, in the order in which they came. @return how many, at most `capacity` */
int xp_ops_gemm_tuned(xp_device *device, xp_gemm_choice *choices, int capacity);
/** What a choice's index belongs to: "cuBLASLt 13.1.0"; "" without a GPU backend. */
void xp_ops_gemm_library(char *text, size_t n_text);

/** xp_cuda_backend.gemm_choices. */
typedef struct xp_gemm_choice_calls {
    xp_status (*choose)(xp_device *device, const xp_gemm_choice *choices, int n);
    xp_status (*tune)(xp_device *device);
    int (*tuned)(xp_device *device, xp_gemm_choice *choices, int capacity);
} xp_gemm_choice_calls;

#ifdef __cplusplus
}
#endif
#endif
