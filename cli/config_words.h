/** Configuration keys on the command line of a bench: "--section.key value" beside its own options.
 */
#ifndef XP_CLI_CONFIG_WORDS_H
#define XP_CLI_CONFIG_WORDS_H

#define CLI_CONFIG_WORDS 256

/** Words for xp_config_load(). They point into argv and into the struct itself: it must not move.
 */
typedef struct cli_config_words {
    int n;
    const char *file; /* of --config FILE or --job.config_file FILE; NULL: none */
    char *words[CLI_CONFIG_WORDS];
    char own[32][64];
} cli_config_words;

/**
 * Part the arguments: words of the configuration are appended to `words`, --config FILE and --job.config_file
 * FILE are noted, the others go to `rest`.
 * @param rest  [argc + 1], argv[0] stays first
 * @return how many words are in rest
 */
int cli_config_words_take(cli_config_words *words, int argc, char **argv, char **rest);

/**
 * Start again: the file, or without one the default keys; then the configuration words of argv,
 * which count more.
 * @param file      NULL: the one that cli_config_words_take() noted, or none
 * @param defaults  {"model.dim", "512"}, ..., {NULL, NULL}
 */
void cli_config_words_build(cli_config_words *words, const char *file,
                            const char *const (*defaults)[2], int argc, char **argv, char **rest);

/**
 * A command that parts its arguments with these functions.
 * @param run  gets argv and room for `rest`; returns the exit code
 */
int cli_config_words_run(int argc, char **argv, int (*run)(int argc, char **argv, char **rest));

#endif
