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
#include "../checkpoint/scratch.h"
#include "core/file.h"
#include "train/arch_values.h"
#include "train/inference.h"
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

/* Weights of the model with one value of `tensor` replaced. */
static void save(const char *folder, const char *tensor, float value) {
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
                data[slice.n_elements - 1] = value;
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
        save(folder.text, cases[i].tensor, cases[i].value);
        for (int trains = 0; trains < 2; trains++) {
            assert_int_equal(trains ? train_from(*state, folder.text) : evaluate(folder.text),
                             XP_EFORMAT);
            assert_true(xp_scratch_error_has(cases[i].tensor));
            assert_true(xp_scratch_error_has(cases[i].word));
        }
    }
    xp_scratch_path folder = xp_scratch_join(*state, "good");
    save(folder.text, "model.norm.weight", 1.0F);
    must(evaluate(folder.text));
    must(train_from(*state, folder.text));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(
        test_values_that_are_no_numbers, xp_scratch_setup, xp_scratch_teardown)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
