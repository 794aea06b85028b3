/** Merging: defaults, file, environment, command line. */
#include "config/set.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *variable, *section, *key;
} environment_fields[] = {
    {"NGPU", "job", "ngpu"},
    {"LOG_RANK", "job", "log_rank"},
    {"CONFIG_FILE", "job", "config_file"},
};

static xp_status set_environment(xp_config_set *set) {
    for (size_t i = 0; i < sizeof environment_fields / sizeof environment_fields[0]; i++) {
        const char *variable = environment_fields[i].variable;
        const char *value = getenv(variable);
        if (!value || !*value)
            continue;
        xp_assignment a = {
            .field = xp_field_find(environment_fields[i].section, environment_fields[i].key),
            .where = variable,
            .origin = {XP_ORIGIN_ENVIRONMENT, variable, 0, 0}};
        XP_TRY(xp_set_text(set, &a, value));
    }
    return XP_OK;
}

/** The file to read: the last --job.config_file, else the environment's, else NULL. */
static const char *choose_file(const xp_option *options, int n_options, bool environment) {
    const xp_field *field = xp_field_find("job", "config_file");
    for (int i = n_options - 1; i >= 0; i--)
        if (options[i].field == field)
            return options[i].value;
    return environment ? getenv("CONFIG_FILE") : NULL;
}

/* The values are in the set. */
static xp_status finish(xp_config_set *set) {
    XP_TRY(xp_set_resolve_paths(set));
    XP_TRY(xp_set_check(set));
    if (set->n_foreign == 0)
        return XP_OK;
    if (set->foreign.failed)
        return xp_error(XP_ENOMEM, "out of memory for the configuration");
    return xp_set_warn(
        set, xp_arena_printf(set->arena, "TorchTitan %s without a counterpart here, ignored: %s",
                             set->n_foreign == 1 ? "key" : "keys", set->foreign.data));
}

static xp_status merge(xp_config_set *set, int argc, char **argv, bool environment) {
    xp_option *options = NULL;
    int n_options = 0;
    XP_TRY(xp_set_parse_options(set, argc, argv, &options, &n_options));
    XP_TRY(xp_set_defaults(set));
    const char *file = choose_file(options, n_options, environment);
    if (file && *file)
        XP_TRY(xp_set_file(set, file));
    if (environment)
        XP_TRY(set_environment(set));
    for (int i = 0; i < n_options; i++) {
        if (!options[i].field)
            continue;
        xp_assignment a = {.field = options[i].field,
                           .where = options[i].name,
                           .origin = {XP_ORIGIN_COMMAND_LINE, NULL, 0, 0}};
        XP_TRY(xp_set_text(set, &a, options[i].value));
    }
    return finish(set);
}

static xp_status merge_text(xp_config_set *set, const char *name, const char *text) {
    XP_TRY(xp_set_defaults(set));
    XP_TRY(xp_set_toml_text(set, name, text, strlen(text)));
    return finish(set);
}

static xp_status create(xp_config_set **set) {
    xp_config_set *made = calloc(1, sizeof *made);
    if (!made)
        return xp_error(XP_ENOMEM, "out of memory for the configuration");
    xp_status status = xp_arena_create(&made->arena);
    if (status == XP_OK) {
        made->origins =
            xp_arena_alloc(made->arena, (size_t)xp_field_count() * sizeof *made->origins);
        if (!made->origins)
            status = xp_error(XP_ENOMEM, "out of memory for the configuration");
    }
    if (status == XP_OK)
        *set = made;
    else
        xp_config_destroy(made);
    return status;
}

static xp_status give(xp_config_set *made, xp_status status, xp_config_set **set) {
    if (status == XP_OK)
        *set = made;
    else
        xp_config_destroy(made);
    return status;
}

xp_status xp_config_load(int argc, char **argv, bool environment, xp_config_set **set) {
    xp_config_set *made = NULL;
    XP_TRY(create(&made));
    return give(made, merge(made, argc, argv, environment), set);
}

xp_status xp_config_load_text(const char *name, const char *text, xp_config_set **set) {
    xp_config_set *made = NULL;
    XP_TRY(create(&made));
    return give(made, merge_text(made, name, text), set);
}

void xp_config_destroy(xp_config_set *set) {
    if (!set)
        return;
    xp_text_free(&set->foreign);
    xp_arena_destroy(set->arena);
    free(set);
}

const xp_config *xp_config_get(const xp_config_set *set) {
    return &set->config;
}

xp_status xp_config_override(xp_config_set *set, const char *section_key, const char *value) {
    const char *dot = strchr(section_key, '.');
    char *section =
        dot ? xp_arena_strndup(set->arena, section_key, (size_t)(dot - section_key)) : NULL;
    if (!section)
        return xp_error(XP_EINVAL, "\"%s\" is no section.key", section_key);
    const xp_field *field = xp_field_find(section, dot + 1);
    if (!field)
        field = xp_field_alias(section, dot + 1);
    if (!field)
        return xp_error(XP_ECONFIG, "unknown key %s", section_key);
    xp_config before = set->config;
    xp_origin origin = *xp_set_origin(set, field);
    xp_assignment a = {
        .field = field, .where = "override", .origin = {XP_ORIGIN_PROGRAM, NULL, 0, 0}};
    xp_status status = xp_set_text(set, &a, value);
    if (status == XP_OK)
        status = xp_set_check(set);
    if (status != XP_OK) {
        set->config = before;
        *xp_set_origin(set, field) = origin;
    }
    return status;
}

const char *xp_config_warning(const xp_config_set *set, int i) {
    return i >= 0 && i < set->n_warnings ? set->warnings[i] : NULL;
}
