/** Short tests of what training here needs, for `expar doctor`. Each takes well under a second. */
#ifndef XP_BENCH_SELF_TEST_H
#define XP_BENCH_SELF_TEST_H

#include <stddef.h>
#include "expar/comm.h"

/** The fast ops against the plain ones on a few sizes. @param[out] text "cpu avx512: 6 ops agree"
 */
XP_NODISCARD xp_status xp_self_test_ops(char *text, size_t n_text);
/** An all-reduce between two rank threads. */
XP_NODISCARD xp_status xp_self_test_all_reduce(char *text, size_t n_text);
/** Rows to the experts of two rank threads and back, p2p and a2a, compared with what must come. */
XP_NODISCARD xp_status xp_self_test_ep(char *text, size_t n_text);
/** A file written, synced, read back and removed in `folder`. */
XP_NODISCARD xp_status xp_self_test_folder(const char *folder, char *text, size_t n_text);
/** The all-reduce between the ranks of a communicator that the launcher made. */
XP_NODISCARD xp_status xp_self_test_comm(xp_comm *comm);

#endif
