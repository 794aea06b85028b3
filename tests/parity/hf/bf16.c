/*
 * bf16: how far our bf16 model is from our fp32 model, against how far PyTorch's bf16 run of the
 * same model is from its own fp32 run on the same batches (make_bf16.py, bf16.json).
 *
 * Each figure is a root mean square over batches: the fixture's twelve batches, and the same with
 * every token id moved by 1..7, to have more. One batch is one sample of the rounding, and where
 * two experts' scores nearly agree rounding decides who gets the token: such a batch is off by ten
 * times as much as others, in PyTorch and here. For the same reason gradients are judged by kind of
 * parameter, all layers and experts together: one expert of these models sees ten tokens of a
 * batch.
 *
 * Ours may be MOST times PyTorch's: both round the same values at about as many places, and a root
 * mean square that few tokens decide scatters by a fifth. A loss is one number a batch, in which
 * the roundings of all tokens cancel: MOST_LOSS. On the guarded device, which is slow and gives the
 * same bits as the CPU, only the twelve batches run, with twice these bounds.
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

#include "fixture.h"

#define MOST        1.5
#define MOST_LOSS   2.0
#define N_SHIFTS    8
#define MOST_KINDS  16
#define FP32_AGREES 1e-5 /* relative: the losses that the deviations are measured from */

typedef struct figure {
    const char *name;
    double squares, theirs; /* over batches; recorded */
} figure;

typedef struct comparison {
    const char *fixture;
    json_t *record;
    figure loss, logits, training, kinds[MOST_KINDS];
    int n_kinds, n_batches;
    double slack; /* on the bounds */
    parity wide, narrow;
} comparison;

static figure figure_of(const json_t *from, const char *name) {
    const json_t *value = json_object_get(from, name);
    if (!json_is_number(value))
        fail_msg("bf16.json has no \"%s\"", name);
    return (figure){.name = name, .theirs = json_number_value(value)};
}

static void read_record(comparison *c) {
    json_t *gradients = json_object_get(c->record, "gradients");
    const char *kind;
    json_t *value;
    c->loss = figure_of(c->record, "loss");
    c->logits = figure_of(c->record, "logits");
    c->training = figure_of(c->record, "training");
    json_object_foreach(gradients, kind, value) {
        assert_true(c->n_kinds < MOST_KINDS);
        c->kinds[c->n_kinds++] = figure_of(gradients, kind);
    }
}

static void add_relative(figure *f, double difference, double size) {
    f->squares += difference / size * (difference / size);
}

static void add_loss(figure *f, double narrow, double wide) {
    add_relative(f, narrow - wide, wide);
}

/* "model.layers.1.self_attn.q_proj.weight" is a q_proj. */
static figure *kind_of(comparison *c, const char *hf_name) {
    const char *end = strrchr(hf_name, '.'), *start = end;
    while (start > hf_name && start[-1] != '.')
        start--;
    const size_t n = (size_t)(end - start);
    for (int i = 0; i < c->n_kinds; i++)
        if (strlen(c->kinds[i].name) == n && memcmp(c->kinds[i].name, start, n) == 0)
            return &c->kinds[i];
    fail_msg("bf16.json has no gradient of %s", hf_name);
    return NULL;
}

static void add_gradients(comparison *c, xp_model *wide, xp_model *narrow) {
    double differences[MOST_KINDS] = {0}, norms[MOST_KINDS] = {0};
    const xp_param_table *table = xp_model_params(wide);
    const int64_t n = xp_param_table_n_elements(table);
    float *w = get_values(&c->wide, xp_model_grad_data(wide), n, XP_F32);
    float *h = get_values(&c->narrow, xp_model_grad_data(narrow), n, XP_BF16);
    for (int i = 0; i < xp_param_table_n_params(table); i++)
        for (int s = 0; s < xp_param_table_param(table, i)->n_slices; s++) {
            xp_param_slice slice;
            xp_param_table_slice(table, i, s, &slice);
            const size_t kind = (size_t)(kind_of(c, slice.hf_name) - c->kinds);
            for (int64_t e = slice.offset; e < slice.offset + slice.n_elements; e++) {
                differences[kind] += ((double)h[e] - w[e]) * ((double)h[e] - w[e]);
                norms[kind] += (double)w[e] * w[e];
            }
        }
    for (int k = 0; k < c->n_kinds; k++)
        add_relative(&c->kinds[k], sqrt(differences[k]), sqrt(norms[k]));
    free(w);
    free(h);
}

static void add_logits(comparison *c, const xp_model *wide, const xp_model *narrow) {
    const int64_t n = c->wide.n_rows * c->wide.seq_len * c->wide.arch.vocab_size;
    float *w = get_values(&c->wide, xp_model_logits(wide), n, XP_F32);
    float *h = get_values(&c->narrow, xp_model_logits(narrow), n, XP_F32);
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)h[i] - w[i]) * ((double)h[i] - w[i]);
        norm += (double)w[i] * w[i];
    }
    add_relative(&c->logits, sqrt(difference), sqrt(norm));
    free(w);
    free(h);
}

/* Batch `step` with all ids moved by `shift`. */
static xp_model_batch shifted(const parity *p, int shift, int step) {
    const xp_model_batch batch = batch_of(p, step);
    for (int64_t i = 0; i < p->n_rows * p->seq_len; i++) {
        p->tokens[i] = (p->tokens[i] + shift) % (int32_t)p->arch.vocab_size;
        p->targets[i] = (p->targets[i] + shift) % (int32_t)p->arch.vocab_size;
    }
    return batch;
}

/* Loss and logits of every batch, forward only. */
static void compare_forward(comparison *c) {
    const json_t *recorded_losses = json_object_get(c->record, "losses_fp32");
    assert_int_equal(json_array_size(recorded_losses), N_SHIFTS * N_STEPS);
    xp_model *wide = make_model(&c->wide, XP_RECOMPUTE_NONE, true);
    xp_model *narrow = make_model(&c->narrow, XP_RECOMPUTE_NONE, true);
    for (int i = 0; i < c->n_batches; i++) {
        xp_model_batch w = shifted(&c->wide, i / N_STEPS, i % N_STEPS);
        xp_model_batch h = shifted(&c->narrow, i / N_STEPS, i % N_STEPS);
        w.want_logits = h.want_logits = true;
        must(xp_model_forward(wide, &w, c->wide.stream));
        must(xp_model_forward(narrow, &h, c->narrow.stream));
        const double loss = mean_loss(&c->wide, wide);
        const double theirs = json_number_value(json_array_get(recorded_losses, (size_t)i));
        if (!(fabs(loss - theirs) <= FP32_AGREES * theirs))
            fail_msg("fp32 loss of batch %d: %.9g, PyTorch has %.9g", i, loss, theirs);
        add_loss(&c->loss, mean_loss(&c->narrow, narrow), loss);
        add_logits(c, wide, narrow);
    }
    xp_model_destroy(wide);
    xp_model_destroy(narrow);
}

/* Gradients of the batches of a shift at the initial weights, then the losses of training over
 * them. */
static void compare_backward(comparison *c, int shift) {
    parity_run wide, narrow;
    open_run(&c->wide, XP_RECOMPUTE_NONE, &wide);
    open_run(&c->narrow, XP_RECOMPUTE_NONE, &narrow);
    for (int pass = 0; pass < 2; pass++)
        for (int step = 0; step < N_STEPS; step++) {
            xp_model_batch w = shifted(&c->wide, shift, step), h = shifted(&c->narrow, shift, step);
            must(xp_model_forward_backward(wide.model, &w, NULL, c->wide.stream));
            must(xp_model_forward_backward(narrow.model, &h, NULL, c->narrow.stream));
            if (pass == 0) {
                add_gradients(c, wide.model, narrow.model);
                continue;
            }
            add_loss(&c->training, mean_loss(&c->narrow, narrow.model),
                     mean_loss(&c->wide, wide.model));
            update_run(&c->wide, &wide, step);
            update_run(&c->narrow, &narrow, step);
        }
    close_run(&wide);
    close_run(&narrow);
}

/* Print it; whether it is within `most` times what PyTorch has. */
static bool judge(const comparison *c, const figure *f, double most) {
    const double ours = sqrt(f->squares / c->n_batches);
    const bool ok = ours <= c->slack * most * f->theirs;
    print_message("bf16: %-16s %-24s ours %.2e  PyTorch %.2e  ratio %.2f%s\n", c->fixture, f->name,
                  ours, f->theirs, ours / f->theirs, ok ? "" : "  TOO FAR");
    return ok;
}

bool check_bf16(const char *name) {
    char path[512];
    json_error_t error;
    const int n_shifts = parity_opts.device.caps != NULL ? 1 : N_SHIFTS;
    comparison c = {
        .fixture = name, .n_batches = n_shifts * N_STEPS, .slack = n_shifts == 1 ? 2.0 : 1.0};
    fixture_path(path, sizeof path, name, "bf16.json");
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        print_message("bf16: SKIPPED: %s is not there; make_bf16.py records it\n", path);
        return false;
    }
    c.record = json_loadf(file, JSON_REJECT_DUPLICATES, &error);
    fclose(file);
    if (c.record == NULL)
        fail_msg("%s:%d: %s", path, error.line, error.text);
    read_record(&c);
    open_parity(name, XP_F32, &c.wide);
    open_parity(name, XP_BF16, &c.narrow);
    compare_forward(&c);
    for (int shift = 0; shift < n_shifts; shift++)
        compare_backward(&c, shift);
    int n_far = !judge(&c, &c.loss, MOST_LOSS) + !judge(&c, &c.training, MOST_LOSS) +
                !judge(&c, &c.logits, MOST);
    for (int k = 0; k < c.n_kinds; k++)
        n_far += !judge(&c, &c.kinds[k], MOST);
    close_parity(&c.wide);
    close_parity(&c.narrow);
    json_decref(c.record);
    if (n_far > 0)
        fail_msg("%s: %d figures of bf16 are too far from PyTorch's", name, n_far);
    return true;
}
