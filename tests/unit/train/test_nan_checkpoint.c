/*
 * A checkpoint with a value that is no number, in a row that a run may not use for a long time: loading it is an error
 * that names the tensor, as a run's weights and for evaluation.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "../checkpoint/scratch.h"
#include "core/file.h"
#include "train/arch_values.h"
#include "train/inference.h"
#include "checkpoint/safetensors.h"
#include "train/launch.h"

#define N_TOKENS   2000
#define MAX_PIECES 64

static const char *const model_options[][2] = {
    {"model.flavor", "custom"}, {"model.dim", "16"},       {"model.n_layers", "1"},
    {"model.n_heads", "2"},     {"model.n_kv_heads", "1"}, {"model.head_dim", "8"},
    {"model.vocab_size", "64"}, {"moe.num_experts", "2"},  {"moe.top_k", "1"},
    {"moe.moe_dim", "8"},       {"training.seq_len", "16"}};

static void must(xp_status status) {
    if (status != XP_OK)
        fail_msg("%s: %s", xp_status_name(status), xp_last_error());
}

static xp_config_set *configure(void) {
    xp_config_set *set = NULL;
    must(xp_config_load(0, NULL, false, &set));
    for (size_t i = 0; i < sizeof model_options / sizeof model_options[0]; i++)
        must(xp_config_override(set, model_options[i][0], model_options[i][1]));
    return set;
}

/* A value that stands once in the checkpoint, where poison() puts another. */
#define SENTINEL 12345.678F

/* Weights of the model, SENTINEL as the last value of `tensor`. */
static void save(const char *folder, const char *tensor) {
    xp_config_set *set = configure();
    xp_arch arch;
    xp_param_table *table = NULL;
    must(xp_arch_from_config(xp_config_get(set), &arch));
    must(xp_param_table_create(&arch, 0, 1, &table));
    static char names[MAX_PIECES][160];
    xp_ckpt_piece pieces[MAX_PIECES];
    int n = 0;
    for (int p = 0; p < xp_param_table_n_params(table); p++)
        for (int i = 0; i < xp_param_table_param(table, p)->n_slices; i++, n++) {
            xp_param_slice slice;
            xp_param_table_slice(table, p, i, &slice);
            assert_true(n < MAX_PIECES);
            snprintf(names[n], sizeof names[n], "param/%s", slice.hf_name);
            float *data = malloc((size_t)slice.n_elements * sizeof *data);
            assert_non_null(data);
            for (int64_t e = 0; e < slice.n_elements; e++)
                data[e] = 0.01F * (float)(e % 7);
            if (strcmp(slice.hf_name, tensor) == 0)
                data[slice.n_elements - 1] = SENTINEL;
            pieces[n] = (xp_ckpt_piece){.name = names[n],
                                        .dtype = XP_F32,
                                        .n_dims = slice.n_dims,
                                        .n = slice.n_elements,
                                        .data = data};
            memcpy(pieces[n].shape, slice.shape, sizeof slice.shape);
        }
    xp_arch_values values;
    xp_ckpt_value list[XP_ARCH_VALUES + 2];
    xp_arch_values_fill(&arch, &values);
    for (int i = 0; i < values.n; i++)
        list[i] = (xp_ckpt_value){.key = values.keys[i], .value = values.values[i]};
    list[values.n] = (xp_ckpt_value){.key = "model_only", .value = "true"};
    const xp_ckpt_save_args args = {.folder = folder,
                                    .step = 1,
                                    .pieces = pieces,
                                    .n_pieces = n,
                                    .values = list,
                                    .n_values = values.n + 1};
    must(xp_ckpt_save(&args));
    for (int i = 0; i < n; i++)
        free(pieces[i].data);
    xp_param_table_destroy(table);
    xp_config_destroy(set);
}

static void put_hash(const void *data, size_t n, char out[17]) {
    snprintf(out, 17, "%016llx", (unsigned long long)XXH64(data, n, 0));
}

static void replace(char *text, const char *from, const char *to) {
    char *at = strstr(text, from);
    assert_non_null(at);
    memcpy(at, to, strlen(to));
}

/* As written by a program that does not look at what it saves: the value, and every checksum, in place. */
static void poison(const char *folder, const char *tensor, float value) {
    xp_scratch_path step = xp_scratch_join(folder, "step-1");
    xp_scratch_path shard = xp_scratch_join(step.text, "rank-00000.safetensors"),
                    manifest = xp_scratch_join(step.text, "manifest.json");
    const float sentinel = SENTINEL;
    char name[160], old_file[17], new_file[17], old_piece[17], new_piece[17], tail[17];
    size_t n = 0, n_text = 0;
    xp_st_file *file = NULL;
    char *data = xp_scratch_read(shard.text, &n), *text = xp_scratch_read(manifest.text, &n_text);
    snprintf(name, sizeof name, "param/%s", tensor);
    put_hash(data, n, old_file);
    must(xp_st_open(shard.text, &file));
    put_hash(xp_st_find(file, name)->data, (size_t)xp_st_find(file, name)->n_bytes, old_piece);
    xp_st_close(file);
    char *at = memmem(data, n, &sentinel, sizeof sentinel);
    assert_non_null(at);
    memcpy(at, &value, sizeof value);
    xp_scratch_write(shard.text, data, n);
    put_hash(data, n, new_file);
    must(xp_st_open(shard.text, &file));
    put_hash(xp_st_find(file, name)->data, (size_t)xp_st_find(file, name)->n_bytes, new_piece);
    xp_st_close(file);
    replace(text, old_file, new_file);
    replace(text, old_piece, new_piece);
    char *last = text + n_text - strlen(" \"xxh64\": \"0123456789abcdef\"}\n");
    put_hash(text, (size_t)(last - text), tail);
    memcpy(last + strlen(" \"xxh64\": \""), tail, 16);
    xp_scratch_write(manifest.text, text, n_text);
    free(data);
    free(text);
}

static xp_status evaluate(const char *folder) {
    const xp_inference_args args = {.checkpoint = folder,
                                    .step = -1,
                                    .device = "cpu",
                                    .n_rows = 1,
                                    .seq_len = 16,
                                    .n_threads = 1};
    xp_inference inf;
    xp_status status = xp_inference_open(&args, &inf);
    if (status == XP_OK)
        xp_inference_close(&inf);
    return status;
}

static xp_status train_from(const char *root, const char *folder) {
    xp_scratch_path data = xp_scratch_join(root, "tokens.bin"),
                    dump = xp_scratch_join(root, "dump");
    uint32_t ids[N_TOKENS];
    xp_train_result result;
    for (int i = 0; i < N_TOKENS; i++)
        ids[i] = (uint32_t)(i % 50);
    xp_scratch_write(data.text, ids, sizeof ids);
    xp_config_set *set = configure();
    must(xp_config_override(set, "training.dataset", "tokens"));
    must(xp_config_override(set, "training.dataset_path", data.text));
    must(xp_config_override(set, "training.backend", "cpu"));
    must(xp_config_override(set, "training.steps", "1"));
    must(xp_config_override(set, "training.local_batch_size", "1"));
    must(xp_config_override(set, "job.threads_per_rank", "1"));
    must(xp_config_override(set, "job.dump_folder", dump.text));
    must(xp_config_override(set, "checkpoint.initial_load_path", folder));
    xp_status status = xp_train_launch(set, &(xp_start){.n_ranks = 1}, NULL, &result);
    xp_config_destroy(set);
    return status;
}

static void test_values_that_are_no_numbers(void **state) {
    static const struct {
        const char *tensor;
        float value;
        const char *word;
    } cases[] = {{"model.embed_tokens.weight", NAN, "NaN"},
                 {"model.layers.0.mlp.experts.1.down_proj.weight", INFINITY, "Inf"},
                 {"model.norm.weight", -INFINITY, "Inf"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        xp_scratch_path folder = xp_scratch_join(*state, "ckpt");
        must(xp_folder_remove(folder.text));
        save(folder.text, cases[i].tensor);
        poison(folder.text, cases[i].tensor, cases[i].value);
        for (int trains = 0; trains < 2; trains++) {
            assert_int_equal(trains ? train_from(*state, folder.text) : evaluate(folder.text),
                             XP_EFORMAT);
            assert_true(xp_scratch_error_has(cases[i].tensor));
            assert_true(xp_scratch_error_has(cases[i].word));
        }
    }
    xp_scratch_path folder = xp_scratch_join(*state, "good");
    save(folder.text, "model.norm.weight");
    poison(folder.text, "model.norm.weight", 1.0F);
    must(evaluate(folder.text));
    must(train_from(*state, folder.text));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(
        test_values_that_are_no_numbers, xp_scratch_setup, xp_scratch_teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
