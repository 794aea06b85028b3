/** Words of the command line: --section.key value, --section.key=value, --section.flag,
 * --section.no_flag. */
#include "config/set.h"

#include <string.h>

/** "--training.local-batch-size" and "--training.local_batch_size" are one name. */
static char *split_name(xp_config_set *set, const char *word, const char **value) {
    const char *equals = strchr(word, '=');
    size_t n = equals ? (size_t)(equals - word) : strlen(word);
    char *name = xp_arena_strndup(set->arena, word, n);
    *value = equals ? equals + 1 : NULL;
    for (size_t i = 2; name && i < n; i++)
        if (name[i] == '-')
            name[i] = '_';
    return name;
}

/* "--config", as other programs call it. */
static bool names_config_file(const char *name) {
    return strcmp(name, "--config") == 0 || strcmp(name, "--config_file") == 0;
}

static xp_status fail_unknown(const char *name, const char *section, const char *key) {
    const xp_field *near = xp_field_nearest(section, key);
    if (near)
        return xp_error(XP_ECONFIG, "unknown option %.100s; did you mean --%s.%s?", name,
                        near->section, near->key);
    return xp_error(XP_ECONFIG,
                    "unknown option %.100s; options are --section.key value, `expar config --help` "
                    "lists them",
                    name);
}

static bool is_flag(const xp_field *field) {
    return field->type == XP_FIELD_BOOL || field->type == XP_FIELD_SWITCH;
}

static const xp_field *find_field(const char *section, const char *key) {
    const xp_field *field = xp_field_find(section, key);
    return field ? field : xp_field_alias(section, key);
}

static bool is_option(const char *word) {
    return word[0] == '-' && word[1] == '-';
}

/** The value of an option: behind '=', or the next word; *used counts words. */
static xp_status take_value(xp_option *option, const char *inline_value, const char *next,
                            int *used) {
    option->value = inline_value;
    if (inline_value)
        return XP_OK;
    if (is_flag(option->field)) {
        bool word = next && (strcmp(next, "true") == 0 || strcmp(next, "false") == 0 ||
                             (option->field->choices && strcmp(next, "auto") == 0));
        option->value = word ? next : "true";
        *used += word;
        return XP_OK;
    }
    if (!next || is_option(next))
        return xp_error(XP_ECONFIG, "%s needs a value (%s)", option->name,
                        xp_field_type_text(option->field));
    option->value = next;
    *used += 1;
    return XP_OK;
}

static xp_status parse_option(xp_config_set *set, const char *word, const char *next,
                              xp_option *option, int *used) {
    *used = 1;
    if (!is_option(word))
        return xp_error(
            XP_ECONFIG,
            "unexpected word \"%.100s\"; the configuration file comes first, options are "
            "--section.key value",
            word);
    const char *value = NULL;
    char *name = split_name(set, word, &value);
    char *section = name ? xp_arena_strdup(set->arena, name + 2) : NULL;
    if (!section)
        return xp_error(XP_ENOMEM, "out of memory for the command line");
    option->name = name;
    if (names_config_file(name)) {
        option->field = xp_field_find("job", "config_file");
        return take_value(option, value, next, used);
    }
    char *dot = strchr(section, '.');
    if (!dot)
        return fail_unknown(name, NULL, section);
    *dot = '\0';
    const char *key = dot + 1;
    option->field = find_field(section, key);
    if (option->field)
        return take_value(option, value, next, used);
    const xp_field *negated = strncmp(key, "no_", 3) == 0 ? find_field(section, key + 3) : NULL;
    if (negated && is_flag(negated)) {
        if (value)
            return xp_error(XP_ECONFIG, "%s takes no value", name);
        option->field = negated;
        option->value = "false";
        return XP_OK;
    }
    if (!xp_field_foreign(section, key) &&
        !(strncmp(key, "no_", 3) == 0 && xp_field_foreign(section, key + 3)))
        return fail_unknown(name, section, key);
    xp_set_note_foreign(set, section, key);
    *used += !value && next && !is_option(next);
    return XP_OK;
}

/* "expar train run.toml": the first word, when it is no option, is the configuration file. */
static int take_file(int argc, char **argv, xp_option *option) {
    if (argc < 1 || argv[0][0] == '-' || argv[0][0] == '\0')
        return 0;
    *option = (xp_option){.field = xp_field_find("job", "config_file"),
                          .name = "--job.config_file",
                          .value = argv[0]};
    return 1;
}

/* A first word and an option that name two files, of which only one would be read. */
static xp_status check_one_file(const xp_option *options, int n_options) {
    for (int i = 1; i < n_options; i++)
        if (options[i].field == options[0].field && strcmp(options[0].value, options[i].value) != 0)
            return xp_error(XP_ECONFIG,
                            "two configuration files are given, %.200s and %.200s: one is read",
                            options[0].value, options[i].value);
    return XP_OK;
}

xp_status xp_set_parse_options(xp_config_set *set, int argc, char **argv, xp_option **options,
                               int *n_options) {
    *options = xp_arena_alloc(set->arena, (size_t)(argc + 1) * sizeof **options);
    if (!*options)
        return xp_error(XP_ENOMEM, "out of memory for the command line");
    *n_options = take_file(argc, argv, *options);
    for (int i = *n_options, used = 0; i < argc; i += used) {
        const char *next = i + 1 < argc ? argv[i + 1] : NULL;
        XP_TRY(parse_option(set, argv[i], next, &(*options)[*n_options], &used));
        *n_options += 1;
    }
    return argc > 0 && !is_option(argv[0]) ? check_one_file(*options, *n_options) : XP_OK;
}
