/* A whole run through the library: its result, and that steps allocate nothing. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/rng.h"
#include "train/launch.h"

#define N_TOKENS 20000
#define VOCAB    256

static int make_data(void **state) {
    char folder[] = "/tmp/expar_trainer_XXXXXX";
    char path[64];
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/tokens.bin", folder);
    uint32_t *ids = malloc(N_TOKENS * sizeof *ids);
    if (!ids)
        return -1;
    for (int i = 0; i < N_TOKENS; i++)
        ids[i] = (uint32_t)xp_rng_below(1, 0, (uint64_t)i, VOCAB);
    xp_status status = xp_file_write_atomic(path, ids, N_TOKENS * sizeof *ids);
    free(ids);
    *state = strdup(folder);
    return status == XP_OK && *state ? 0 : -1;
}

static int remove_data(void **state) {
    xp_status status = xp_folder_remove(*state);
    free(*state);
    return status == XP_OK ? 0 : -1;
}

static xp_status run(const char *folder, const char *ranks, const char *ep, xp_train_result *out) {
    char data[80];
    char dump[80];
    char vocab[16];
    snprintf(data, sizeof data, "%s/tokens.bin", folder);
    snprintf(dump, sizeof dump, "%s/run-%s-%s", folder, ranks, ep);
    snprintf(vocab, sizeof vocab, "%d", VOCAB);
    char *argv[] = {"--model.flavor",
                    "custom",
                    "--model.dim",
                    "32",
                    "--model.n_layers",
                    "2",
                    "--model.n_heads",
                    "2",
                    "--model.n_kv_heads",
                    "1",
                    "--model.head_dim",
                    "16",
                    "--model.vocab_size",
                    vocab,
                    "--moe.num_experts",
                    "4",
                    "--moe.top_k",
                    "2",
                    "--moe.moe_dim",
                    "24",
                    "--training.dataset",
                    "tokens",
                    "--training.dataset_path",
                    data,
                    "--job.dump_folder",
                    dump,
                    "--training.seq_len",
                    "32",
                    "--training.local_batch_size",
                    "2",
                    "--training.steps",
                    "6",
                    "--checkpoint.enable",
                    "--checkpoint.interval",
                    "2",
                    "--lr_scheduler.warmup_steps",
                    "2",
                    "--job.threads_per_rank",
                    "1"};
    xp_config_set *set = NULL;
    setenv("NGPU", ranks, 1);
    if (xp_config_load((int)(sizeof argv / sizeof argv[0]), argv, true, &set) != XP_OK ||
        xp_config_override(set, "parallelism.expert_parallel_degree", ep) != XP_OK)
        fail_msg("%s", xp_last_error());
    xp_status status =
        xp_train_launch(set, &(xp_start){.n_ranks = (int)xp_config_get(set)->job.ngpu}, NULL, out);
    xp_config_destroy(set);
    return status;
}

static void steps_allocate_nothing(void **state) {
    static const char *const layouts[][2] = {{"1", "1"}, {"2", "1"}, {"2", "2"}, {"4", "2"}};
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        xp_train_result result;
        if (run(*state, layouts[i][0], layouts[i][1], &result) != XP_OK)
            fail_msg("%s", xp_last_error());
        assert_int_equal(result.first_step, 0);
        assert_int_equal(result.last_step, 6);
        assert_int_equal(result.tokens_seen, 6 * 64 * atoi(layouts[i][0]));
        assert_int_equal(result.n_step_allocs, 0);
        assert_false(result.already_done);
        assert_non_null(strstr(result.last_checkpoint, "checkpoint/step-6"));
        if (run(*state, layouts[i][0], layouts[i][1], &result) != XP_OK)
            fail_msg("%s", xp_last_error());
        assert_true(result.already_done);
        assert_int_equal(result.last_step, 6);
    }
}

static void wrong_degree_has_one_error(void **state) {
    xp_train_result result;
    assert_int_equal(run(*state, "2", "4", &result), XP_ECONFIG);
    assert_non_null(strstr(xp_last_error(), "expert_parallel_degree 4"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_allocate_nothing),
        cmocka_unit_test(wrong_degree_has_one_error),
    };
    return cmocka_run_group_tests(tests, make_data, remove_data);
}
