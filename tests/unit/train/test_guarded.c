/*
 * Whole runs on CPU devices whose memory host code cannot touch ("guard"), and whose compute stream
 * works only when somebody waits for it ("late"): what passes here neither reads device memory on
 * the host nor reads a result before it has waited for it. Results are those of a plain run, bit
 * for bit.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/rng.h"
#include "device/cpu/cpu_device.h"
#include "train/launch.h"
#include "train/run_state.h"

#define N_TOKENS 20000
#define VOCAB    256

static int make_data(void **state) {
    char folder[] = "/tmp/expar_guarded_XXXXXX";
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

static void must(xp_status status) {
    if (status != XP_OK)
        fail_msg("%s: %s", xp_status_name(status), xp_last_error());
}

/** One run: what differs from the small model below, as pairs of key and value. */
typedef struct variant {
    const char *name;
    const char *options[14]; /* pairs; NULL ends them */
} variant;

static const variant variants[] = {
    {"plain", {NULL}},
    {"accumulated", {"training.global_batch_size", "4"}},
    {"selective", {"activation_checkpoint.mode", "selective"}},
    {"full", {"activation_checkpoint.mode", "full"}},
    {"losses", {"moe.aux_loss_coeff", "0.01", "moe.z_loss_coeff", "0.001"}},
    {"rounds", {"moe.capacity_factor", "0.5"}},
    {"forced", {"debug.moe_force_load_balance", "true"}},
};

static xp_config_set *configure(const char *folder, const char *run, const char *caps,
                                const char *dtype, const variant *v) {
    static const char *const options[][2] = {{"model.flavor", "custom"},
                                             {"model.dim", "32"},
                                             {"model.n_layers", "2"},
                                             {"model.n_heads", "2"},
                                             {"model.n_kv_heads", "1"},
                                             {"model.head_dim", "16"},
                                             {"model.vocab_size", "256"},
                                             {"moe.num_experts", "4"},
                                             {"moe.top_k", "2"},
                                             {"moe.moe_dim", "24"},
                                             {"training.dataset", "tokens"},
                                             {"training.backend", "cpu"},
                                             {"training.seq_len", "32"},
                                             {"training.local_batch_size", "2"},
                                             {"training.steps", "6"},
                                             {"checkpoint.enable", "true"},
                                             {"checkpoint.interval", "6"},
                                             {"lr_scheduler.warmup_steps", "2"},
                                             {"validation.enable", "true"},
                                             {"validation.freq", "3"},
                                             {"validation.steps", "2"},
                                             {"validation.dataset", "tokens"},
                                             {"job.threads_per_rank", "2"}};
    char data[80], dump[160];
    xp_config_set *set = NULL;
    snprintf(data, sizeof data, "%s/tokens.bin", folder);
    snprintf(dump, sizeof dump, "%s/%s-%s", folder, v->name, run);
    must(xp_config_load(0, NULL, true, &set));
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        must(xp_config_override(set, options[i][0], options[i][1]));
    must(xp_config_override(set, "training.dataset_path", data));
    must(xp_config_override(set, "validation.dataset_path", data));
    must(xp_config_override(set, "job.dump_folder", dump));
    must(xp_config_override(set, "training.dtype", dtype));
    if (caps)
        must(xp_config_override(set, "debug.device_caps", caps));
    for (int i = 0; v->options[i]; i += 2)
        must(xp_config_override(set, v->options[i], v->options[i + 1]));
    return set;
}

static xp_train_result train(const char *folder, const char *run, const char *caps,
                             const char *dtype, const variant *v, const char *steps) {
    xp_train_result result;
    xp_config_set *set = configure(folder, run, caps, dtype, v);
    must(xp_config_override(set, "training.steps", steps));
    must(xp_train_launch(set, &(xp_start){.n_ranks = (int)xp_config_get(set)->job.ngpu}, NULL,
                         &result));
    xp_config_destroy(set);
    return result;
}

/* The last checkpoint's tensors: the same bytes. */
static void assert_same_weights(const xp_train_result *a, const xp_train_result *b, int n_ranks) {
    for (int r = 0; r < n_ranks; r++) {
        char path[700], name[64], *data[2];
        size_t n[2];
        snprintf(name, sizeof name, "rank-%05d.safetensors", r);
        for (int i = 0; i < 2; i++) {
            snprintf(path, sizeof path, "%s/%s", (i ? b : a)->last_checkpoint, name);
            must(xp_file_read(path, 1 << 28, &data[i], &n[i]));
        }
        assert_int_equal(n[0], n[1]);
        assert_memory_equal(data[0], data[1], n[0]);
        free(data[0]);
        free(data[1]);
    }
}

static void guarded_runs_give_the_bits_of_plain_ones(void **state) {
    setenv("NGPU", "1", 1);
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++) {
        const variant *v = &variants[i];
        xp_train_result plain = train(*state, "plain", NULL, "float32", v, "6");
        xp_train_result guarded = train(*state, "guard", "test_protect", "float32", v, "6");
        xp_train_result late = train(*state, "late", "test_protect,test_defer", "float32", v, "6");
        assert_same_weights(&plain, &guarded, 1);
        assert_same_weights(&plain, &late, 1);
        assert_true(plain.mean_loss_last_50 == late.mean_loss_last_50);
        assert_int_equal(late.n_step_allocs, 0);
    }
}

/* Only a guarded device stands for a GPU here, so bf16 runs are compared with each other. */
static void bf16_and_resuming(void **state) {
    setenv("NGPU", "1", 1);
    const variant *v = &variants[0];
    xp_train_result once = train(*state, "bf16", "test_protect", "bfloat16", v, "6");
    xp_train_result late =
        train(*state, "bf16-late", "test_protect,test_defer", "bfloat16", v, "3");
    assert_int_equal(late.last_step, 3);
    late = train(*state, "bf16-late", "test_protect,test_defer", "bfloat16", v, "6");
    assert_int_equal(late.first_step, 3);
    assert_same_weights(&once, &late, 1);
}

/* Gradients on spent expert rows, or in memory of their own: the bits are the same. "true" is refused where it would
 * have no effect. */
static void gradients_on_spent_rows(void **state) {
    static const struct {
        const char *ranks, *ep, *dtype, *caps;
    } runs[] = {{"1", "1", "float32", NULL},
                {"1", "1", "bfloat16", "test_protect,test_defer"},
                {"2", "2", "bfloat16", "test_protect"},
                {"2", "1", "bfloat16", "test_protect"}};
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        xp_train_result results[2];
        setenv("NGPU", runs[i].ranks, 1);
        for (int reuse = 0; reuse < 2; reuse++) {
            char name[32];
            snprintf(name, sizeof name, "rows-%zu-%d", i, reuse);
            const variant v = {name,
                               {"model.dim", "64", "model.head_dim", "64", "moe.moe_dim", "32",
                                "training.seq_len", "512", "parallelism.expert_parallel_degree",
                                runs[i].ep, "activation_checkpoint.reuse_for_gradients",
                                reuse ? "true" : "false"}};
            results[reuse] = train(*state, "run", runs[i].caps, runs[i].dtype, &v, "6");
        }
        assert_same_weights(&results[0], &results[1], atoi(runs[i].ranks));
        assert_true(results[0].mean_loss_last_50 == results[1].mean_loss_last_50);
        assert_int_equal(results[1].n_step_allocs, 0);
    }
    setenv("NGPU", "1", 1);
}

/* Passes that are recorded once and launched again: the bits of passes that are queued op by op. */
static void recorded_passes_give_the_same_bits(void **state) {
    static const char *const caps[] = {"test_protect", "test_protect,test_defer"};
    setenv("NGPU", "1", 1);
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++) {
        variant v = variants[i];
        xp_train_result plain = train(*state, "ops", NULL, "float32", &v, "12");
        int n = 0;
        while (v.options[n])
            n += 2;
        v.options[n] = "training.cuda_graph";
        v.options[n + 1] = "true";
        for (int late = 0; late < 2; late++) {
            xp_train_result graphs =
                train(*state, late ? "graphs-late" : "graphs", caps[late], "float32", &v, "12");
            assert_same_weights(&plain, &graphs, 1);
            assert_int_equal(graphs.n_step_allocs, 0);
        }
    }
}

static void recorded_passes_of_data_parallel_ranks(void **state) {
    setenv("NGPU", "2", 1);
    variant v = {"ranks-graphs", {NULL}};
    xp_train_result plain = train(*state, "ops", NULL, "float32", &v, "8");
    v.options[0] = "training.cuda_graph";
    v.options[1] = "true";
    xp_train_result graphs = train(*state, "graphs", "test_protect", "float32", &v, "8");
    assert_same_weights(&plain, &graphs, 2);
    setenv("NGPU", "1", 1);
}

/* Two passes of a kind as they are, then recordings; of experts over several ranks none. */
static void which_passes_are_recorded(void **state) {
    static const variant v = {"kinds",
                              {"training.cuda_graph", "true", "training.global_batch_size", "6"}};
    xp_config_set *set = configure(*state, "kinds", "test_protect", "float32", &v);
    xp_train_shared *shared = NULL;
    xp_trainer *t = NULL;
    must(xp_train_shared_create(xp_config_get(set), NULL, &shared));
    must(xp_trainer_open(set, shared, NULL, 1, NULL, &t));
    must(xp_trainer_start(t));
    /* The first of three microbatches is one kind, the other two are another. */
    int64_t before = 0;
    for (int step = 0; step < 4; step++) {
        xp_step_record record;
        must(xp_trainer_step(t, &record));
        const int64_t n = xp_model_n_graph_passes(t->run.model);
        assert_int_equal(n - before, step == 0 ? 0 : step == 1 ? 2 : 3);
        before = n;
    }
    assert_null(xp_model_graph_failure(t->run.model));
    xp_trainer_close(t);
    xp_train_shared_destroy(shared);
    xp_config_destroy(set);
}

static void rank_threads(void **state) {
    static const char *const degrees[] = {"1", "2"};
    setenv("NGPU", "2", 1);
    for (int i = 0; i < 2; i++) {
        variant v = {i ? "ranks-ep2" : "ranks-ep1",
                     {"parallelism.expert_parallel_degree", degrees[i]}};
        xp_train_result plain = train(*state, "plain", NULL, "float32", &v, "6");
        xp_train_result guarded = train(*state, "guard", "test_protect", "float32", &v, "6");
        assert_same_weights(&plain, &guarded, 2);
    }
    setenv("NGPU", "1", 1);
}

/* Inside a step: no wait before all of it is queued, no allocation, no copy that a GPU would wait
 * for. */
static void a_step_does_not_wait(void **state) {
    for (size_t i = 0; i < 2; i++) {
        xp_config_set *set =
            configure(*state, "steps", "test_protect,test_defer", "bfloat16", &variants[i]);
        const xp_config *config = xp_config_get(set);
        xp_train_shared *shared = NULL;
        xp_trainer *t = NULL;
        must(xp_train_shared_create(config, NULL, &shared));
        must(xp_trainer_open(set, shared, NULL, 1, NULL, &t));
        must(xp_trainer_start(t));
        for (int step = 0; step < 4; step++) {
            xp_step_record record;
            int64_t n_pageable = xp_cpu_device_n_pageable(t->device);
            must(xp_trainer_step(t, &record));
            assert_int_equal(record.n_host_syncs, 0);
            assert_int_equal(xp_cpu_device_n_pageable(t->device), n_pageable);
            if (step > 0)
                assert_int_equal(record.n_allocs, 0);
        }
        xp_trainer_close(t);
        xp_train_shared_destroy(shared);
        xp_config_destroy(set);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guarded_runs_give_the_bits_of_plain_ones),
        cmocka_unit_test(bf16_and_resuming),
        cmocka_unit_test(gradients_on_spent_rows),
        cmocka_unit_test(recorded_passes_give_the_same_bits),
        cmocka_unit_test(recorded_passes_of_data_parallel_ranks),
        cmocka_unit_test(which_passes_are_recorded),
        cmocka_unit_test(rank_threads),
        cmocka_unit_test(a_step_does_not_wait),
    };
    return cmocka_run_group_tests(tests, make_data, remove_data);
}
