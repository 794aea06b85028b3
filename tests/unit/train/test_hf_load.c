/*
 * Weights of Hugging Face folders as people have them: fused experts in both layouts, wrappers' prefixes,
 * tensors that nothing uses, NaN, Git LFS pointers. Whatever is understood gives the same parameters, bit for
 * bit, as the plain folder.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../checkpoint/scratch.h"
#include "core/file.h"
#include "core/rng.h"
#include "train/hf_tensors.h"

#define MAX_TENSORS 64

typedef struct made_tensor {
    char name[128];
    int n_dims;
    int64_t shape[3];
    float *values;
} made_tensor;

typedef struct made_folder {
    int n;
    made_tensor tensors[MAX_TENSORS];
} made_folder;

static const xp_arch small = {.flavor = "hf",
                              .dim = 16,
                              .n_layers = 2,
                              .vocab_size = 40,
                              .n_heads = 2,
                              .n_kv_heads = 1,
                              .head_dim = 8,
                              .n_experts = 3,
                              .top_k = 2,
                              .moe_dim = 8,
                              .rope_theta = 1e6,
                              .norm_eps = 1e-6,
                              .qk_norm = true,
                              .route_norm = true,
                              .route_scale = 1.0};

static float *add(made_folder *f, const char *name, int n_dims, const int64_t *shape) {
    assert_true(f->n < MAX_TENSORS);
    made_tensor *t = &f->tensors[f->n++];
    int64_t n = 1;
    snprintf(t->name, sizeof t->name, "%s", name);
    t->n_dims = n_dims;
    for (int d = 0; d < n_dims; d++)
        n *= t->shape[d] = shape[d];
    t->values = malloc((size_t)n * sizeof *t->values);
    assert_non_null(t->values);
    for (int64_t i = 0; i < n; i++)
        t->values[i] = xp_rng_uniform(7, xp_rng_stream(name), (uint64_t)i) - 0.5F;
    return t->values;
}

static void add_all(made_folder *f, const xp_arch *arch) {
    xp_param_table *table = NULL;
    assert_int_equal(xp_param_table_create(arch, 0, 1, &table), XP_OK);
    for (int p = 0; p < xp_param_table_n_params(table); p++)
        for (int i = 0; i < xp_param_table_param(table, p)->n_slices; i++) {
            xp_param_slice slice;
            xp_param_table_slice(table, p, i, &slice);
            add(f, slice.hf_name, slice.n_dims, slice.shape);
        }
    xp_param_table_destroy(table);
}

static made_tensor *find(made_folder *f, const char *name) {
    for (int i = 0; i < f->n; i++)
        if (strcmp(f->tensors[i].name, name) == 0)
            return &f->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static void drop_experts(made_folder *f) {
    int kept = 0;
    for (int i = 0; i < f->n; i++)
        if (strstr(f->tensors[i].name, ".mlp.experts."))
            free(f->tensors[i].values);
        else
            f->tensors[kept++] = f->tensors[i];
    f->n = kept;
}

/* As transformers 5 keeps a layer's experts, or transposed as other models do. */
static void fuse(made_folder *f, const xp_arch *arch, bool transposed) {
    const int64_t e = arch->n_experts, d = arch->dim, w = arch->moe_dim;
    made_folder fused = {0};
    for (int64_t l = 0; l < arch->n_layers; l++) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.%lld.mlp.experts.gate_up_proj", (long long)l);
        float *gate_up =
            add(&fused, name, 3, transposed ? (int64_t[]){e, d, 2 * w} : (int64_t[]){e, 2 * w, d});
        snprintf(name, sizeof name, "model.layers.%lld.mlp.experts.down_proj", (long long)l);
        float *down =
            add(&fused, name, 3, transposed ? (int64_t[]){e, w, d} : (int64_t[]){e, d, w});
        for (int64_t x = 0; x < e; x++)
            for (int part = 0; part < 3; part++) {
                static const char *const parts[] = {"gate", "up", "down"};
                snprintf(name, sizeof name, "model.layers.%lld.mlp.experts.%lld.%s_proj.weight",
                         (long long)l, (long long)x, parts[part]);
                const float *from = find(f, name)->values;
                int64_t rows = part == 2 ? d : w, columns = part == 2 ? w : d;
                float *to = (part == 2 ? down : gate_up) + x * rows * columns * (part == 2 ? 1 : 2);
                int64_t first = part == 1 ? w : 0, height = part == 2 ? d : 2 * w;
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t c = 0; c < columns; c++)
                        to[transposed ? c * height + first + r : (first + r) * columns + c] =
                            from[r * columns + c];
            }
    }
    drop_experts(f);
    for (int i = 0; i < fused.n; i++)
        f->tensors[f->n++] = fused.tensors[i];
}

static xp_scratch_path write_folder(const char *root, const char *name, const made_folder *f) {
    xp_scratch_path folder = xp_scratch_join(root, name);
    assert_int_equal(xp_folder_create(folder.text), XP_OK);
    xp_st_writer *writer = NULL;
    assert_int_equal(
        xp_st_writer_create(xp_scratch_join(folder.text, "model.safetensors").text, &writer),
        XP_OK);
    for (int i = 0; i < f->n; i++)
        assert_int_equal(xp_st_writer_declare(writer, f->tensors[i].name, XP_F32,
                                              f->tensors[i].n_dims, f->tensors[i].shape),
                         XP_OK);
    for (int i = 0; i < f->n; i++) {
        int64_t n = 1;
        for (int d = 0; d < f->tensors[i].n_dims; d++)
            n *= f->tensors[i].shape[d];
        assert_int_equal(xp_st_writer_data(writer, f->tensors[i].values, (size_t)n * sizeof(float)),
                         XP_OK);
    }
    assert_int_equal(xp_st_writer_finish(writer), XP_OK);
    xp_st_writer_destroy(writer);
    return folder;
}

static void free_folder(made_folder *f) {
    for (int i = 0; i < f->n; i++)
        free(f->tensors[i].values);
    f->n = 0;
}

/* ---- loading ------------------------------------------------------------------------------ */

typedef struct loaded {
    xp_device *device;
    xp_stream *stream;
    xp_param_table *table;
    float *params;
    char warnings[4096];
    int n_warnings;
} loaded;

static void take_warning(void *context, const char *text) {
    loaded *l = context;
    size_t used = strlen(l->warnings);
    snprintf(l->warnings + used, sizeof l->warnings - used, "%s\n", text);
    l->n_warnings++;
}

static xp_status load(const char *folder, const xp_arch *arch, int ep_rank, int ep_size,
                      loaded *l) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    memset(l, 0, sizeof *l);
    assert_int_equal(xp_device_create(&args, &l->device), XP_OK);
    assert_int_equal(xp_stream_create(l->device, XP_STREAM_COMPUTE, &l->stream), XP_OK);
    assert_int_equal(xp_param_table_create(arch, ep_rank, ep_size, &l->table), XP_OK);
    l->params = calloc((size_t)xp_param_table_n_elements(l->table), sizeof(float));
    assert_non_null(l->params);
    xp_hf_load_args load_args = {.folder = folder,
                                 .arch = arch,
                                 .table = l->table,
                                 .params = l->params,
                                 .dtype = XP_F32,
                                 .stream = l->stream,
                                 .warn = take_warning,
                                 .warn_context = l};
    return xp_hf_load_params(&load_args);
}

static void unload(loaded *l) {
    free(l->params);
    xp_param_table_destroy(l->table);
    xp_stream_destroy(l->stream);
    xp_device_destroy(l->device);
}

/* The folder's parameters are those that `f` holds under plain names; nothing is said. */
static void check_same(const char *folder, made_folder *plain, const xp_arch *arch, int ep_size) {
    for (int rank = 0; rank < ep_size; rank++) {
        loaded l;
        if (load(folder, arch, rank, ep_size, &l) != XP_OK)
            fail_msg("%s", xp_last_error());
        if (l.n_warnings > 0)
            fail_msg("%s", l.warnings);
        for (int p = 0; p < xp_param_table_n_params(l.table); p++)
            for (int i = 0; i < xp_param_table_param(l.table, p)->n_slices; i++) {
                xp_param_slice slice;
                xp_param_table_slice(l.table, p, i, &slice);
                assert_memory_equal(l.params + slice.offset, find(plain, slice.hf_name)->values,
                                    (size_t)slice.n_elements * sizeof(float));
            }
        unload(&l);
    }
}

static void check_fused(const char *root, const xp_arch *arch) {
    made_folder plain = {0}, fused = {0}, transposed = {0};
    add_all(&plain, arch);
    add_all(&fused, arch);
    add_all(&transposed, arch);
    fuse(&fused, arch, false);
    fuse(&transposed, arch, true);
    check_same(write_folder(root, "plain", &plain).text, &plain, arch, 1);
    check_same(write_folder(root, "fused", &fused).text, &plain, arch, arch->n_experts);
    check_same(write_folder(root, "transposed", &transposed).text, &plain, arch, 1);
    snprintf(find(&fused, "model.layers.1.mlp.experts.down_proj")->name, 128,
             "model.layers.1.mlp.experts.down_proj.weight");
    check_same(write_folder(root, "suffix", &fused).text, &plain, arch, 1);
    free_folder(&plain);
    free_folder(&fused);
    free_folder(&transposed);
}

static void test_fused_experts(void **state) {
    xp_arch arch = small; /* 2F = D: gate_up_proj alone does not tell the layouts apart */
    check_fused(*state, &arch);
    arch.moe_dim = 16; /* F = D: down_proj alone does not */
    check_fused(*state, &arch);
    arch.moe_dim = 12;
    check_fused(*state, &arch);
}

static void test_fused_of_another_shape(void **state) {
    xp_arch arch = small;
    made_folder f = {0};
    loaded l;
    add_all(&f, &arch);
    fuse(&f, &arch, false);
    xp_scratch_path folder = write_folder(*state, "f", &f);
    arch.n_experts = 4;
    assert_int_equal(load(folder.text, &arch, 0, 1, &l), XP_EFORMAT);
    unload(&l);
    arch = small;
    arch.moe_dim = 10;
    assert_int_equal(load(folder.text, &arch, 0, 1, &l), XP_EFORMAT);
    assert_true(xp_scratch_error_has("gate_up_proj is [3, 16, 16], the model needs [3, 20, 16]"));
    unload(&l);
    snprintf(find(&f, "model.layers.1.mlp.experts.down_proj")->name, 128, "gone");
    assert_int_equal(load(write_folder(*state, "g", &f).text, &small, 0, 1, &l), XP_EFORMAT);
    assert_true(xp_scratch_error_has("model.layers.1.mlp.experts.down_proj is missing"));
    unload(&l);
    free_folder(&f);
}

static void rename_all(made_folder *f, const char *prefix, const char *inside) {
    for (int i = 0; i < f->n; i++) {
        char name[128];
        const char *plain = f->tensors[i].name;
        const char *rest = strncmp(plain, "model.layers.", 13) == 0 ? plain + 13 : NULL;
        if (inside && rest) /* behind the layer's number */
            snprintf(name, sizeof name, "%s%.*s%s%s", prefix, (int)(strchr(rest, '.') + 1 - plain),
                     plain, inside, strchr(rest, '.') + 1);
        else
            snprintf(name, sizeof name, "%s%s", prefix, plain);
        memcpy(f->tensors[i].name, name, sizeof name);
    }
}

static void test_wrappers(void **state) {
    static const char *const prefixes[] = {"_orig_mod.", "module.", "module._orig_mod.",
                                           "_fsdp_wrapped_module.", "language_model."};
    made_folder plain = {0}, other = {0};
    add_all(&plain, &small);
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        add_all(&other, &small);
        rename_all(&other, prefixes[i], i % 2 ? "_orig_mod." : NULL);
        check_same(write_folder(*state, prefixes[i], &other).text, &plain, &small, 1);
        free_folder(&other);
    }
    /* A language model inside a larger one, and one without its "model.". */
    for (int bare = 0; bare < 2; bare++) {
        add_all(&other, &small);
        for (int i = 0; i < other.n; i++) {
            char name[128];
            const char *was = other.tensors[i].name;
            if (strncmp(was, "model.", 6) != 0)
                continue;
            snprintf(name, sizeof name, "%s%s", bare ? "" : "model.language_model.", was + 6);
            memcpy(other.tensors[i].name, name, sizeof name);
        }
        check_same(write_folder(*state, bare ? "bare" : "inner", &other).text, &plain, &small, 1);
        free_folder(&other);
    }
    loaded l;
    add_all(&other, &small);
    rename_all(&other, "student.net.", NULL);
    assert_int_equal(load(write_folder(*state, "odd", &other).text, &small, 0, 1, &l), XP_EFORMAT);
    assert_true(xp_scratch_error_has("without the prefix 'student.net.model.'"));
    unload(&l);
    free_folder(&other);
    add_all(&other, &small);
    add(&other, "_orig_mod.model.norm.weight", 1, (const int64_t[]){small.dim});
    assert_int_equal(load(write_folder(*state, "twice", &other).text, &small, 0, 1, &l),
                     XP_EFORMAT);
    assert_true(xp_scratch_error_has("name the same tensor model.norm.weight"));
    unload(&l);
    free_folder(&other);
    free_folder(&plain);
}

static void test_unused_tensors_are_named(void **state) {
    static const struct {
        const char *name, *word;
    } cases[] = {
        {"model.layers.0.self_attn.q_proj.bias", "biases"},
        {"model.layers.1.mlp.shared_expert.up_proj.weight", "shared experts"},
        {"model.layers.2.input_layernorm.weight", "layers past"},
        {"mtp.fc.weight", "does not have"},
        {"visual.patch_embed.weight", "does not have"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        made_folder f = {0};
        loaded l;
        add_all(&f, &small);
        add(&f, cases[i].name, 1, (const int64_t[]){16});
        add(&f, "model.layers.0.self_attn.rotary_emb.inv_freq", 1, (const int64_t[]){4});
        /* Each rank of an expert-parallel run knows that other ranks use other experts. */
        for (int rank = 0; rank < 3; rank++) {
            assert_int_equal(load(write_folder(*state, "f", &f).text, &small, rank, 3, &l), XP_OK);
            assert_int_equal(l.n_warnings, 1);
            assert_non_null(strstr(l.warnings, cases[i].name));
            assert_non_null(strstr(l.warnings, cases[i].word));
            unload(&l);
        }
        free_folder(&f);
    }
    made_folder f = {0};
    loaded l;
    add_all(&f, &small);
    for (int i = 0; i < 9; i++) {
        char name[64];
        snprintf(name, sizeof name, "model.layers.0.x%d.bias", i);
        add(&f, name, 1, (const int64_t[]){2});
    }
    assert_int_equal(load(write_folder(*state, "many", &f).text, &small, 0, 1, &l), XP_OK);
    assert_int_equal(l.n_warnings, 1);
    assert_non_null(strstr(l.warnings, "x5.bias and 3 more"));
    unload(&l);
    free_folder(&f);
}

static void test_a_head_beside_a_tied_embedding(void **state) {
    xp_arch tied = small;
    made_folder f = {0};
    loaded l;
    tied.tie_embeddings = true;
    add_all(&f, &tied);
    float *head = add(&f, "lm_head.weight", 2, (const int64_t[]){small.vocab_size, small.dim});
    const float *embed = find(&f, "model.embed_tokens.weight")->values;
    memcpy(head, embed, (size_t)(small.vocab_size * small.dim) * sizeof *head);
    assert_int_equal(load(write_folder(*state, "same", &f).text, &tied, 0, 1, &l), XP_OK);
    assert_int_equal(l.n_warnings, 0);
    unload(&l);
    head[small.vocab_size * small.dim - 1] += 1.0F;
    assert_int_equal(load(write_folder(*state, "other", &f).text, &tied, 0, 1, &l), XP_OK);
    assert_int_equal(l.n_warnings, 1);
    assert_non_null(strstr(l.warnings, "tie_word_embeddings"));
    unload(&l);
    free_folder(&f);
}

static void test_values_that_are_no_numbers(void **state) {
    static const float values[] = {NAN, INFINITY, -INFINITY};
    for (int fused = 0; fused < 2; fused++)
        for (int i = 0; i < 3; i++) {
            made_folder f = {0};
            loaded l;
            add_all(&f, &small);
            if (fused)
                fuse(&f, &small, i == 1);
            const char *name =
                fused ? "model.layers.1.mlp.experts.down_proj" : "model.embed_tokens.weight";
            find(&f, name)->values[16 * 5 + 3] = values[i];
            assert_int_equal(load(write_folder(*state, "f", &f).text, &small, 0, 1, &l),
                             XP_EFORMAT);
            assert_true(xp_scratch_error_has(name));
            assert_true(xp_scratch_error_has(i == 0 ? "NaN" : "Inf"));
            if (!fused)
                assert_true(xp_scratch_error_has("row 5, column 3"));
            unload(&l);
            free_folder(&f);
        }
}

static void test_lfs_pointers(void **state) {
    static const char pointer[] =
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n";
    static const char *const files[] = {"model.safetensors", "model.safetensors.index.json"};
    for (int i = 0; i < 2; i++) {
        xp_scratch_path folder = xp_scratch_join(*state, files[i]);
        xp_arch arch;
        loaded l;
        assert_int_equal(xp_folder_create(folder.text), XP_OK);
        xp_scratch_write(xp_scratch_join(folder.text, files[i]).text, pointer, sizeof pointer - 1);
        assert_int_equal(load(folder.text, &small, 0, 1, &l), XP_EFORMAT);
        assert_true(xp_scratch_error_has("Git LFS pointer"));
        assert_true(xp_scratch_error_has(files[i]));
        unload(&l);
        xp_scratch_path config = xp_scratch_join(folder.text, "config.json");
        xp_scratch_write(config.text, pointer, sizeof pointer - 1);
        assert_int_equal(xp_arch_from_hf(config.text, &arch), XP_EFORMAT);
        assert_true(xp_scratch_error_has("Git LFS pointer"));
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, xp_scratch_setup, xp_scratch_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_fused_experts),
        TEST(test_fused_of_another_shape),
        TEST(test_wrappers),
        TEST(test_unused_tensors_are_named),
        TEST(test_a_head_beside_a_tied_embedding),
        TEST(test_values_that_are_no_numbers),
        TEST(test_lfs_pointers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
