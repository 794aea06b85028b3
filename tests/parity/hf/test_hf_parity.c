/*
 * Our model against what Hugging Face transformers recorded (make_fixtures.py): loss, logits, the
 * gradient of every parameter, and the losses and gradient norms of 12 AdamW steps, in fp32; in
 * bf16 against what PyTorch's own bf16 run of the same model is off by (bf16.c).
 *
 * usage: test_hf_parity [--device cpu|guard|cuda] [--fixtures FOLDER]
 *        (guard: a CPU device that stands for a GPU)
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/gpu_environment.h"
#include "fixture.h"

parity_options parity_opts = {.device = {.kind = XP_DEVICE_CPU, .n_threads = 2},
                              .fixtures = XP_SOURCE_DIR "/tests/parity/hf/fixtures"};

/*
 * fp32, relative. Both sides compute in fp32 with sums in another order; 1e-6 is a few units in the
 * last place of a mean loss, gradients are compared by the norm of the difference. Training
 * amplifies rounding: ten times that over 12 steps. A GPU's exp and its tiles add a few roundings
 * of their own, the sums stay fp32: TF32 would be off by 1e-3 in the loss's first step already.
 */
typedef struct tolerances {
    double loss, trained_loss, gradient, logit;
} tolerances;

static tolerances allowed(void) {
    return parity_opts.device.kind == XP_DEVICE_CUDA ? (tolerances){1e-5, 1e-5, 1e-3, 1e-4}
                                                     : (tolerances){1e-6, 1e-5, 1e-4, 1e-4};
}

static void assert_close(const char *what, double got, double expected, double tolerance) {
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("%s: %.9g, transformers has %.9g (allowed difference %.1e)", what, got, expected,
                 tolerance);
}

static void check_logits(const char *name) {
    const tolerances most = allowed();
    parity p;
    open_parity(name, XP_F32, &p);
    xp_model *model = make_model(&p, XP_RECOMPUTE_NONE, true);
    xp_model_batch batch = batch_of(&p, 0);
    batch.want_logits = true;
    must(xp_model_forward(model, &batch, p.stream));
    double expected = ((const double *)recorded(&p, "losses")->data)[0];
    assert_close("loss", mean_loss(&p, model), expected, most.loss * expected);
    const xp_st_tensor *logits = recorded(&p, "logits");
    float *ours = get_values(&p, xp_model_logits(model), logits->n_elements, XP_F32);
    const float *theirs = logits->data;
    for (int64_t i = 0; i < logits->n_elements; i++)
        if (!(fabsf(ours[i] - theirs[i]) <= (float)most.logit))
            fail_msg("logit %lld: %.7g against %.7g", (long long)i, (double)ours[i],
                     (double)theirs[i]);
    free(ours);
    xp_model_destroy(model);
    close_parity(&p);
}

/* Each parameter's within `tolerance` of its norm. */
static void check_gradients(const parity *p, xp_model *model, double tolerance) {
    const xp_param_table *table = xp_model_params(model);
    float *grads =
        get_values(p, xp_model_grad_data(model), xp_param_table_n_elements(table), p->dtype);
    for (int i = 0; i < xp_param_table_n_params(table); i++)
        for (int s = 0; s < xp_param_table_param(table, i)->n_slices; s++) {
            xp_param_slice slice;
            xp_param_table_slice(table, i, s, &slice);
            const xp_st_tensor *tensor = xp_hf_find(p->grads, slice.hf_name);
            assert_non_null(tensor);
            const float *theirs = tensor->data, *ours = grads + slice.offset;
            double difference = 0, norm = 0;
            for (int64_t e = 0; e < slice.n_elements; e++) {
                difference += ((double)ours[e] - theirs[e]) * ((double)ours[e] - theirs[e]);
                norm += (double)theirs[e] * theirs[e];
            }
            if (!(sqrt(difference) <= tolerance * sqrt(norm)))
                fail_msg("gradient of %s: off by %.3e of its norm %.3e", slice.hf_name,
                         sqrt(difference), sqrt(norm));
        }
    free(grads);
}

static void check_training(const char *name, xp_recompute recompute) {
    const tolerances most = allowed();
    parity p;
    parity_run run;
    open_parity(name, XP_F32, &p);
    open_run(&p, recompute, &run);
    const double *losses = recorded(&p, "losses")->data, *norms = recorded(&p, "grad_norms")->data;
    for (int step = 0; step < N_STEPS; step++) {
        xp_model_batch batch = batch_of(&p, step);
        must(xp_model_forward_backward(run.model, &batch, NULL, p.stream));
        char what[32];
        snprintf(what, sizeof what, "loss of step %d", step + 1);
        assert_close(what, mean_loss(&p, run.model), losses[step],
                     (step == 0 ? most.loss : most.trained_loss) * losses[step]);
        if (step == 0)
            check_gradients(&p, run.model, most.gradient);
        assert_close("gradient norm", update_run(&p, &run, step), norms[step],
                     most.gradient * norms[step]);
    }
    close_run(&run);
    close_parity(&p);
}

static const char *const names[] = {"moe_gqa", "moe_odd", "moe_nonorm_tied", "dense_gqa",
                                    "dense_odd"};
#define N_NAMES (sizeof names / sizeof names[0])

static void test_loss_and_logits(void **state) {
    (void)state;
    for (size_t i = 0; i < N_NAMES; i++)
        check_logits(names[i]);
}

static void test_gradients_and_twelve_steps(void **state) {
    (void)state;
    for (size_t i = 0; i < N_NAMES; i++)
        check_training(names[i], XP_RECOMPUTE_NONE);
}

static void test_the_same_with_recomputation(void **state) {
    (void)state;
    check_training("moe_odd", XP_RECOMPUTE_FULL);
    check_training("moe_gqa", XP_RECOMPUTE_SELECTIVE);
}

static void test_bf16_is_as_close_as_pytorch(void **state) {
    (void)state;
    size_t n_recorded = 0;
    for (size_t i = 0; i < N_NAMES; i++)
        n_recorded += check_bf16(names[i]);
    if (n_recorded == 0)
        skip();
}

static bool parse(int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--fixtures") == 0 && value[0] != '\0')
            parity_opts.fixtures = value;
        else if (strcmp(argv[i], "--device") != 0)
            return false;
        else if (strcmp(value, "guard") == 0)
            parity_opts.device.caps = "test_protect,test_defer";
        else if (strcmp(value, "cuda") == 0)
            parity_opts.device.kind = XP_DEVICE_CUDA;
        else if (strcmp(value, "cpu") != 0)
            return false;
    }
    return true;
}

int main(int argc, char **argv) {
    xp_gpu_environment_set();
    if (!parse(argc, argv)) {
        fprintf(stderr, "usage: %s [--device cpu|guard|cuda] [--fixtures FOLDER]\n", argv[0]);
        return 2;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_and_logits),
        cmocka_unit_test(test_gradients_and_twelve_steps),
        cmocka_unit_test(test_the_same_with_recomputation),
        cmocka_unit_test(test_bf16_is_as_close_as_pytorch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
