/** Short tests of what training here needs, for `expar doctor`. Each takes well under a second; on a GPU the first one
 * loads libraries and kernels. */
#ifndef XP_BENCH_SELF_TEST_H
#define XP_BENCH_SELF_TEST_H

#include "device.h"
#include "ops/ops.h"

/** The fast ops against the plain ones on a few sizes. @param[out] text "cpu avx512 agrees with the plain code in 5 ops"
 */
XP_NODISCARD xp_status xp_self_test_ops(char *text, size_t n_text);
/** A device and a table of ops for it against the plain ones, on rows of that type. The error names the device, the op
 * and the largest difference. */
XP_NODISCARD xp_status xp_self_test_table(xp_device *device, const xp_ops *ops, xp_dtype dtype,
                                          char *text, size_t n_text);
/** An all-reduce between two rank threads. */
XP_NODISCARD xp_status xp_self_test_all_reduce(char *text, size_t n_text);
/** Rows to the experts of two rank threads and back, p2p and a2a, compared with what must come. */
XP_NODISCARD xp_status xp_self_test_ep(char *text, size_t n_text);
/** A file written, synced, read back and removed in `folder`. */
XP_NODISCARD xp_status xp_self_test_folder(const char *folder, char *text, size_t n_text);
/** The all-reduce between the ranks of a communicator that the launcher made. */
XP_NODISCARD xp_status xp_self_test_comm(xp_comm *comm);

/* ---- GPUs -------------------------------------------------------------------------------- */

/** The ops of a GPU against the plain CPU code, bf16. */
XP_NODISCARD xp_status xp_self_test_gpu_ops(int gpu, char *text, size_t n_text);
/** Attention of a GPU, forward and backward, against the plain CPU code, bf16.
 * @param[out] text      what computed the forward pass: "cuDNN" or "own kernels"
 * @param[out] why_not   why cuDNN did not; "" where it did, or is not asked for on this device */
XP_NODISCARD xp_status xp_self_test_gpu_attention(int gpu, char *text, size_t n_text, char *why_not,
                                                  size_t n_why_not);

/** The GPU of each rank, chosen as for training. Collective. @param[out] has  false: no rank sees a GPU, nothing is
 * opened. After an error xp_bench_device_close() it too. */
XP_NODISCARD xp_status xp_self_test_gpus_open(const xp_bench_rank *rank, xp_bench_device *d,
                                              bool *has);
/** A sum of the ranks' GPUs. Collective. */
XP_NODISCARD xp_status xp_self_test_gpus_sum(const xp_bench_rank *rank, const xp_bench_device *d,
                                             char *text, size_t n_text);
/** Rows from every GPU to the experts of all and back, by the transport that `deepep` chooses here and by a2a.
 * Collective. */
XP_NODISCARD xp_status xp_self_test_gpus_ep(const xp_bench_rank *rank, const xp_bench_device *d,
                                            char *text, size_t n_text);

#endif
