#include "config_words.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli.h"

static void add(cli_config_words *words, char *word) {
    if (words->n < CLI_CONFIG_WORDS)
        words->words[words->n++] = word;
}

/* "--config FILE", "--config=FILE", and the same with --job.config_file: how many words, 0 when it is another
 * option or has no value. */
static int take_file(const char *word, const char *next, const char **file) {
    static const char *const names[] = {"--config", "--job.config_file"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const size_t n = strlen(names[i]);
        if (strncmp(word, names[i], n) != 0 || (word[n] != '=' && word[n] != '\0'))
            continue;
        const char *value = word[n] == '=' ? word + n + 1 : next;
        if (!value || (word[n] == '\0' && strncmp(value, "--", 2) == 0))
            return 0;
        *file = value;
        return word[n] == '=' ? 1 : 2;
    }
    return 0;
}

int cli_config_words_take(cli_config_words *words, int argc, char **argv, char **rest) {
    int n_rest = 0;
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        const int n_file = i > 0 ? take_file(word, argv[i + 1], &words->file) : 0;
        if (n_file > 0) {
            i += n_file - 1;
            continue;
        }
        const bool is_key =
            i > 0 && strncmp(word, "--", 2) == 0 && strcspn(word, ".") < strcspn(word, "=");
        if (!is_key) {
            rest[n_rest++] = argv[i];
            continue;
        }
        add(words, argv[i]);
        if (!strchr(word, '=') && i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0)
            add(words, argv[++i]);
    }
    rest[n_rest] = NULL;
    return n_rest;
}

void cli_config_words_build(cli_config_words *words, const char *file,
                            const char *const (*defaults)[2], int argc, char **argv, char **rest) {
    static const int n_own = sizeof words->own / sizeof words->own[0];
    words->n = 0;
    if (!file)
        file = words->file;
    if (file) {
        snprintf(words->own[0], sizeof words->own[0], "--job.config_file");
        add(words, words->own[0]);
        add(words, (char *)file);
    }
    for (int i = 0; !file && i < n_own && defaults[i][0]; i++) {
        snprintf(words->own[i], sizeof words->own[i], "--%s=%s", defaults[i][0], defaults[i][1]);
        add(words, words->own[i]);
    }
    cli_config_words_take(words, argc, argv, rest);
}

int cli_config_words_run(int argc, char **argv, int (*run)(int argc, char **argv, char **rest)) {
    char **rest = calloc((size_t)argc + 1, sizeof *rest);
    if (!rest)
        return cli_fail(xp_error(XP_ENOMEM, "no memory for the arguments"));
    const int code = run(argc, argv, rest);
    free(rest);
    return code;
}
