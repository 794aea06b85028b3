#include "options.h"

#include <stdio.h>
#include <string.h>
#include "cli.h"
#include "core/text.h"

static void print_help(const cli_syntax *c) {
    printf("usage: %s\n\n%s\n", c->usage, c->about);
    if (c->n_options > 0)
        printf("\noptions:\n");
    for (int i = 0; i < c->n_options; i++) {
        char left[64];
        snprintf(left, sizeof left, "%s %s", c->options[i].name,
                 c->options[i].metavar != NULL ? c->options[i].metavar : "");
        printf("  %-26s %s\n", left, c->options[i].help);
    }
    if (c->examples != NULL)
        printf("\nexamples:\n%s", c->examples);
}

static const cli_option *find(const cli_syntax *c, const char *word, size_t n) {
    for (int i = 0; i < c->n_options; i++)
        if (strlen(c->options[i].name) == n && memcmp(c->options[i].name, word, n) == 0)
            return &c->options[i];
    return NULL;
}

static int unknown(const cli_syntax *c, const char *word) {
    const char *nearest = NULL;
    int best = 4;
    for (int i = 0; i < c->n_options; i++) {
        int distance = xp_edit_distance(word, c->options[i].name);
        if (distance < best) {
            best = distance;
            nearest = c->options[i].name;
        }
    }
    fprintf(stderr, "error: unknown option %s%s%s%s\nusage: %s\n", word,
            nearest != NULL ? "; did you mean " : "", nearest != NULL ? nearest : "",
            nearest != NULL ? "?" : "", c->usage);
    return XP_EXIT_USAGE;
}

static int bad_value(const cli_option *o, const char *value, const char *wanted) {
    fprintf(stderr, "error: %s: \"%s\" is not %s", o->name, value, wanted);
    if (o->low != 0 || o->high != 0)
        fprintf(stderr, " from %.15g to %.15g", o->low, o->high);
    fprintf(stderr, "\n");
    return XP_EXIT_USAGE;
}

static bool in_range(const cli_option *o, double value) {
    return (o->low == 0 && o->high == 0) || (value >= o->low && value <= o->high);
}

static int set_value(const cli_option *o, const char *value) {
    int64_t i;
    double f;
    switch (o->kind) {
    case CLI_STRING:
        *(const char **)o->value = value;
        return 0;
    case CLI_INT:
    case CLI_OPTIONAL_INT:
        if (!xp_parse_i64(value, &i) || !in_range(o, (double)i))
            return bad_value(o, value, "a whole number");
        *(int64_t *)o->value = i;
        return 0;
    case CLI_FLOAT:
        if (!xp_parse_f64(value, &f) || !in_range(o, f))
            return bad_value(o, value, "a number");
        *(double *)o->value = f;
        return 0;
    case CLI_FLAG:
        break;
    }
    return bad_value(o, value, "wanted: this option takes no value");
}

/* One option at argv[*i]; takes the word after it when it needs one. */
static int parse_option(const cli_syntax *c, int argc, char **argv, int *i) {
    const char *word = argv[*i], *equals = strchr(word, '=');
    const cli_option *o = find(c, word, equals != NULL ? (size_t)(equals - word) : strlen(word));
    if (o == NULL)
        return unknown(c, word);
    if (o->kind == CLI_FLAG && equals == NULL) {
        *(bool *)o->value = true;
        return 0;
    }
    if (equals != NULL)
        return set_value(o, equals + 1);
    if (o->kind == CLI_OPTIONAL_INT) {
        int64_t value;
        if (*i + 1 < argc && xp_parse_i64(argv[*i + 1], &value))
            return set_value(o, argv[++*i]);
        *(int64_t *)o->value = -1;
        return 0;
    }
    if (*i + 1 >= argc) {
        fprintf(stderr, "error: %s needs a value (%s)\n", o->name, o->help);
        return XP_EXIT_USAGE;
    }
    return set_value(o, argv[++*i]);
}

int cli_parse(const cli_syntax *c, int argc, char **argv, const char **positionals, bool *done) {
    int n_positionals = 0;
    *done = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help(c);
            *done = true;
            return 0;
        }
        if (argv[i][0] == '-' && argv[i][1] != '\0') {
            int code = parse_option(c, argc, argv, &i);
            if (code != 0)
                return code;
        } else if (n_positionals == c->max_positionals) {
            fprintf(stderr, "error: unexpected argument \"%s\"\nusage: %s\n", argv[i], c->usage);
            return XP_EXIT_USAGE;
        } else {
            positionals[n_positionals++] = argv[i];
        }
    }
    return 0;
}
