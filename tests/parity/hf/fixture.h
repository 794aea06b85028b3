/**
 * One recorded fixture (make_fixtures.py, make_bf16.py) opened for a test, and our model with its
 * weights. Everything here fails the running cmocka test when something is not right.
 */
#ifndef HF_PARITY_FIXTURE_H
#define HF_PARITY_FIXTURE_H

#include "checkpoint/hf.h"
#include "model/model.h"
#include "parallel/shard.h"

#define N_STEPS 12 /* batches of a fixture, and AdamW steps over them */

/** Where the models run and the fixtures lie: from the command line. */
typedef struct parity_options {
    xp_device_args device;
    const char *fixtures;
} parity_options;
extern parity_options parity_opts;

typedef struct parity {
    const char *name;
    xp_arch arch;
    xp_dtype dtype;
    xp_hf_reader *weights, *grads;
    xp_st_file *record;
    xp_device *device;
    xp_stream *stream;
    int64_t n_rows, seq_len;
    const int64_t *rows; /* [N_STEPS, B, S + 1] */
    int32_t *tokens, *targets, *positions;
} parity;

/** One training run of the fixture's weights: model and optimizer state. */
typedef struct parity_run {
    xp_model *model;
    xp_shard *shard;
    xp_mesh mesh;
} parity_run;

void must(xp_status status);
void fixture_path(char *path, size_t n, const char *name, const char *file);
void open_parity(const char *name, xp_dtype dtype, parity *p);
void close_parity(parity *p);
/** Fails the test when there is none of that name. */
const xp_st_tensor *recorded(const parity *p, const char *name);

/** Our model holding the fixture's weights, rounded to p->dtype. */
xp_model *make_model(const parity *p, xp_recompute recompute, bool inference);
/** Batch `step`; valid until the next call for the same fixture. */
xp_model_batch batch_of(const parity *p, int step);
double mean_loss(const parity *p, xp_model *model);
/** n elements of the device as fp32. Caller frees. */
float *get_values(const parity *p, const void *home, int64_t n, xp_dtype dtype);

void open_run(const parity *p, xp_recompute recompute, parity_run *run);
void close_run(parity_run *run);
/** Reduction, clipping and AdamW after a backward pass. @return the norm before clipping */
double update_run(const parity *p, parity_run *run, int step);

/** bf16.c: bf16 against what PyTorch's bf16 is off by. @return false: nothing recorded, a line says
 * so */
bool check_bf16(const char *name);

#endif
