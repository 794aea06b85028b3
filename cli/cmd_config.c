/** `expar config`: show the merged configuration, the keys, or any TOML as tagged JSON. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "config/config.h"
#include "config/toml.h"
#include "model/arch.h"
#include "train/complete.h"

typedef enum output { OUTPUT_TOML = 0, OUTPUT_JSON } output;

static const char usage[] =
    "usage: expar config [CONFIG] [--toml | --json] [--section.key value ...]\n"
    "       expar config --help [SECTION]\n"
    "       expar config --markdown [SECTION]\n"
    "       expar config --toml-json < FILE\n"
    "\n"
    "Prints the configuration that `expar train` would use: defaults, then the file, then the\n"
    "environment (NGPU, CONFIG_FILE, LOG_RANK), then the options.\n"
    "\n"
    "  --toml        as TOML that reads back to the same configuration (the default)\n"
    "  --json        as JSON, each value with where it came from\n"
    "  --toml-json   read any TOML on standard input, print it as the toml-test suite's JSON;\n"
    "                exit code 1 when it is not valid TOML 1.0\n"
    "  --markdown    the tables of docs/reference/config.md\n"
    "  --help        this text and all keys, or those of one section\n"
    "\n"
    "options: --section.key value, --section.key=value, --section.flag, --section.no_flag;\n"
    "lists are comma-separated.\n"
    "\n"
    "examples:\n"
    "  expar config configs/debug_moe.toml --json\n"
    "  expar config configs/qwen3_30b_a3b.toml --parallelism.expert_parallel_degree 8\n"
    "  expar config --help training\n";

/** Standard input whole. Caller frees. NULL with the reason in the last error. */
static char *read_input(size_t *n_bytes) {
    xp_text text = {0};
    char block[1 << 16];
    size_t n = 0;
    while ((n = fread(block, 1, sizeof block, stdin)) > 0)
        xp_text_add(&text, block, n);
    if (ferror(stdin) || text.failed) {
        xp_text_free(&text);
        return NULL;
    }
    *n_bytes = text.length;
    return text.data ? text.data : calloc(1, 1);
}

/** Print and free; a full disk or closed pipe is a failure. */
static int print(char *text) {
    bool done = fputs(text, stdout) >= 0 && fflush(stdout) == 0;
    free(text);
    if (done)
        return XP_EXIT_OK;
    fputs("error: cannot write to standard output\n", stderr);
    return XP_EXIT_FAILED;
}

static int toml_json(void) {
    size_t n_bytes = 0;
    char *input = read_input(&n_bytes);
    if (!input) {
        fputs("error: cannot read standard input\n", stderr);
        return XP_EXIT_FAILED;
    }
    xp_toml *toml = NULL;
    xp_status status = xp_toml_parse("<stdin>", input, n_bytes, &toml);
    if (status != XP_OK) {
        free(input);
        cli_fail(status);
        return XP_EXIT_FAILED; /* what the suite's runner expects of invalid input */
    }
    xp_text text = {0};
    xp_toml_add_json(toml, &text);
    xp_toml_destroy(toml);
    free(input);
    if (text.failed) {
        xp_text_free(&text);
        return cli_fail(xp_error(XP_ENOMEM, "out of memory for the JSON"));
    }
    return print(text.data);
}

static int show_keys(const char *section, bool markdown) {
    char *text = NULL;
    xp_status status = xp_config_help(section, markdown, &text);
    if (status != XP_OK)
        return cli_fail(status);
    if (!markdown && !section)
        printf("%s\nkeys:\n\n", usage);
    return print(text);
}

static int show_config(int argc, char **argv, output form) {
    xp_config_set *set = NULL;
    xp_status status = xp_config_load(argc, argv, true, &set);
    if (status != XP_OK) {
        cli_fail(status);
        return XP_EXIT_USAGE;
    }
    for (int i = 0; xp_config_warning(set, i); i++)
        cli_warn(NULL, xp_config_warning(set, i));
    if (xp_config_complete(set) != XP_OK)
        cli_warn(NULL, xp_last_error());
    xp_arch arch;
    const char *backend = xp_config_get(set)->training.backend;
    const xp_config_facts facts = {.has_experts =
                                       xp_arch_from_config(xp_config_get(set), &arch) != XP_OK ||
                                       arch.n_experts > 0,
                                   .on_gpu = !backend || strcmp(backend, "cpu") != 0};
    char *text = NULL;
    status = xp_config_effects(set, &facts, cli_warn, NULL);
    if (status != XP_OK) {
        xp_config_destroy(set);
        return cli_fail(status);
    }
    status =
        form == OUTPUT_JSON ? xp_config_dump_json(set, &text) : xp_config_dump_toml(set, &text);
    xp_config_destroy(set);
    return status == XP_OK ? print(text) : cli_fail(status);
}

/** The word is this command's own, and what follows it may name a section. */
static const char *section_after(int argc, char **argv, int i) {
    return i + 1 < argc && argv[i + 1][0] != '-' ? argv[i + 1] : NULL;
}

int cmd_config(int argc, char **argv) {
    /* The words that are left are xp_config_load()'s. */
    char **words = calloc((size_t)argc + 1, sizeof *words);
    if (!words)
        return cli_fail(xp_error(XP_ENOMEM, "out of memory for the command line"));
    int n_words = 0, code = -1;
    output form = OUTPUT_TOML;
    for (int i = 1; i < argc && code < 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            code = show_keys(section_after(argc, argv, i), false);
        } else if (strcmp(argv[i], "--markdown") == 0) {
            code = show_keys(section_after(argc, argv, i), true);
        } else if (strcmp(argv[i], "--toml-json") == 0) {
            code = toml_json();
        } else if (strcmp(argv[i], "--json") == 0) {
            form = OUTPUT_JSON;
        } else if (strcmp(argv[i], "--toml") == 0) {
            form = OUTPUT_TOML;
        } else {
            words[n_words++] = argv[i];
        }
    }
    if (code < 0)
        code = show_config(n_words, words, form);
    free(words);
    return code;
}
