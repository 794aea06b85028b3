/* Passes that are recorded and launched again: the bits of passes as they are, whatever changes between them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "device/cpu/test_protect.h"
#include "device/device_internal.h"
#include "harness.h"

#define N_PASSES 14
#define MOST     64 /* losses and sums of a run */

typedef struct run {
    double losses[N_PASSES];
    float *grads;
    int64_t n_launched;
} run;

static const xp_device_args guarded = {
    .kind = XP_DEVICE_CPU, .n_threads = 1, .caps = "test_protect"};
/* The pass's stream runs nothing before somebody waits: the side stream is ahead wherever it may be. */
static const xp_device_args deferred = {
    .kind = XP_DEVICE_CPU, .n_threads = 1, .caps = "test_protect,test_defer"};

/* Another batch for each pass: tokens move on, a document starts elsewhere, targets go. Passes with an even
 * number start the gradients anew, the others add; the last ones have fewer rows. */
static void change_batch(xp_test_model *t, int pass) {
    const int64_t seq_len = t->batch.seq_len;
    int64_t n_valid = 0;
    for (int64_t i = 0; i < t->n_tokens; i++) {
        const int64_t at = i % seq_len, start = 1 + (i / seq_len + pass) % (seq_len - 1);
        t->tokens[i] = (t->tokens[i] + 5) % (int32_t)t->arch.vocab_size;
        t->targets[i] = (i + pass) % 5 == 0 ? -1 : (t->tokens[i] + 3) % (int32_t)t->arch.vocab_size;
        t->doc_start[i] = at >= start ? (int32_t)start : 0;
        t->positions[i] = (int32_t)at - t->doc_start[i];
        n_valid += t->targets[i] >= 0;
    }
    t->batch.accumulate = pass % 2 == 1;
    t->batch.n_rows = pass >= 10 ? 1 : 2;
    t->batch.loss_scale = 1.0F / (float)(n_valid + pass % 3);
}

static xp_status no_recording(xp_stream *stream, xp_graph *graph, bool *any) {
    (void)stream;
    (void)graph;
    *any = false;
    return xp_error(XP_EDEVICE, "this driver records nothing");
}

static xp_status no_memory(xp_graph *graph, xp_stream *stream) {
    (void)graph;
    (void)stream;
    return xp_error(XP_ENOMEM, "cudaGraphLaunch: out of memory");
}

/* how: 0 as they are, 1 recorded, 2 on a device whose recordings fail, 3 on one without memory for a launch,
 * 4 recorded on the deferred device */
static run run_passes(const xp_model_args *args, int how) {
    xp_test_model t;
    run r = {0};
    xp_test_model_create_on(how == 4 ? &deferred : &guarded, *args, &t);
    const xp_device_vtable *vtable = t.device->vtable;
    xp_device_vtable broken = *vtable;
    if (how == 2)
        broken.graph_end = no_recording;
    else
        broken.graph_launch = no_memory;
    if (how > 0)
        xp_test_must(xp_model_use_graphs(t.model));
    if (how == 2 || how == 3)
        t.device->vtable = &broken;
    for (int pass = 0; pass < N_PASSES; pass++) {
        change_batch(&t, pass);
        r.losses[pass] = xp_test_step(&t).loss_sum;
    }
    r.grads = xp_test_grads(&t);
    r.n_launched = xp_model_n_graph_passes(t.model);
    assert_int_equal(xp_model_graph_failure(t.model) != NULL, how == 2 || how == 3);
    t.device->vtable = vtable;
    xp_test_model_destroy(&t);
    return r;
}

static int64_t n_elements(const xp_model_args *args) {
    xp_test_model t;
    xp_test_model_create_on(&guarded, *args, &t);
    const int64_t n = xp_param_table_n_elements(xp_model_params(t.model));
    xp_test_model_destroy(&t);
    return n;
}

/* @return passes that were launched from recordings */
static int64_t check(const xp_model_args *args, int how) {
    const size_t n_bytes = (size_t)n_elements(args) * sizeof(float);
    run plain = run_passes(args, 0), other = run_passes(args, how);
    assert_int_equal(plain.n_launched, 0);
    assert_memory_equal(plain.losses, other.losses, sizeof plain.losses);
    assert_memory_equal(plain.grads, other.grads, n_bytes);
    free(plain.grads);
    free(other.grads);
    return other.n_launched;
}

static xp_model_args args_of(const xp_arch *arch) {
    xp_model_args args = xp_test_args(arch);
    args.document_attention = true;
    return args;
}

static void recorded_passes_see_what_changes(void **state) {
    (void)state;
    const xp_arch moe = xp_test_moe_arch(), dense = xp_test_dense_arch();
    for (int mode = 0; mode < 3; mode++) {
        xp_model_args args = args_of(&moe);
        args.recompute = (xp_recompute)mode;
        /* Of each kind (two rows or one, adding or not) but the first two. */
        assert_int_equal(check(&args, 1), N_PASSES - 4 * 2);
        assert_int_equal(check(&args, 4), N_PASSES - 4 * 2);
        args.arch = &dense;
        assert_int_equal(check(&args, 1), N_PASSES - 4 * 2);
        assert_int_equal(check(&args, 4), N_PASSES - 4 * 2);
    }
}

/* The scale of the loss is one of what the router's losses take by value: passes with another one are of
 * another kind, and none of these is recorded with a scale that is not its own. */
static void extra_losses_take_the_scale_by_value(void **state) {
    (void)state;
    const xp_arch arch = xp_test_moe_arch();
    xp_model_args args = args_of(&arch);
    args.aux_loss_coeff = 0.1;
    args.z_loss_coeff = 0.01;
    assert_true(check(&args, 1) < N_PASSES - 4 * 2);
}

static void failed_recordings_change_nothing(void **state) {
    (void)state;
    const xp_arch arch = xp_test_moe_arch();
    const xp_model_args args = args_of(&arch);
    assert_int_equal(check(&args, 2), 0);
    assert_int_equal(check(&args, 3), 0);
}

/* ---- hooks --------------------------------------------------------------------------------- */

typedef struct calls {
    int n, groups[MOST];
} calls;

static xp_status note(calls *c, int call) {
    assert_true(c->n < MOST);
    c->groups[c->n++] = call;
    return XP_OK;
}

static xp_status needed(void *context, int group) {
    return note(context, group);
}

static xp_status ready(void *context, int group) {
    return note(context, -1 - group);
}

static void hooks_are_called_each_time(void **state) {
    (void)state;
    const xp_arch arch = xp_test_moe_arch();
    xp_test_model t;
    xp_test_model_create_on(&guarded, args_of(&arch), &t);
    xp_test_must(xp_model_use_graphs(t.model));
    calls first = {0};
    for (int pass = 0; pass < 5; pass++) {
        calls now = {0};
        const xp_model_hooks hooks = {
            .context = &now, .group_needed = needed, .group_ready = ready};
        xp_test_must(xp_model_forward_backward(t.model, &t.batch, &hooks, t.stream));
        if (pass == 0)
            first = now;
        assert_int_equal(now.n, first.n);
        assert_memory_equal(now.groups, first.groups, (size_t)now.n * sizeof now.groups[0]);
    }
    assert_int_equal(xp_model_n_graph_passes(t.model), 3);
    xp_test_model_destroy(&t);
}

static void who_has_no_graphs(void **state) {
    (void)state;
    const xp_arch arch = xp_test_moe_arch();
    xp_test_model t;
    xp_test_model_create(xp_test_args(&arch), 1, &t);
    assert_int_equal(xp_model_use_graphs(t.model), XP_ENOTSUP);
    xp_test_model_destroy(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recorded_passes_see_what_changes),
        cmocka_unit_test(extra_losses_take_the_scale_by_value),
        cmocka_unit_test(failed_recordings_change_nothing),
        cmocka_unit_test(hooks_are_called_each_time),
        cmocka_unit_test(who_has_no_graphs),
    };
    xp_test_protect_open(); /* the harness writes parameters itself */
    const int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    xp_test_protect_close();
    return n_failed;
}
