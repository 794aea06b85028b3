/* The op tables from outside: arguments are checked before anything runs, on every device; tables
 * follow capabilities. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>
#include "ops/ops.h"

typedef struct fixture {
    xp_device *device;
    xp_stream *stream;
    const xp_ops *ops;
} fixture;

static void open_device(xp_device_kind kind, xp_stream_kind stream, const char *caps, fixture *f) {
    const xp_device_args args = {.kind = kind, .n_threads = 2, .caps = caps};
    assert_int_equal(xp_device_create(&args, &f->device), XP_OK);
    assert_int_equal(xp_stream_create(f->device, stream, &f->stream), XP_OK);
    assert_int_equal(xp_ops_get(f->device, &f->ops), XP_OK);
}

static void close_device(fixture *f) {
    xp_stream_destroy(f->stream);
    xp_device_destroy(f->device);
}

static void expect_refused(xp_status status, const char *part) {
    assert_int_equal(status, XP_EINVAL);
    if (strstr(xp_last_error(), part) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", xp_last_error(), part);
}

/* Each wrong argument alone, on a call that is right otherwise. */
static void refuse_attention(const fixture *f) {
    float memory[64] = {0};
    const xp_attention_args right = {.n_rows = 1,
                                     .seq_len = 2,
                                     .n_heads = 2,
                                     .n_kv_heads = 1,
                                     .head_dim = 4,
                                     .scale = 1.0f,
                                     .q = memory,
                                     .k = memory,
                                     .v = memory,
                                     .ldq = 8,
                                     .ldk = 4,
                                     .ldv = 4,
                                     .ldo = 8,
                                     .out = memory + 32,
                                     .lse = memory + 60};
    assert_int_equal(f->ops->attention_forward(f->stream, &right), XP_OK);
    xp_attention_args args = right;
    args.n_heads = 3, args.n_kv_heads = 2, args.ldq = args.ldo = 12, args.ldk = args.ldv = 8;
    expect_refused(f->ops->attention_forward(f->stream, &args), "3 query heads");
    args = right, args.ldq = 7;
    expect_refused(f->ops->attention_forward(f->stream, &args), "ldq = 7");
    args = right, args.k = NULL;
    expect_refused(f->ops->attention_forward(f->stream, &args), "k is NULL");
    args = right, args.seq_len = -1;
    expect_refused(f->ops->attention_forward(f->stream, &args), "seq_len = -1");
    args = right, args.dtype = XP_I32;
    expect_refused(f->ops->attention_forward(f->stream, &args), "must be f32 or bf16");
    const xp_attention_backward_args back = {.forward = right,
                                             .dout = memory,
                                             .dq = memory,
                                             .dk = memory,
                                             .dv = memory,
                                             .lddq = 8,
                                             .lddk = 3,
                                             .lddv = 4};
    expect_refused(f->ops->attention_backward(f->stream, &back), "attention_backward: lddk = 3");
}

static void refuse_norms(const fixture *f) {
    float memory[64] = {0};
    xp_rmsnorm_args norm = {
        .n_rows = 1, .dim = 0, .x = memory, .w = memory, .y = memory + 8, .rstd = memory + 16};
    expect_refused(f->ops->rmsnorm_forward(f->stream, &norm), "dim = 0");
    norm.dim = 4, norm.residual = memory;
    expect_refused(f->ops->rmsnorm_forward(f->stream, &norm),
                   "sum (needed with a residual) is NULL");
    const int32_t position = 0;
    const xp_qknorm_rope_args odd = {.n_tokens = 1,
                                     .n_heads = 1,
                                     .n_kv_heads = 1,
                                     .head_dim = 3,
                                     .qkv = memory,
                                     .positions = &position,
                                     .rope = memory,
                                     .q = memory,
                                     .k = memory};
    expect_refused(f->ops->qknorm_rope_forward(f->stream, &odd), "head_dim is odd");
    xp_qknorm_rope_args one = odd;
    one.head_dim = 2, one.q_norm = memory;
    expect_refused(f->ops->qknorm_rope_forward(f->stream, &one), "both or neither");
    const xp_rmsnorm_apply_args apply = {
        .n_rows = 1, .dim = 4, .s = memory, .w = memory, .y = memory};
    expect_refused(f->ops->rmsnorm_apply(f->stream, &apply), "rstd is NULL");
}

static void refuse_products(const fixture *f) {
    float memory[64] = {0};
    const xp_gemm_args right = {.m = 2,
                                .n = 3,
                                .k = 4,
                                .a = memory,
                                .b = memory,
                                .c = memory + 32,
                                .lda = 4,
                                .ldb = 3,
                                .ldc = 3,
                                .alpha = 1.0f};
    assert_int_equal(f->ops->gemm(f->stream, &right), XP_OK);
    xp_gemm_args args = right;
    args.trans_b = true;
    expect_refused(f->ops->gemm(f->stream, &args), "ldb = 3");
    args = right, args.c_dtype = XP_BF16;
    expect_refused(f->ops->gemm(f->stream, &args), "f32 operands");
    args = right, args.a = NULL;
    expect_refused(f->ops->gemm(f->stream, &args), "a is NULL");
    const xp_grouped_args grouped = {
        .n_experts = 1, .max_rows = 1, .n = 1, .k = 1, .x = memory, .w = memory, .y = memory};
    expect_refused(f->ops->grouped_forward(f->stream, &grouped),
                   "grouped_forward: offsets is NULL");
    expect_refused(f->ops->grouped_wgrad(f->stream, &grouped), "grouped_wgrad: offsets is NULL");
    static const int32_t offsets[2] = {0, 1}, range[2] = {0, 0};
    xp_grouped_args part = grouped;
    part.offsets = offsets, part.dy = memory, part.rows = XP_ROWS_IN_RANGE;
    expect_refused(f->ops->grouped_forward(f->stream, &part), "grouped_forward: row_range is NULL");
    expect_refused(f->ops->grouped_dgrad(f->stream, &part), "grouped_dgrad: row_range is NULL");
    part.row_range = range;
    assert_int_equal(f->ops->grouped_forward(f->stream, &part), XP_OK);
    expect_refused(f->ops->grouped_wgrad(f->stream, &part), "XP_ROWS_ALL");
    part.rows = (xp_grouped_rows)3;
    expect_refused(f->ops->grouped_dgrad(f->stream, &part), "no value of xp_grouped_rows");
}

static void refuse_others(const fixture *f) {
    float memory[64] = {0};
    int32_t ids[4] = {0};
    const xp_router_args router = {.n_tokens = 1,
                                   .n_experts = 2,
                                   .top_k = 3,
                                   .logits = memory,
                                   .scores = memory,
                                   .topk_idx = ids,
                                   .topk_weight = memory + 8};
    expect_refused(f->ops->router_forward(f->stream, &router),
                   "top_k = 3 is more than the 2 experts");
    const xp_histogram_args histogram = {.n = 4, .n_experts = 2, .ids = ids};
    expect_refused(f->ops->histogram(f->stream, &histogram), "counts is NULL");
    const xp_silu_gate_prob_args silu = {
        .n_rows = 1, .dim = 4, .a = memory, .b = memory, .ld = 3, .h = memory};
    expect_refused(f->ops->silu_gate_prob_forward(f->stream, &silu), "ld = 3");
    const xp_cross_entropy_args loss = {.n_rows = 1,
                                        .vocab = 4,
                                        .logits = memory,
                                        .targets = ids,
                                        .loss = memory,
                                        .write_grad = true};
    expect_refused(f->ops->cross_entropy(f->stream, &loss), "grad_scale is NULL");
    const xp_adamw_args adam = {.n = 1,
                                .param = memory,
                                .grad = memory,
                                .m = memory,
                                .v = memory,
                                .step = 0,
                                .grad_scale = memory};
    expect_refused(f->ops->adamw(f->stream, &adam), "step = 0");
    const xp_axpy_args axpy = {
        .n = 1, .x = memory, .y = memory, .x_dtype = XP_F32, .y_dtype = XP_BF16};
    expect_refused(f->ops->axpy(f->stream, &axpy), "x may be y only");
    const xp_sum_args sum = {.n = -1, .x = memory};
    expect_refused(f->ops->sum(f->stream, &sum), "n = -1");
}

static void wrong_arguments_are_refused(void **state) {
    (void)state;
    static const xp_device_kind kinds[] = {XP_DEVICE_CPU, XP_DEVICE_NULL};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        fixture f;
        open_device(kinds[i], XP_STREAM_COMPUTE, NULL, &f);
        refuse_attention(&f);
        refuse_norms(&f);
        refuse_products(&f);
        refuse_others(&f);
        close_device(&f);
    }
}

static void an_id_outside_the_vocabulary_is_refused(void **state) {
    (void)state;
    static const char *const caps[] = {NULL, "avx2"};
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++) {
        fixture f;
        open_device(XP_DEVICE_CPU, XP_STREAM_COMPUTE, caps[i], &f);
        float table[8] = {0}, x[12] = {0};
        const int32_t ids[3] = {0, 1, 2};
        int32_t scratch[3 + 2 + 1];
        const xp_embed_args args = {.n_tokens = 3,
                                    .dim = 4,
                                    .vocab = 2,
                                    .ids = ids,
                                    .table = table,
                                    .x = x,
                                    .dx = x,
                                    .dtable = table,
                                    .scratch = scratch};
        expect_refused(f.ops->embed_forward(f.stream, &args), "token 2 has id 2");
        expect_refused(f.ops->embed_backward(f.stream, &args), "token 2 has id 2");
        close_device(&f);
    }
}

static void capabilities_choose_the_table(void **state) {
    (void)state;
    fixture plain, null;
    open_device(XP_DEVICE_CPU, XP_STREAM_COMPUTE, "avx2", &plain);
    assert_string_equal(plain.ops->name, "cpu portable");
    open_device(XP_DEVICE_NULL, XP_STREAM_COMPUTE, NULL, &null);
    assert_string_equal(null.ops->name, "null");
    assert_string_equal(xp_ops_reference()->name, "cpu reference");
    close_device(&plain);
    close_device(&null);
}

/* No table leaves an op out: what the list names can be called on every device. */
static void every_table_has_every_op(void **state) {
    (void)state;
    static const char *const caps[] = {NULL, "avx512", "avx2"};
    for (size_t i = 0; i <= sizeof caps / sizeof *caps; i++) {
        fixture f;
        open_device(XP_DEVICE_CPU, XP_STREAM_COMPUTE, i == 0 ? NULL : caps[i - 1], &f);
        const xp_ops *ops = i == 0 ? xp_ops_reference() : f.ops;
#define HAS_ENTRY(entry, queued, args_type, check, cuda) assert_non_null(ops->entry);
        XP_OP_LIST(HAS_ENTRY)
#undef HAS_ENTRY
        assert_non_null(ops->attention_scratch);
        close_device(&f);
    }
}

/* The null device's memory must never be touched. */
static void the_null_device_runs_nothing(void **state) {
    (void)state;
    fixture f;
    open_device(XP_DEVICE_NULL, XP_STREAM_COMPUTE, NULL, &f);
    void *x = NULL, *y = NULL;
    assert_int_equal(xp_device_alloc(f.device, 64, "test", &x), XP_OK);
    assert_int_equal(xp_device_alloc(f.device, 64, "test", &y), XP_OK);
    const xp_axpy_args args = {.n = 16, .alpha = 1.0f, .x = x, .y = y};
    assert_int_equal(f.ops->axpy(f.stream, &args), XP_OK);
    xp_device_free(f.device, x);
    xp_device_free(f.device, y);
    close_device(&f);
}

/* Arguments live on the caller's stack: a worker stream must have its own copy. */
static void a_worker_stream_runs_ops_in_order(void **state) {
    (void)state;
    fixture f;
    open_device(XP_DEVICE_CPU, XP_STREAM_WORKER, NULL, &f);
    float x[4] = {1, 2, 3, 4}, y[4] = {0};
    for (int i = 0; i < 100; i++) {
        const xp_axpy_args args = {.n = 4, .alpha = 1.0f, .x = x, .y = y, .acc = i > 0};
        assert_int_equal(f.ops->axpy(f.stream, &args), XP_OK);
    }
    assert_int_equal(xp_stream_sync(f.stream), XP_OK);
    for (int i = 0; i < 4; i++)
        assert_true(y[i] == 100.0f * x[i]);
    close_device(&f);
}

/* What a machine without a GPU predicts of one with it. */
static void documents_take_no_memory_for_pairs(void **state) {
    (void)state;
    const int32_t start = 0;
    xp_attention_args args = {.n_rows = 4,
                              .seq_len = 4096,
                              .n_heads = 32,
                              .n_kv_heads = 4,
                              .head_dim = 128,
                              .ldq = 4096,
                              .ldk = 512,
                              .ldv = 5120,
                              .ldo = 4096,
                              .dtype = XP_BF16};
    const size_t sums = 4 * 32 * 4096 * sizeof(float), dq = sums * 128;
    assert_true(xp_attention_scratch_gpu(&args, true) > dq); /* the kernel of our own */
    assert_true(xp_attention_scratch_gpu(&args, true) < dq + 4 * sums);
    assert_int_equal(xp_attention_scratch_gpu(&args, false), 0);
    args.head_dim = 96; /* cuDNN */
    assert_true(xp_attention_scratch_gpu(&args, true) > (size_t)1 << 30);
    args.doc_start = &start;
    assert_int_equal(xp_attention_scratch_gpu(&args, true), sums);
    args.doc_start = NULL, args.seq_len = 4095;
    assert_int_equal(xp_attention_scratch_gpu(&args, true), 4 * 32 * 4095 * sizeof(float));
    args.head_dim = 128, args.ldq = 4099;
    assert_int_equal(xp_attention_scratch_gpu(&args, true), 0);
}

/* Every mode: the load is uniform, a token's assignments differ; spread puts them on as many ranks as
 * there can be. */
static void forced_balance_is_uniform(void **state) {
    (void)state;
    enum { T = 96, MAX_K = 8 };
    static const int shapes[][3] = {{8, 2, 1},   {32, 4, 4}, {128, 8, 8},
                                    {64, 8, 16}, {6, 3, 2},  {8, 8, 8}}; /* E, K, R */
    int32_t ids[T * MAX_K];
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int n_experts = shapes[i][0], top_k = shapes[i][1], n_ranks = shapes[i][2];
        for (int mode = XP_FORCED_MODULO; mode <= XP_FORCED_SPREAD; mode++) {
            int load[128] = {0};
            xp_forced_balance_fill((xp_forced_mode)mode, T, top_k, n_experts, n_ranks, ids);
            for (int t = 0; t < T; t++) {
                int on_rank[16] = {0}, n_used = 0;
                for (int k = 0; k < top_k; k++) {
                    const int id = ids[t * top_k + k];
                    assert_in_range(id, 0, n_experts - 1);
                    load[id]++;
                    n_used += on_rank[id / (n_experts / n_ranks)]++ == 0;
                    for (int other = 0; other < k; other++)
                        assert_int_not_equal(id, ids[t * top_k + other]);
                    if (mode == XP_FORCED_MODULO)
                        assert_int_equal(id, (t * top_k + k) % n_experts);
                }
                if (mode == XP_FORCED_SPREAD)
                    assert_int_equal(n_used, top_k < n_ranks ? top_k : n_ranks);
            }
            for (int e = 1; e < n_experts; e++)
                assert_int_equal(load[e], load[0]);
        }
    }
}

static void rope_is_made_of_angles(void **state) {
    (void)state;
    enum { C = 8, N = 50 };
    float rope[N * C];
    xp_rope_fill(1e6f, C, N, rope);
    for (int t = 0; t < N; t++) {
        for (int i = 0; i < C / 2; i++) {
            const double angle = t * pow(1e6, -2.0 * i / C);
            assert_true(fabs((double)rope[t * C + i] - cos(angle)) < 5e-6);
            assert_true(fabs((double)rope[t * C + C / 2 + i] - sin(angle)) < 5e-6);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_arguments_are_refused),
        cmocka_unit_test(an_id_outside_the_vocabulary_is_refused),
        cmocka_unit_test(capabilities_choose_the_table),
        cmocka_unit_test(every_table_has_every_op),
        cmocka_unit_test(the_null_device_runs_nothing),
        cmocka_unit_test(a_worker_stream_runs_ops_in_order),
        cmocka_unit_test(documents_take_no_memory_for_pairs),
        cmocka_unit_test(forced_balance_is_uniform),
        cmocka_unit_test(rope_is_made_of_angles),
    };
    return cmocka_run_group_tests_name("ops", tests, NULL, NULL);
}
