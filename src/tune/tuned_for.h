/** What tuned values belong to: machine, ranks, model, and the library that measured them. */
#ifndef XP_TUNE_TUNED_FOR_H
#define XP_TUNE_TUNED_FOR_H

#include "config/config.h"
#include "expar/tensor.h"

typedef struct xp_tune_facts {
    char hardware[256];
    int n_ranks; /* on this machine */
    bool processes;
    bool on_gpu, has_experts;
    int n_sms;                    /* of the GPU; 0: on the CPU, or not known */
    bool deepep;                  /* parallelism.expert_parallel_comm_backend */
    int64_t dim, moe_dim, tokens; /* tokens: of a microbatch on a rank */
    int n_experts, top_k, ep_size;
    xp_dtype dtype; /* of rows */
} xp_tune_facts;

/**
 * @param n_ranks    on this machine
 * @param processes  ranks are processes
 * @param n_cores    of this process
 */
XP_NODISCARD xp_status xp_tune_facts_of(const xp_config *config, int n_ranks, bool processes,
                                        int n_cores, xp_tune_facts *facts);
/** "NVIDIA H200; 8 ranks (processes); deepep; D 2048, F 768, E 128, K 8; EP 8; bf16 rows; 32768 tokens; expar
 * 0.1.0" */
void xp_tuned_for_print(const xp_tune_facts *facts, char *text, size_t n_text);
/** "NVIDIA H200; cuBLASLt 13.1.0; expar 0.1.0": what GEMM algorithms belong to. "" without a GPU or its library. */
void xp_gemm_tuned_for_print(const xp_tune_facts *facts, char *text, size_t n_text);
/**
 * Whether two such texts are the same.
 * @param[out] was, is  the first part that differs, when they are not
 */
bool xp_tuned_for_equal(const char *tuned_for, const char *here, char *was, char *is,
                        size_t n_part);

#endif
