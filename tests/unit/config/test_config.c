/** Merging: defaults, file, environment and command line, in both spellings; aliases; TorchTitan's
 * files; the shipped files. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <glob.h>
#include <unistd.h>
#include "config/config.h"

enum { MAX_WORDS = 32 };

/** Load the words of a line, blanks between them. */
static xp_config_set *load(const char *line, bool environment) {
    char *copy = strdup(line), *words[MAX_WORDS];
    assert_non_null(copy);
    int n = 0;
    char *rest = copy;
    for (char *word; *line && (word = strsep(&rest, " ")) && n < MAX_WORDS;)
        words[n++] = word;
    xp_config_set *set = NULL;
    if (xp_config_load(n, words, environment, &set) != XP_OK)
        fail_msg("%s: %s", line, xp_last_error());
    free(copy); /* the set keeps nothing of the caller's words */
    return set;
}

static xp_config_set *load_text(const char *text, const char *more) {
    char path[] = XP_BINARY_DIR "/merge_XXXXXX.toml", line[1000];
    int fd = mkstemps(path, 5);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    snprintf(line, sizeof line, "--job.config_file %s%s%s", path, *more ? " " : "", more);
    xp_config_set *set = load(line, false);
    unlink(path);
    return set;
}

static void defaults_are_as_documented(void **state) {
    (void)state;
    xp_config_set *set = load("", false);
    const xp_config *c = xp_config_get(set);
    assert_null(c->job.config_file);
    assert_string_equal(c->job.dump_folder, "./outputs");
    assert_string_equal(c->job.save_config_file, "config.toml");
    assert_int_equal(c->job.log_rank, -1);
    assert_string_equal(c->model.name, "qwen3");
    assert_string_equal(c->model.flavor, "tiny_moe");
    assert_int_equal(c->model.tie_embeddings, -1);
    assert_string_equal(c->training.dataset, "text");
    assert_int_equal(c->training.local_batch_size, 8);
    assert_int_equal(c->training.global_batch_size, -1);
    assert_int_equal(c->training.seq_len, 2048);
    assert_int_equal(c->training.steps, 10000);
    assert_int_equal(c->training.shuffle, -1);
    assert_null(c->training.dtype);
    assert_true(c->training.max_norm == 1.0);
    assert_true(c->optimizer.lr == 8e-4);
    assert_true(c->optimizer.beta2 == 0.95);
    assert_true(c->optimizer.eps == 1e-8);
    assert_int_equal(c->lr_scheduler.warmup_steps, 200);
    assert_int_equal(c->lr_scheduler.total_steps, 0);
    assert_true(c->lr_scheduler.decay_ratio < 0);
    assert_int_equal(c->parallelism.data_parallel_shard_degree, -1);
    assert_int_equal(c->parallelism.bucket_mb, 64);
    assert_null(c->parallelism.expert_parallel_comm_backend);
    assert_int_equal(c->moe.route_norm, -1);
    assert_true(c->moe.load_balance_coeff == 1e-3);
    assert_true(c->moe.capacity_factor == 2.0);
    assert_true(c->deepep.overlap_split == 0.5);
    assert_int_equal(c->parallelism.expert_parallel_overlap, -1);
    assert_int_equal(c->deepep.overlap_num_sms, 0);
    assert_string_equal(c->activation_checkpoint.mode, "none");
    assert_false(c->checkpoint.enable);
    assert_true(c->checkpoint.initial_load_model_only);
    assert_string_equal(c->checkpoint.async_mode, "async");
    assert_int_equal(c->checkpoint.keep_latest_k, 10);
    assert_int_equal(c->checkpoint.load_step, -1);
    assert_int_equal(c->checkpoint.exclude_from_loading.n, 0);
    assert_string_equal(c->metrics.log_file, "metrics.jsonl");
    assert_int_equal(c->validation.steps, -1);
    assert_int_equal(c->comm.train_timeout_seconds, 100);
    assert_true(c->debug.deterministic);
    assert_string_equal(c->debug.moe_force_load_balance_mode, "modulo");
    assert_null(xp_config_warning(set, 0));
    xp_config_destroy(set);
}

/* A switch that also has "auto": with a word behind it or without, and read back from a file. */
static void overlap_is_auto_true_or_false(void **state) {
    (void)state;
    static const struct {
        const char *option;
        int64_t value;
        const char *text;
    } cases[] = {{"--parallelism.expert_parallel_overlap auto", -1, "= \"auto\"\n"},
                 {"--parallelism.expert_parallel_overlap", 1, "= true\n"},
                 {"--parallelism.expert_parallel_overlap true", 1, "= true\n"},
                 {"--parallelism.expert_parallel_overlap=false", 0, "= false\n"},
                 {"--parallelism.no_expert_parallel_overlap", 0, "= false\n"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[64], *text = NULL;
        xp_config_set *set = load(cases[i].option, false);
        assert_int_equal(xp_config_get(set)->parallelism.expert_parallel_overlap, cases[i].value);
        assert_int_equal(xp_config_dump_toml(set, &text), XP_OK);
        snprintf(line, sizeof line, "\nexpert_parallel_overlap %s", cases[i].text);
        assert_non_null(strstr(text, line));
        free(text);
        xp_config_destroy(set);
    }
}

static void options_come_in_every_spelling(void **state) {
    (void)state;
    xp_config_set *set =
        load("--training.steps 12 --training.seq_len=64 --training.global_batch_size -1 "
             "--training.local-batch-size 3 --optimizer.lr 1e-3 --optimizer.weight_decay=0 "
             "--checkpoint.enable --checkpoint.no_initial_load_model_only --training.no_shuffle "
             "--metrics.enable_tensorboard=true --debug.deterministic false "
             "--checkpoint.exclude_from_loading optimizer,lr_scheduler --model.flavor 30B-A3B "
             "--model.tie_embeddings --training.steps 13",
             false);
    const xp_config *c = xp_config_get(set);
    assert_int_equal(c->training.steps, 13); /* the last one counts */
    assert_int_equal(c->training.seq_len, 64);
    assert_int_equal(c->training.local_batch_size, 3);
    assert_true(c->optimizer.lr == 1e-3);
    assert_true(c->optimizer.weight_decay == 0);
    assert_true(c->checkpoint.enable);
    assert_false(c->checkpoint.initial_load_model_only);
    assert_int_equal(c->training.shuffle, 0);
    assert_true(c->metrics.enable_tensorboard);
    assert_false(c->debug.deterministic);
    assert_int_equal(c->checkpoint.exclude_from_loading.n, 2);
    assert_string_equal(c->checkpoint.exclude_from_loading.items[1], "lr_scheduler");
    assert_string_equal(c->model.flavor, "30B-A3B");
    assert_int_equal(c->model.tie_embeddings, 1);
    xp_config_destroy(set);
}

static void both_names_of_forced_balance_work(void **state) {
    (void)state;
    static const char *const lines[] = {"--training.debug_moe_force_load_balance",
                                        "--debug.moe_force_load_balance"};
    for (int i = 0; i < 2; i++) {
        xp_config_set *set = load(lines[i], false);
        assert_true(xp_config_get(set)->debug.moe_force_load_balance);
        xp_config_destroy(set);
    }
    xp_config_set *set = load_text("[training]\ndebug_moe_force_load_balance = true\n",
                                   "--debug.no_moe_force_load_balance");
    assert_false(xp_config_get(set)->debug.moe_force_load_balance);
    xp_config_destroy(set);
    set = load_text("[training]\nseed = 5\n[debug]\nseed = 5\n", "");
    assert_int_equal(xp_config_get(set)->debug.seed, 5);
    xp_config_destroy(set);
}

static void later_sources_win(void **state) {
    (void)state;
    char path[] = XP_BINARY_DIR "/env_XXXXXX.toml";
    const char text[] = "[job]\nngpu = 2\nlog_rank = 1\n[training]\nsteps = 7\nseq_len = 32\n";
    int fd = mkstemps(path, 5);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    setenv("CONFIG_FILE", path, 1);
    setenv("NGPU", "4", 1);
    setenv("LOG_RANK", "", 1); /* empty is as good as absent */
    xp_config_set *set = load("--training.steps 9", true);
    const xp_config *c = xp_config_get(set);
    assert_string_equal(c->job.config_file, path);
    assert_int_equal(c->training.steps, 9);
    assert_int_equal(c->training.seq_len, 32);
    assert_int_equal(c->job.ngpu, 4);
    assert_int_equal(c->job.log_rank, 1);
    xp_config_destroy(set);
    set = load("--job.ngpu 8", true);
    assert_int_equal(xp_config_get(set)->job.ngpu, 8);
    xp_config_destroy(set);
    set = load("", false); /* the environment is not asked */
    assert_int_equal(xp_config_get(set)->training.steps, 10000);
    assert_int_equal(xp_config_get(set)->job.ngpu, 0);
    xp_config_destroy(set);
    setenv("CONFIG_FILE", "/nonexistent", 1); /* the option is stronger */
    char line[300];
    snprintf(line, sizeof line, "--job.config_file /nonexistent --job.config_file=%s", path);
    set = load(line, true);
    assert_int_equal(xp_config_get(set)->training.steps, 7);
    xp_config_destroy(set);
    unsetenv("CONFIG_FILE");
    unsetenv("NGPU");
    unsetenv("LOG_RANK");
    unlink(path);
}

/* The shape of TorchTitan's own files, old and new names mixed. */
static const char torchtitan[] = "[job]\n"
                                 "dump_folder = \"./outputs\"\n"
                                 "description = \"Qwen 3 debug training\"\n"
                                 "print_config = false\n"
                                 "use_for_integration_test = true\n"
                                 "[profiling]\n"
                                 "enable_profiling = false\n"
                                 "save_traces_folder = \"profile_trace\"\n"
                                 "profile_freq = 100\n"
                                 "enable_memory_snapshot = false\n"
                                 "[metrics]\n"
                                 "log_freq = 1\n"
                                 "enable_wandb = false\n"
                                 "[model]\n"
                                 "name = \"qwen3\"\n"
                                 "flavor = \"debugmodel_moe\"\n"
                                 "tokenizer_path = \"./assets/hf/Qwen3-0.6B\"\n"
                                 "converters = [\"float8\"]\n"
                                 "[optimizer]\n"
                                 "name = \"AdamW\"\n"
                                 "lr = 3e-4\n"
                                 "eps = 1e-8\n"
                                 "implementation = \"fused\"\n"
                                 "[lr_scheduler]\n"
                                 "warmup_steps = 2\n"
                                 "[training]\n"
                                 "local_batch_size = 4\n"
                                 "seq_len = 4096\n"
                                 "max_norm = 1.0\n"
                                 "steps = 10\n"
                                 "dataset = \"c4_test\"\n"
                                 "mixed_precision_param = \"bfloat16\"\n"
                                 "gc_freq = 50\n"
                                 "[training.dataloader]\n"
                                 "num_workers = 2\n"
                                 "[parallelism]\n"
                                 "data_parallel_shard_degree = -1\n"
                                 "fsdp_reshard_after_forward = \"default\"\n"
                                 "tensor_parallel_degree = 1\n"
                                 "enable_async_tensor_parallel = false\n"
                                 "pipeline_parallel_schedule = \"1F1B\"\n"
                                 "[checkpoint]\n"
                                 "enable = false\n"
                                 "export_dtype = \"bfloat16\"\n"
                                 "async_mode = \"async_with_pinned_mem\"\n"
                                 "create_seed_checkpoint = false\n"
                                 "[activation_checkpoint]\n"
                                 "mode = \"selective\"\n"
                                 "selective_ac_option = \"op\"\n"
                                 "[compile]\n"
                                 "enable = true\n"
                                 "components = [\"model\", \"loss\"]\n"
                                 "[quantize.linear.float8]\n"
                                 "filter_fqns = [\"output\"]\n"
                                 "[validation]\n"
                                 "enabled = false\n";

static void torchtitan_files_load_with_one_warning(void **state) {
    (void)state;
    xp_config_set *set = load_text(torchtitan, "--compile.no_enable --float8.recipe rowwise");
    const xp_config *c = xp_config_get(set);
    assert_string_equal(c->model.hf_assets_path, "./assets/hf/Qwen3-0.6B");
    assert_string_equal(c->checkpoint.async_mode, "async");
    assert_int_equal(c->training.steps, 10);
    const char *warning = xp_config_warning(set, 0);
    assert_non_null(warning);
    assert_null(xp_config_warning(set, 1));
    static const char *const named[] = {"job.use_for_integration_test",
                                        "profiling.enable_memory_snapshot",
                                        "metrics.enable_wandb",
                                        "model.converters",
                                        "optimizer.implementation",
                                        "training.mixed_precision_param",
                                        "training.gc_freq",
                                        "training.dataloader.num_workers",
                                        "parallelism.fsdp_reshard_after_forward",
                                        "parallelism.enable_async_tensor_parallel",
                                        "parallelism.pipeline_parallel_schedule",
                                        "checkpoint.create_seed_checkpoint",
                                        "activation_checkpoint.selective_ac_option",
                                        "compile.enable",
                                        "compile.components",
                                        "quantize.linear.float8.filter_fqns",
                                        "compile.no_enable",
                                        "float8.recipe"};
    for (size_t i = 0; i < sizeof named / sizeof named[0]; i++)
        if (!strstr(warning, named[i]))
            fail_msg("%s is not in: %s", named[i], warning);
    xp_config_destroy(set);
}

static void float16_exports_become_float32_with_a_warning(void **state) {
    (void)state;
    xp_config_set *set = load_text("[checkpoint]\nexport_dtype = \"float16\"\n", "");
    assert_string_equal(xp_config_get(set)->checkpoint.export_dtype, "float32");
    assert_non_null(xp_config_warning(set, 0));
    assert_non_null(strstr(xp_config_warning(set, 0), ":2:16: checkpoint.export_dtype"));
    assert_null(xp_config_warning(set, 1));
    xp_config_destroy(set);
}

static void warnings_stay_on_one_line(void **state) {
    (void)state;
    xp_config_set *set = load_text("[compile]\n\"a\\nb\" = 1\n[float8.x]\n[mx]\ny = {z = 1}\n", "");
    assert_string_equal(xp_config_warning(set, 0),
                        "TorchTitan keys without a counterpart here, ignored: compile.a b, mx.y.z");
    xp_config_destroy(set);
}

static void overrides_check_again_and_undo(void **state) {
    (void)state;
    xp_config_set *set = load("", false);
    assert_int_equal(xp_config_override(set, "training.steps", "5"), XP_OK);
    assert_int_equal(xp_config_get(set)->training.steps, 5);
    assert_int_equal(xp_config_override(set, "training.steps", "0"), XP_ECONFIG);
    assert_int_equal(xp_config_override(set, "checkpoint.keep_latest_k", "1"), XP_ECONFIG);
    assert_int_equal(xp_config_get(set)->training.steps, 5);
    assert_int_equal(xp_config_get(set)->checkpoint.keep_latest_k, 10);
    assert_int_equal(xp_config_override(set, "training.nothing", "1"), XP_ECONFIG);
    assert_int_equal(xp_config_override(set, "steps", "1"), XP_EINVAL);
    assert_int_equal(xp_config_override(set, "training.debug_moe_force_load_balance", "true"),
                     XP_OK);
    assert_true(xp_config_get(set)->debug.moe_force_load_balance);
    xp_config_destroy(set);
}

static void every_shipped_file_loads_without_warnings(void **state) {
    (void)state;
    glob_t files;
    assert_int_equal(glob(XP_SOURCE_DIR "/configs/*.toml", 0, NULL, &files), 0);
    assert_true(files.gl_pathc >= 7);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        char option[] = "--job.config_file";
        char *words[] = {option, files.gl_pathv[i]};
        xp_config_set *set = NULL;
        if (xp_config_load(2, words, false, &set) != XP_OK)
            fail_msg("%s", xp_last_error());
        if (xp_config_warning(set, 0))
            fail_msg("%s: %s", files.gl_pathv[i], xp_config_warning(set, 0));
        xp_config_destroy(set);
    }
    globfree(&files);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_as_documented),
        cmocka_unit_test(overlap_is_auto_true_or_false),
        cmocka_unit_test(options_come_in_every_spelling),
        cmocka_unit_test(both_names_of_forced_balance_work),
        cmocka_unit_test(later_sources_win),
        cmocka_unit_test(torchtitan_files_load_with_one_warning),
        cmocka_unit_test(float16_exports_become_float32_with_a_warning),
        cmocka_unit_test(warnings_stay_on_one_line),
        cmocka_unit_test(overrides_check_again_and_undo),
        cmocka_unit_test(every_shipped_file_loads_without_warnings),
    };
    unsetenv("CONFIG_FILE");
    unsetenv("NGPU");
    unsetenv("LOG_RANK");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
