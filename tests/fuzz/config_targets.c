/* TOML, the configuration made of it, words of the command line, Hugging Face's config.json. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "config/config.h"
#include "config/toml.h"
#include "fuzz.h"
#include "model/arch.h"
#include "model/params.h"

static const char *const toml_words[] = {"[training]\n",
                                         "[[training.datasets]]\n",
                                         "steps = ",
                                         "\"\"\"",
                                         "'''",
                                         "= [{path = \"a\", weight = 2}]",
                                         "\\u00e9",
                                         "1979-05-27T07:32:00Z",
                                         "0x",
                                         "inf",
                                         "nan",
                                         "\r\n",
                                         "\xef\xbb\xbf",
                                         "{a.b = 1}",
                                         "#",
                                         "1_000",
                                         "[model]\n",
                                         "compile.x = 1",
                                         "true",
                                         "\xff",
                                         NULL};

/* What was read is written and read again: nothing may change. */
static fuzz_verdict check_dump(fuzz_state *s, const xp_config_set *set) {
    char *text = NULL, *json = NULL;
    if (xp_config_dump_toml(set, &text) != XP_OK || xp_config_dump_json(set, &json) != XP_OK) {
        free(text);
        return fuzz_wrong(s, xp_last_error());
    }
    xp_toml *toml = NULL;
    xp_status status = xp_toml_parse("dump", text, strlen(text), &toml);
    xp_toml_destroy(toml);
    free(text);
    free(json);
    return status == XP_OK ? FUZZ_ACCEPTED : fuzz_wrong(s, xp_last_error());
}

static fuzz_verdict run_toml(fuzz_state *s, const unsigned char *data, size_t n) {
    xp_toml *toml = NULL;
    xp_status status = xp_toml_parse("input", (const char *)data, n, &toml);
    if (status == XP_OK) {
        xp_text text = {0};
        xp_toml_add_json(toml, &text);
        xp_text_free(&text);
    }
    xp_toml_destroy(toml);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    char option[] = "--job.config_file";
    char *words[] = {option, s->path};
    xp_config_set *set = NULL;
    status = xp_config_load(2, words, false, &set);
    fuzz_verdict verdict = status == XP_OK ? check_dump(s, set) : fuzz_judge(s, status);
    xp_config_destroy(set);
    return verdict == FUZZ_WRONG ? verdict : FUZZ_ACCEPTED;
}

/* A word a line. */
static fuzz_verdict run_overrides(fuzz_state *s, const unsigned char *data, size_t n) {
    char copy[FUZZ_MAX_BYTES + 1], *words[64], *rest = copy;
    int n_words = 0;
    memcpy(copy, data, n);
    copy[n] = '\0';
    for (char *word; n_words < 64 && (word = strsep(&rest, "\n")) != NULL;)
        if (word[0] != '\0' && strstr(word, "config_file") == NULL &&
            strstr(word, "config-file") == NULL &&
            access(word, F_OK) != 0) /* a word alone names a file: none of this machine's */
            words[n_words++] = word;
    xp_config_set *set = NULL;
    xp_status status = xp_config_load(n_words, words, false, &set);
    /* A word that stands alone names a file, which may have a name that no file can have. */
    bool cannot_open = status == XP_EIO && strncmp(xp_last_error(), "cannot open ", 12) == 0;
    fuzz_verdict verdict = status == XP_OK ? check_dump(s, set)
                           : cannot_open   ? FUZZ_REFUSED
                                           : fuzz_judge(s, status);
    xp_config_destroy(set);
    return verdict;
}

static fuzz_verdict run_hf_config(fuzz_state *s, const unsigned char *data, size_t n) {
    (void)data;
    (void)n;
    xp_arch arch;
    xp_status status = xp_arch_from_hf(s->path, &arch);
    if (status != XP_OK)
        return fuzz_judge(s, status);
    if (xp_arch_check(&arch) != XP_OK)
        return fuzz_wrong(s, xp_last_error());
    if (arch.n_layers > 64 || arch.n_experts > 1024)
        return FUZZ_ACCEPTED;
    xp_param_table *table = NULL;
    status = xp_param_table_create(&arch, 0, 1, &table);
    if (status != XP_OK)
        return fuzz_wrong(s, xp_last_error());
    bool good = xp_param_table_n_params(table) > 0;
    for (int i = 0; i < xp_param_table_n_params(table); i++)
        good = good && xp_param_table_param(table, i)->n_elements > 0 &&
               xp_param_table_param(table, i)->offset >= 0;
    xp_param_table_destroy(table);
    return good ? FUZZ_ACCEPTED : fuzz_wrong(s, "sizes that overflow");
}

static const char *const json_words[] = {"\"num_experts\"",
                                         "\"num_hidden_layers\"",
                                         "null",
                                         "true",
                                         "[]",
                                         "{}",
                                         "1e400",
                                         "NaN",
                                         "\"rope_scaling\"",
                                         "\"qwen3\"",
                                         "\\ud800",
                                         "\xff",
                                         ",",
                                         ":",
                                         "\"head_dim\": ",
                                         "2147483647",
                                         "30000",
                                         NULL};
static const char *const option_words[] = {"--",
                                           "=",
                                           "\n",
                                           ".",
                                           "--training.steps",
                                           "--no_",
                                           "no_",
                                           "--training.datasets\n",
                                           "a=1,b=2",
                                           "1e9",
                                           "true",
                                           "-",
                                           ",",
                                           "\xff",
                                           "--checkpoint.",
                                           "--compile.x",
                                           NULL};

const fuzz_target *fuzz_config_target(int i) {
    static const fuzz_target targets[] = {
        {.name = "toml", .file = "input.toml", .words = toml_words, .run = run_toml},
        {.name = "overrides", .file = "words", .words = option_words, .run = run_overrides},
        {.name = "hf_config", .file = "config.json", .words = json_words, .run = run_hf_config},
    };
    return i < (int)(sizeof targets / sizeof targets[0]) ? &targets[i] : NULL;
}
