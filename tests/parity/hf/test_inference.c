/*
 * The way of `expar eval` and `expar generate` on a device: loss and logits of the recorded models in fp32 against
 * transformers', in bf16 no farther than PyTorch's own bf16 run; greedy text in fp32 token by token as on the CPU.
 *
 * usage: test_inference [--device guard|cuda]     (guard: a CPU device that stands for a GPU)
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device/gpu_environment.h"
#include "core/file.h"
#include "core/rng.h"
#include "fixture.h"
#include "train/evaluate.h"

#define N_PROMPTS   5
#define N_GENERATED 100
#define N_PROMPT    9

/* fp32: relative for the loss, absolute for a logit. */
#define LOSS_TOLERANCE  1e-5
#define LOGIT_TOLERANCE 1e-3
/* bf16, root mean squares over the batches. All models together (geometric mean) are no farther from fp32 than PyTorch's; one
 * alone at most this many times as far: few tokens decide its figure, see bf16.c. */
#define MOST      1.5
#define MOST_LOSS 2.0

parity_options parity_opts = {.device = {.kind = XP_DEVICE_CPU, .n_threads = 2},
                              .fixtures = XP_SOURCE_DIR "/tests/parity/hf/fixtures"};
static const char *device_name = "cpu", *device_caps = "test_protect,test_defer";

static const char *const names[] = {"moe_gqa", "moe_odd", "moe_nonorm_tied", "dense_gqa",
                                    "dense_odd"};
#define N_NAMES (sizeof names / sizeof names[0])

static xp_inference_args inference_args(const char *folder, bool on_device, const char *dtype) {
    return (xp_inference_args){.hf = folder,
                               .step = -1,
                               .device = on_device ? device_name : "cpu",
                               .caps = on_device ? device_caps : NULL,
                               .dtype = dtype,
                               .n_threads = 2};
}

/* The recorded rows of a step as a file of token ids. */
static void write_rows(const parity *p, int step, char *path) {
    const int64_t n = p->n_rows * (p->seq_len + 1);
    uint32_t *ids = malloc((size_t)n * sizeof *ids);
    int fd = mkstemps(path, 4);
    assert_true(fd >= 0 && ids != NULL);
    for (int64_t i = 0; i < n; i++)
        ids[i] = (uint32_t)p->rows[step * n + i];
    assert_int_equal(write(fd, ids, (size_t)n * sizeof *ids), (ssize_t)((size_t)n * sizeof *ids));
    close(fd);
    free(ids);
}

/* Loss over the recorded rows, and the logits [n]. Caller frees. */
static float *evaluate(const parity *p, int step, const char *dtype, double *loss) {
    const int64_t n = p->n_rows * p->seq_len * p->arch.vocab_size;
    char folder[512], path[] = "/tmp/expar_inference_XXXXXX.bin",
                      logits_path[] = "/tmp/expar_logits_XXXXXX";
    fixture_path(folder, sizeof folder, p->name, "");
    write_rows(p, step, path);
    xp_inference_args open = inference_args(folder, true, dtype);
    open.n_rows = 1; /* several batches */
    open.seq_len = p->seq_len;
    open.keep_logits = true;
    xp_inference inf;
    must(xp_inference_open(&open, &inf));
    const xp_dataset_args data = {.kind = "tokens",
                                  .path = path,
                                  .vocab_size = inf.arch.vocab_size,
                                  .seq_len = p->seq_len,
                                  .eos_id = -1,
                                  .token_type = "uint32"};
    xp_dataset *dataset = NULL;
    must(xp_dataset_open(&data, &dataset));
    FILE *file = fdopen(mkstemp(logits_path), "w+b");
    assert_non_null(file);
    xp_evaluate_args args = {
        .inference = &inf, .dataset = dataset, .n_rows = 1, .max_rows = -1, .logits = file};
    xp_evaluation result;
    must(xp_evaluate(&args, &result));
    assert_int_equal(result.n_rows, p->n_rows);
    *loss = result.loss;
    float *values = malloc((size_t)n * sizeof *values);
    assert_non_null(values);
    rewind(file);
    assert_int_equal(fread(values, sizeof *values, (size_t)n, file), n);
    fclose(file);
    unlink(path);
    unlink(logits_path);
    xp_dataset_close(dataset);
    xp_inference_close(&inf);
    return values;
}

static void test_fp32_is_transformers(void **state) {
    (void)state;
    for (size_t i = 0; i < N_NAMES; i++) {
        parity p;
        double loss = 0;
        open_parity(names[i], XP_F32, &p);
        const double expected = ((const double *)recorded(&p, "losses")->data)[0];
        const xp_st_tensor *theirs = recorded(&p, "logits");
        float *logits = evaluate(&p, 0, "float32", &loss);
        if (!(fabs(loss - expected) <= LOSS_TOLERANCE * expected))
            fail_msg("%s: loss %.9g, transformers has %.9g", names[i], loss, expected);
        for (int64_t e = 0; e < theirs->n_elements; e++) {
            const float their = ((const float *)theirs->data)[e];
            if (!(fabsf(logits[e] - their) <= (float)LOGIT_TOLERANCE))
                fail_msg("%s: logit %lld is %.7g, transformers has %.7g", names[i], (long long)e,
                         (double)logits[e], (double)their);
        }
        free(logits);
        close_parity(&p);
    }
}

/* PyTorch's own bf16 error of this model's loss and logits, from bf16.json: the differences of its bf16 and fp32 runs. */
static bool recorded_bf16(const char *name, double *loss, double *logits) {
    char path[512];
    fixture_path(path, sizeof path, name, "bf16.json");
    json_t *root = json_load_file(path, 0, NULL);
    if (!root)
        return false;
    *loss = json_number_value(json_object_get(root, "loss"));
    *logits = json_number_value(json_object_get(root, "logits"));
    json_decref(root);
    return true;
}

/* Square of the relative distance. */
static double distance(const float *a, const float *b, int64_t n) {
    double sum = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sum / norm;
}

static void test_bf16_is_as_close_as_pytorch(void **state) {
    (void)state;
    double all_losses = 0, all_logits = 0; /* logarithms of our error over PyTorch's */
    for (size_t i = 0; i < N_NAMES; i++) {
        parity p;
        double their_loss = 0, their_logits = 0, loss_squares = 0, logit_squares = 0;
        open_parity(names[i], XP_F32, &p);
        assert_true(recorded_bf16(names[i], &their_loss, &their_logits));
        for (int step = 0; step < N_STEPS; step++) {
            double wide_loss = 0, narrow_loss = 0;
            float *wide = evaluate(&p, step, "float32", &wide_loss);
            float *narrow = evaluate(&p, step, "bfloat16", &narrow_loss);
            const double off = (narrow_loss - wide_loss) / wide_loss;
            loss_squares += off * off;
            logit_squares += distance(narrow, wide, p.n_rows * p.seq_len * p.arch.vocab_size);
            free(wide);
            free(narrow);
        }
        const double loss = sqrt(loss_squares / N_STEPS), logits = sqrt(logit_squares / N_STEPS);
        print_message("%s: bf16 loss off by %.2e (PyTorch %.2e), logits by %.2e (PyTorch %.2e)\n",
                      names[i], loss, their_loss, logits, their_logits);
        if (!(loss <= MOST_LOSS * their_loss && logits <= MOST * their_logits))
            fail_msg("%s: bf16 is farther from fp32 than PyTorch's", names[i]);
        all_losses += log(loss / their_loss) / N_NAMES;
        all_logits += log(logits / their_logits) / N_NAMES;
        close_parity(&p);
    }
    print_message("together: %.2f of PyTorch's loss error, %.2f of its logits' error\n",
                  exp(all_losses), exp(all_logits));
    if (!(all_losses <= 0 && all_logits <= 0))
        fail_msg("bf16 is farther from fp32 than PyTorch's");
}

static int32_t greedy(const float *logits, int64_t vocab) {
    int64_t best = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

static void generate(const char *name, bool on_device, int prompt, int32_t out[N_GENERATED]) {
    char folder[512];
    fixture_path(folder, sizeof folder, name, "");
    xp_inference_args open = inference_args(folder, on_device, "float32");
    open.n_rows = 1;
    open.seq_len = 4; /* the prompt goes in pieces */
    xp_inference inf;
    must(xp_inference_open(&open, &inf));
    xp_decoder *decoder = NULL;
    must(xp_decoder_create(inf.model, N_PROMPT + N_GENERATED, &decoder));
    const int64_t vocab = inf.arch.vocab_size;
    int32_t ids[N_PROMPT];
    float *logits = malloc((size_t)vocab * sizeof *logits);
    assert_non_null(logits);
    for (int i = 0; i < N_PROMPT; i++)
        ids[i] = (int32_t)xp_rng_below((uint64_t)prompt, xp_rng_stream("prompt"), (uint64_t)i,
                                       (uint64_t)vocab);
    must(xp_decoder_feed(decoder, ids, N_PROMPT, logits));
    for (int i = 0; i < N_GENERATED; i++) {
        out[i] = greedy(logits, vocab);
        must(xp_decoder_feed(decoder, &out[i], 1, logits));
    }
    free(logits);
    xp_decoder_destroy(decoder);
    xp_inference_close(&inf);
}

static void test_greedy_text_is_the_cpu_s(void **state) {
    (void)state;
    for (size_t i = 0; i < N_NAMES; i++)
        for (int prompt = 0; prompt < N_PROMPTS; prompt++) {
            int32_t here[N_GENERATED], there[N_GENERATED];
            generate(names[i], false, prompt, here);
            generate(names[i], true, prompt, there);
            for (int t = 0; t < N_GENERATED; t++)
                if (here[t] != there[t])
                    fail_msg("%s, prompt %d: token %d is %d, on the CPU %d", names[i], prompt, t,
                             there[t], here[t]);
        }
}

static bool parse(int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        const bool is_device = strcmp(argv[i], "--device") == 0;
        if (strcmp(argv[i], "--fixtures") == 0 && value[0] != '\0') {
            parity_opts.fixtures = value;
        } else if (is_device && strcmp(value, "cuda") == 0) {
            device_name = "cuda";
            device_caps = NULL;
        } else if (!is_device || strcmp(value, "guard") != 0) {
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv) {
    xp_gpu_environment_set();
    if (!parse(argc, argv)) {
        fprintf(stderr, "usage: %s [--device guard|cuda] [--fixtures FOLDER]\n", argv[0]);
        return 2;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp32_is_transformers),
        cmocka_unit_test(test_bf16_is_as_close_as_pytorch),
        cmocka_unit_test(test_greedy_text_is_the_cpu_s),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
