/** Settings that change nothing are named, with what switches them off; others are not. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "config/config.h"

/* A file's text, words of the command line, and what is said: parts of it, one line each; "FILE" stands for the
 * file's name. */
typedef struct effect_case {
    const char *file;
    const char *words[6];
    bool dense;
    const char *said[4];
} effect_case;

static const effect_case cases[] = {
    {"", {NULL}, false, {NULL}},
    {"[checkpoint]\ninterval = 7\nkeep_latest_k = 3\n",
     {NULL},
     false,
     {"checkpoint.interval (FILE:2), checkpoint.keep_latest_k (FILE:3) have no effect: "
      "checkpoint.enable is off"}},
    /* a section that is switched off as a whole is kept for another day */
    {"[checkpoint]\nenable = false\ninterval = 7\nexport_dtype = \"bfloat16\"\n",
     {NULL},
     false,
     {NULL}},
    {"[checkpoint]\nenable = false\n",
     {"--checkpoint.interval", "500"},
     false,
     {"checkpoint.interval (command line) has no effect: checkpoint.enable is off"}},
    {"[checkpoint]\ninterval = 500\n", {NULL}, false, {NULL}}, /* as the default */
    {"[checkpoint]\nenable = true\ninterval = 7\n", {NULL}, false, {NULL}},
    {"[checkpoint]\ninterval = 7\n", {"--checkpoint.enable"}, false, {NULL}},
    {"[checkpoint]\ninterval = 7\n", {"--checkpoint.no_enable"}, false, {NULL}},
    {"[checkpoint]\nenable = false\nlast_save_in_hf = true\n",
     {NULL},
     false,
     {"checkpoint.last_save_in_hf (FILE:3) has no effect: checkpoint.enable is off, nothing is "
      "saved"}},
    {"[checkpoint]\nenable = true\nexport_dtype = \"bfloat16\"\n",
     {NULL},
     false,
     {"checkpoint.export_dtype (FILE:3) has no effect: checkpoint.last_save_in_hf is off"}},
    {"[checkpoint]\ninitial_load_model_only = false\n",
     {NULL},
     false,
     {"checkpoint.initial_load_model_only (FILE:2) has no effect: checkpoint.initial_load_path is "
      "not set"}},
    {"[checkpoint]\ninitial_load_path = \"x\"\ninitial_load_model_only = false\n",
     {NULL},
     false,
     {NULL}},
    {"[checkpoint]\nexclude_from_loading = [\"optimizer\"]\n",
     {NULL},
     false,
     {"checkpoint.exclude_from_loading (FILE:2) has no effect: nothing is loaded"}},
    {"[training]\ndataset = \"tokens\"\ntext_field = \"body\"\n",
     {NULL},
     false,
     {"training.text_field (FILE:3) has no effect: the data are token ids"}},
    {"",
     {"--training.token_type", "uint16"},
     false,
     {"training.token_type (command line) has no effect: the data are text"}},
    {"[metrics]\nsave_tb_folder = \"x\"\n", {NULL}, false, {"metrics.enable_tensorboard is off"}},
    {"", {"--profiling.profile_freq", "3"}, false, {"profiling.enable_profiling is off"}},
    {"[validation]\ndataset_path = \"x\"\nfreq = 3\n",
     {NULL},
     false,
     {"validation.dataset_path (FILE:2), validation.freq (FILE:3) have no effect"}},
    {"",
     {"--debug.moe_force_load_balance_mode", "spread"},
     false,
     {"debug.moe_force_load_balance is off"}},
    {"[lr_scheduler]\ndecay_ratio = 0.0\nmin_lr_factor = 0.1\n",
     {NULL},
     false,
     {"lr_scheduler.min_lr_factor (FILE:3) has no effect: lr_scheduler.decay_ratio is 0"}},
    {"[lr_scheduler]\nmin_lr_factor = 0.1\n", {NULL}, false, {NULL}},
    {"[moe]\naux_loss_coeff = 0.01\n", {NULL}, false, {NULL}},
    {"[moe]\naux_loss_coeff = 0.01\nload_balance_coeff = 0.0\n[deepep]\nnum_sms = 8\n",
     {NULL},
     true,
     {"moe.load_balance_coeff (FILE:3), moe.aux_loss_coeff (FILE:2) have no effect: this model has "
      "no "
      "experts",
      "deepep.num_sms (FILE:5) has no effect: this model has no experts"}},
    {"[deepep]\nnum_sms = 8\n",
     {NULL},
     false,
     {"deepep.num_sms (FILE:2) has no effect: parallelism.expert_parallel_degree is 1"}},
    {"[deepep]\nnum_sms = 8\n", {"--parallelism.expert_parallel_degree", "2"}, false, {NULL}},
    {"[deepep]\noverlap_split = 0.25\n[parallelism]\nexpert_parallel_degree = 2\n",
     {NULL},
     false,
     {"deepep.overlap_split (FILE:2) has no effect: parallelism.expert_parallel_overlap is not "
      "true"}},
    /* one cause for each key */
    {"[deepep]\noverlap_split = 0.25\noverlap_num_sms = 8\n[parallelism]\n"
     "expert_parallel_overlap = true\nexpert_parallel_comm_backend = \"standard\"\n",
     {NULL},
     false,
     {"parallelism.expert_parallel_comm_backend (FILE:6), parallelism.expert_parallel_overlap "
      "(FILE:5), deepep.overlap_split (FILE:2), deepep.overlap_num_sms (FILE:3) have no effect: "
      "parallelism.expert_parallel_degree is 1"}},
    {"[deepep]\noverlap_split = 0.25\n",
     {"--parallelism.expert_parallel_degree", "2", "--parallelism.expert_parallel_overlap"},
     false,
     {NULL}},
    {"[parallelism]\nexpert_parallel_degree = 2\nexpert_parallel_overlap = true\n",
     {"--deepep.overlap_num_sms", "8"},
     false,
     {"deepep.overlap_num_sms (command line) has no effect: parallelism.expert_parallel_overlap is "
      "not "
      "auto"}},
    {"[deepep]\noverlap_num_sms = 8\n",
     {"--parallelism.expert_parallel_degree", "2"},
     false,
     {NULL}},
    {"[optimizer]\nweight_decay = 0.0\n",
     {"--optimizer.no_decay_norms"},
     false,
     {"optimizer.decay_norms (command line) has no effect: optimizer.weight_decay is 0"}},
    {"[deepep]\nchunk_tokens = 64\n",
     {"--parallelism.expert_parallel_degree", "2"},
     false,
     {"deepep.chunk_tokens (FILE:2) has no effect: every transport"}},
};

static const effect_case on_cpu = {
    "[deepep]\nnum_sms = 4\noverlap_num_sms = 8\n",
    {"--parallelism.expert_parallel_degree", "2", "--parallelism.no_expert_parallel_overlap"},
    false,
    {"deepep.num_sms (FILE:2), deepep.overlap_num_sms (FILE:3) have no effect: the run computes on "
     "the CPU"}};

typedef struct heard {
    int n;
    char lines[8][512];
} heard;

static void hear(void *context, const char *text) {
    heard *h = context;
    assert_true(h->n < 8);
    snprintf(h->lines[h->n++], sizeof h->lines[0], "%s", text);
}

static void check_case(const effect_case *c, bool on_gpu) {
    char path[] = "/tmp/expar_effects_XXXXXX.toml", *words[8];
    int n_words = 2, fd = mkstemps(path, 5);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, c->file, strlen(c->file)), (ssize_t)strlen(c->file));
    close(fd);
    words[0] = (char *)"--job.config_file";
    words[1] = path;
    for (int i = 0; i < 6 && c->words[i]; i++)
        words[n_words++] = (char *)c->words[i];
    xp_config_set *set = NULL;
    if (xp_config_load(n_words, words, false, &set) != XP_OK)
        fail_msg("%s", xp_last_error());
    heard h = {0};
    const xp_config_facts facts = {.has_experts = !c->dense, .on_gpu = on_gpu};
    assert_int_equal(xp_config_effects(set, &facts, hear, &h), XP_OK);
    for (int i = 0; i < 4; i++) {
        char wanted[512] = "";
        for (const char *at = c->said[i]; at && *at;) {
            size_t used = strlen(wanted);
            if (strncmp(at, "FILE", 4) == 0) {
                snprintf(wanted + used, sizeof wanted - used, "%s", path);
                at += 4;
            } else {
                wanted[used] = *at++;
                wanted[used + 1] = '\0';
            }
        }
        if (!c->said[i] && i < h.n)
            fail_msg("case '%s': said '%s'", c->file, h.lines[i]);
        if (c->said[i] && (i >= h.n || !strstr(h.lines[i], wanted)))
            fail_msg("case '%s': '%s' instead of '%s'", c->file, i < h.n ? h.lines[i] : "", wanted);
    }
    xp_config_destroy(set);
    unlink(path);
}

static void test_effects(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_case(&cases[i], true);
    check_case(&on_cpu, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_effects)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
