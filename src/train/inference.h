/**
 * A trained model for forward passes: from a Hugging Face folder, or from a training checkpoint of
 * any rank count. On the CPU in fp32, or on a GPU in fp32 or bf16. Several ranks share the experts; everything else
 * is on each, and all of them compute the same rows.
 */
#ifndef XP_TRAIN_INFERENCE_H
#define XP_TRAIN_INFERENCE_H

#include "checkpoint/state.h"
#include "data/tokenizer.h"
#include "model/model.h"

typedef struct xp_inference_args {
    xp_comm *comm; /* the ranks that share the experts, borrowed; NULL = one rank. Opening and every
                                pass are collective */
    const char *flavor;      /* a flavor with random weights, to measure speed; or */
    const char *hf;          /* Hugging Face folder; or */
    const char *checkpoint;  /* a run's dump folder, its checkpoint folder, or one step-N folder */
    int64_t step;            /* of the checkpoint; -1 = the newest complete one */
    const char *tokenizer;   /* folder or tokenizer.json; NULL: the Hugging Face folder, or what the
                                run used */
    bool need_tokenizer;     /* fail without one */
    int64_t n_rows, seq_len; /* of a batch, at most */
    bool keep_logits;
    bool document_attention;
    const char
        *device; /* "cpu", "cuda"; NULL or "auto": a GPU when this machine has one that works */
    const char *caps;  /* xp_device_args.caps */
    const char *dtype; /* "float32", "bfloat16"; NULL: float32 on the CPU, bfloat16 on a GPU */
    int n_threads;     /* 0 = all cores */
    void (*warn)(void *context, const char *text); /* about tensors that nothing uses, or NULL */
    void *warn_context;
} xp_inference_args;

typedef struct xp_inference {
    xp_arch arch;
    xp_device *device;
    xp_stream *stream;
    xp_model *model;
    xp_tokenizer *tokenizer; /* NULL when there is none */
    float *bias;             /* [n_layers, E] the trained expert bias; NULL in a dense model */
    xp_dtype dtype;          /* of weights and activations */
    bool has_bias;           /* some of it is not zero */
    char source[600];        /* for people: "outputs/debug_moe/checkpoint/step-600" */
    int64_t step;            /* of a checkpoint, else -1 */
} xp_inference;

/** @return XP_OK; XP_ENOENT, XP_EFORMAT, XP_ECONFIG naming what does not fit. After an error
 * *inference holds nothing */
XP_NODISCARD xp_status xp_inference_open(const xp_inference_args *args, xp_inference *inference);
void xp_inference_close(xp_inference *inference);
/** Use the trained expert bias (as after opening) or none. */
XP_NODISCARD xp_status xp_inference_use_bias(xp_inference *inference, bool use);

/** Open the checkpoint that `path` means: a dump folder, a checkpoint folder or a step-N folder. */
XP_NODISCARD xp_status xp_inference_find_ckpt(const char *path, int64_t step, xp_ckpt **ckpt);

#endif
