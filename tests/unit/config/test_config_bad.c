/** Wrong configurations: XP_ECONFIG, one line, the place, and the nearest valid name. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "config/config.h"

enum { MAX_WORDS = 8 };

/* ~ in front: a file that holds the text, "FILE" in the message standing for its name. Else words
 * of the command line. */
typedef struct bad_case {
    const char *input;
    const char *message; /* a part of the error */
} bad_case;

static const bad_case cases[] = {
    {"~[training]\nsetps = 4\n",
     "FILE:2:1: unknown key training.setps; did you mean training.steps?"},
    {"~[training]\nlr = 1e-3\n", "FILE:2:1: unknown key training.lr; did you mean optimizer.lr?"},
    {"~[optimizer]\nseq_len = 1\n",
     "FILE:2:1: unknown key optimizer.seq_len; did you mean training.seq_len?"},
    {"~[training]\n\"a\\nb\" = 1\n", "FILE:2:1: unknown key training.a b; "},
    {"~[optimiser]\nlr = 1.0\n",
     "FILE:1:2: unknown section [optimiser]; did you mean [optimizer]?"},
    {"~[xyzzy]\nlr = 1.0\n", "FILE:1:2: unknown section [xyzzy]; `expar config --help`"},
    {"~steps = 3\n",
     "FILE:1:1: key steps stands outside any section; did you mean steps under [training]?"},
    {"~training = 3\n", "FILE:1:1: [training] must be a section, not an integer"},
    {"~[[training]]\nsteps = 3\n", "FILE:1:3: [training] must be a section, not an array"},
    {"~[training]\nsteps = \"10\"\n",
     "FILE:2:9: training.steps must be a whole number, got a string"},
    {"~[training]\nsteps = 10.0\n", "FILE:2:9: training.steps must be a whole number, got a float"},
    {"~[training]\nsteps = 0\n", "FILE:2:9: training.steps is 0, must be at least 1"},
    {"~[training]\nsteps = -5\n", "FILE:2:9: training.steps is -5"},
    {"~[training]\nglobal_batch_size = 0\n",
     "FILE:2:21: training.global_batch_size is 0, must be -1 or at least 1"},
    {"~[training]\nseq_len = 99999999999\n",
     "FILE:2:11: training.seq_len is 99999999999, must be 1 to 16777216"},
    {"~[training]\ndtype = \"float16\"\n",
     "FILE:2:9: training.dtype is \"float16\", must be one of float32|bfloat16"},
    {"~[training]\ndataset_path = 3\n",
     "FILE:2:16: training.dataset_path must be a string, got an integer"},
    {"~[training.steps]\na = 1\n", "FILE:1:11: training.steps must be a whole number, got a table"},
    {"~[training]\nshuffle = 1\n",
     "FILE:2:11: training.shuffle must be true or false, got an integer"},
    {"~[optimizer]\nlr = \"fast\"\n", "FILE:2:6: optimizer.lr must be a number, got a string"},
    {"~[optimizer]\nlr = nan\n", "FILE:2:6: optimizer.lr is"},
    {"~[optimizer]\nlr = inf\n", "FILE:2:6: optimizer.lr is inf"},
    {"~[optimizer]\nbeta1 = 1.0\n",
     "FILE:2:9: optimizer.beta1 is 1, must be at least 0 and below 1"},
    {"~[optimizer]\nbeta2 = 1\n", "optimizer.beta2 is 1, must be at least 0 and below 1"},
    {"~[optimizer]\neps = 0\n", "optimizer.eps is 0, must be 1e-30 to 1"},
    {"--checkpoint.load_step 4", "checkpoint.load_step is 4, but checkpoint.enable is off"},
    {"~[optimizer]\nname = \"Adagrad\"\n",
     "FILE:2:8: optimizer.name is \"Adagrad\", must be one of AdamW"},
    {"~[lr_scheduler]\ndecay_ratio = 1.5\n",
     "FILE:2:15: lr_scheduler.decay_ratio is 1.5, must be 0 to 1"},
    {"~[lr_scheduler]\ndecay_ratio = -0.5\n", "FILE:2:15: lr_scheduler.decay_ratio is -0.5"},
    {"~[lr_scheduler]\ndecay_type = \"step\"\n", "must be one of linear|sqrt|cosine"},
    {"~[checkpoint]\nenable = \"yes\"\n",
     "FILE:2:10: checkpoint.enable must be true or false, got a string"},
    {"~[checkpoint]\nenable = true\n[debug]\nmoe_send_copies = 2\n",
     "FILE:4:19: debug.moe_send_copies is 2"},
    {"~[checkpoint]\nkeep_latest_k = 1\n", "FILE:2:17: checkpoint.keep_latest_k is 1"},
    {"~[checkpoint]\nfolder = \"\"\n", "FILE:2:10: checkpoint.folder must not be empty"},
    {"~[checkpoint]\nfolder = \"a\\u0000b\"\n", "FILE:2:10: checkpoint.folder holds a NUL"},
    {"~[checkpoint]\nexclude_from_loading = [1]\n", "must be a list of strings"},
    {"~[checkpoint]\nexclude_from_loading = \"a,,b\"\n", "empty name between its commas"},
    {"~[checkpoint]\ninitial_load_in_hf = true\ninitial_load_model_only = false\n",
     "FILE:2:22: checkpoint.initial_load_in_hf needs initial_load_model_only"},
    {"~[parallelism]\ntensor_parallel_degree = 2\n",
     "FILE:2:26: parallelism.tensor_parallel_degree is 2: tensor parallelism is not supported yet"},
    {"~[parallelism]\npipeline_parallel_degree = 4\n", "pipeline parallelism is not supported yet"},
    {"~[parallelism]\ncontext_parallel_degree = 2\n", "context parallelism is not supported yet"},
    {"~[parallelism]\nexpert_parallel_degree = 0\n",
     "FILE:2:26: parallelism.expert_parallel_degree is 0"},
    {"~[parallelism]\nexpert_parallel_comm_backend = \"nccl\"\n", "must be one of standard|deepep"},
    {"~[parallelism]\nexpert_parallel_comm_backend = \"standard\"\n[moe]\nuse_deepep = true\n",
     "FILE:2:32: parallelism.expert_parallel_comm_backend is \"standard\", but moe.use_deepep is "
     "true"},
    {"~[moe]\nnum_experts = 4\ntop_k = 8\n",
     "FILE:3:9: moe.top_k is 8, more than moe.num_experts = 4"},
    {"~[model]\nn_heads = 6\nn_kv_heads = 4\n",
     "FILE:3:14: model.n_kv_heads is 4, which does not divide model.n_heads = 6"},
    {"~[model]\nhead_dim = 33\n", "FILE:2:12: model.head_dim is 33, must be even"},
    {"~[job]\nconfig_file = \"x\"\n", "FILE:2:1: job.config_file cannot be set in a file"},
    {"~[debug]\nseed = 1\n[training]\nseed = 2\n",
     "FILE:4:1: seed also sets debug.seed, which line 2 gives another value"},
    {"~[training]\nsteps = 1\nsteps = 2\n", "FILE:3:1: 'steps' was already given on line 2"},
    {"~[training\nsteps = 1\n", "FILE:1:10: expected ']'"},
    {"~[training]\nsteps = ten\n", "FILE:2:9: 'ten' is not a value"},
    {"~[job]\ndescription = \"\xff\"\n", "FILE:2:16: byte 0xff is not valid UTF-8"},
    {"--training.setps 4", "unknown option --training.setps; did you mean --training.steps?"},
    {"--traning.steps 4", "unknown option --traning.steps; did you mean --training.steps?"},
    {"--steps 4", "unknown option --steps; did you mean --training.steps?"},
    {"--optimizer.seq_len 4", "did you mean --training.seq_len?"},
    {"--zzz.zzzzzzzzz 4", "unknown option --zzz.zzzzzzzzz; options are --section.key value"},
    {"--training.steps", "--training.steps needs a value (int)"},
    {"--training.steps --metrics.log_freq 1", "--training.steps needs a value (int)"},
    {"--training.steps=", "--training.steps: training.steps must be a whole number, got \"\""},
    {"--training.steps 4x", "--training.steps: training.steps must be a whole number, got \"4x\""},
    {"--training.steps 1e3", "must be a whole number, got \"1e3\""},
    {"--training.steps 9223372036854775808", "must be a whole number"},
    {"--optimizer.lr 1,5", "--optimizer.lr: optimizer.lr must be a number, got \"1,5\""},
    {"--checkpoint.enable=maybe",
     "--checkpoint.enable: checkpoint.enable must be true or false, got \"maybe\""},
    {"--checkpoint.no_enable=true", "--checkpoint.no_enable takes no value"},
    {"--training.no_steps", "unknown option --training.no_steps"},
    {"--checkpoint.keep_latest_k=1", "--checkpoint.keep_latest_k: checkpoint.keep_latest_k is 1"},
    {"--parallelism.tensor_parallel_degree 2",
     "--parallelism.tensor_parallel_degree: parallelism.tensor_parallel_degree is 2"},
    {"--job.dump_folder=", "job.dump_folder must not be empty"},
    {"--training.steps 1 configs/debug_moe.toml", "unexpected word \"configs/debug_moe.toml\""},
    {"-h", "unexpected word \"-h\""},
    {"--", "unknown option --"},
    {"--.", "unknown option --."},
    {"--=", "unknown option --"},
};

static void write_file(char *path, const char *text) {
    int fd = mkstemps(path, 5);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

/** Split at blanks; the words point into `line`. */
static int split(char *line, char **words) {
    int n = 0;
    char *rest = line;
    for (char *word; (word = strsep(&rest, " ")) && n < MAX_WORDS;)
        words[n++] = word;
    return n;
}

static xp_status load(const bad_case *c, char *path, xp_config_set **set) {
    if (c->input[0] == '~') {
        write_file(path, c->input + 1);
        char option[] = "--job.config_file";
        char *words[] = {option, path};
        xp_status status = xp_config_load(2, words, false, set);
        unlink(path);
        return status;
    }
    char line[200];
    snprintf(line, sizeof line, "%s", c->input);
    char *words[MAX_WORDS];
    int n = split(line, words);
    return xp_config_load(n, words, false, set);
}

static void every_case_is_refused_with_its_message(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[] = XP_BINARY_DIR "/bad_XXXXXX.toml";
        xp_config_set *set = NULL;
        xp_status status = load(&cases[i], path, &set);
        if (status != XP_ECONFIG)
            fail_msg("%s gave %s", cases[i].input, xp_status_name(status));
        assert_null(set);
        char want[600];
        bool in_file = strncmp(cases[i].message, "FILE", 4) == 0;
        snprintf(want, sizeof want, "%s%s", in_file ? path : "",
                 cases[i].message + (in_file ? 4 : 0));
        if (!strstr(xp_last_error(), want) || strchr(xp_last_error(), '\n'))
            fail_msg("%s\n gave %s\n want %s", cases[i].input, xp_last_error(), want);
    }
}

static void a_missing_file_is_an_io_error(void **state) {
    (void)state;
    char option[] = "--job.config_file=/nonexistent/x.toml";
    char *words[] = {option};
    xp_config_set *set = NULL;
    xp_status status = xp_config_load(1, words, false, &set);
    assert_true(status == XP_EIO || status == XP_ENOENT);
    assert_non_null(strstr(xp_last_error(), "/nonexistent/x.toml"));
}

static void make_file(const char *folder, const char *name) {
    char path[300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fclose(f);
}

static void assert_load_says(const char *path, const char *answer, bool says) {
    char option[400];
    snprintf(option, sizeof option, "--job.config_file=%s", path);
    char *words[] = {option};
    xp_config_set *set = NULL;
    assert_int_equal(xp_config_load(1, words, false, &set), XP_ENOENT);
    if ((strstr(xp_last_error(), answer) != NULL) != says)
        fail_msg("%s: \"%s\", which should %shold \"%s\"", path, xp_last_error(),
                 says ? "" : "not ", answer);
}

static void a_mistyped_file_names_the_nearest(void **state) {
    (void)state;
    char here[300], folder[] = "/tmp/xp_config_near_XXXXXX", path[200], answer[200];
    assert_non_null(getcwd(here, sizeof here));
    assert_non_null(mkdtemp(folder));
    assert_int_equal(chdir(folder), 0);
    assert_int_equal(mkdir("configs", 0700), 0);
    make_file("configs", "debug_moe.toml");
    make_file("configs", "debug_model.toml");
    make_file("configs", "notes.txt");
    make_file(".", "mine.toml");
    assert_load_says("configs/debug_mo.toml", "; did you mean configs/debug_moe.toml?", true);
    assert_load_says("configs/debug_moe", "; did you mean configs/debug_moe.toml?", true);
    assert_load_says("config/debug_moe.toml", "; did you mean configs/debug_moe.toml?", true);
    assert_load_says("debug_modle.toml", "; did you mean configs/debug_model.toml?", true);
    assert_load_says("mein.toml", "; did you mean mine.toml?", true);
    assert_load_says("configs/notes.toml", "did you mean", false);
    assert_load_says("configs/xyzzy.toml", "did you mean", false);
    snprintf(path, sizeof path, "%s/configs/debug_modl.toml", folder);
    snprintf(answer, sizeof answer, "; did you mean %s/configs/debug_model.toml?", folder);
    assert_load_says(path, answer, true);
    assert_int_equal(chdir(here), 0);
    const char *const files[] = {"configs/debug_moe.toml", "configs/debug_model.toml",
                                 "configs/notes.txt", "mine.toml"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/configs", folder);
    rmdir(path);
    rmdir(folder);
}

static void a_bad_environment_names_its_variable(void **state) {
    (void)state;
    xp_config_set *set = NULL;
    setenv("NGPU", "eight", 1);
    assert_int_equal(xp_config_load(0, NULL, true, &set), XP_ECONFIG);
    assert_non_null(strstr(xp_last_error(), "NGPU: job.ngpu must be a whole number"));
    unsetenv("NGPU");
    setenv("LOG_RANK", "-3", 1);
    assert_int_equal(xp_config_load(0, NULL, true, &set), XP_ECONFIG);
    assert_non_null(strstr(xp_last_error(), "LOG_RANK: job.log_rank is -3"));
    unsetenv("LOG_RANK");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_case_is_refused_with_its_message),
        cmocka_unit_test(a_missing_file_is_an_io_error),
        cmocka_unit_test(a_mistyped_file_names_the_nearest),
        cmocka_unit_test(a_bad_environment_names_its_variable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
