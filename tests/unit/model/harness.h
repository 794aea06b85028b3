/** A small model with a batch, for the tests of src/model. Failures fail the running test. */
#ifndef XP_TESTS_MODEL_HARNESS_H
#define XP_TESTS_MODEL_HARNESS_H

#include "model/model.h"

typedef struct xp_test_model {
    xp_arch arch;
    xp_device *device;
    xp_stream *stream;
    xp_model *model;
    int64_t n_tokens;
    int32_t *tokens, *targets, *positions, *doc_start;
    xp_model_batch batch;
} xp_test_model;

/** Fails the test with the last error unless XP_OK. */
void xp_test_must(xp_status status);
/** D 20, 2 layers, 3/1 heads of 6, 6 experts of 7, top-2, vocabulary 23. */
xp_arch xp_test_moe_arch(void);
/** The same with a dense FFN of 18. */
xp_arch xp_test_dense_arch(void);
/** fp32, 2 rows of 7, no recomputation, capacity factor 2; `arch` is borrowed. */
xp_model_args xp_test_args(const xp_arch *arch);
/** Model on a CPU device of n_threads with weights from xp_test_uniform() and a batch: args.device
 * is filled in. */
void xp_test_model_create(xp_model_args args, int n_threads, xp_test_model *t);
void xp_test_model_create_on(const xp_device_args *device, xp_model_args args, xp_test_model *t);
void xp_test_model_destroy(xp_test_model *t);
/** One training pass; the loss. */
xp_model_loss xp_test_step(xp_test_model *t);
/** A copy of the gradients. Caller frees. */
float *xp_test_grads(const xp_test_model *t);

/** i-th of the values in [-0.5, 0.5) that belong to a name: what make_model_fixture.py calls
 * uniform(). */
float xp_test_uniform(const char *name, int64_t i);
/** Relative distance |a - b| / |b|; |a| when b is zero. */
double xp_test_distance(const float *a, const float *b, int64_t n);

#endif
