/** The merged configuration as TOML and as JSON with origins. */
#include "config/set.h"

#include <string.h>

/** Hand the text over, or say that memory ran out. */
static xp_status give(xp_text *made, char **text) {
    if (made->failed) {
        xp_text_free(made);
        return xp_error(XP_ENOMEM, "out of memory for the configuration's text");
    }
    *text = made->data;
    return XP_OK;
}

static void add_toml_section(const xp_config_set *set, const char *section, xp_text *text) {
    const xp_field *file = xp_field_find("job", "config_file");
    xp_text_printf(text, "%s[%s]\n", text->length ? "\n" : "", section);
    for (int i = 0; i < xp_field_count(); i++) {
        const xp_field *field = xp_field_at(i);
        if (strcmp(field->section, section) != 0)
            continue;
        bool unset = xp_field_is_unset(&set->config, field);
        if (field == file || unset) {
            /* The file cannot name itself, and unset has no spelling: both stay visible as
             * comments. */
            xp_text_printf(text, "# %s: ", field->key);
            if (unset)
                xp_text_puts(text, xp_field_default_text(field));
            else
                xp_field_add_value(&set->config, field, false, text);
        } else {
            xp_text_printf(text, "%s = ", field->key);
            xp_field_add_value(&set->config, field, false, text);
        }
        xp_text_puts(text, "\n");
    }
}

xp_status xp_config_dump_toml(const xp_config_set *set, char **text) {
    xp_text made = {0};
    for (int i = 0; xp_field_section(i); i++)
        add_toml_section(set, xp_field_section(i), &made);
    return give(&made, text);
}

static void add_origin(const xp_origin *origin, xp_text *text) {
    xp_text plain = {0};
    switch (origin->kind) {
    case XP_ORIGIN_DEFAULT:
        xp_text_puts(&plain, "default");
        break;
    case XP_ORIGIN_FILE:
        xp_text_printf(&plain, "%s:%d", origin->name, origin->line);
        break;
    case XP_ORIGIN_ENVIRONMENT:
        xp_text_printf(&plain, "environment %s", origin->name);
        break;
    case XP_ORIGIN_COMMAND_LINE:
        xp_text_puts(&plain, "command line");
        break;
    case XP_ORIGIN_PROGRAM:
        xp_text_puts(&plain, "program");
        break;
    }
    text->failed = text->failed || plain.failed;
    if (!text->failed)
        xp_text_add_json(text, plain.data, plain.length);
    xp_text_free(&plain);
}

static void add_json_section(const xp_config_set *set, const char *section, xp_text *text) {
    xp_text_printf(text, "%s  \"%s\": {", text->length > 2 ? ",\n" : "", section);
    const char *separator = "\n";
    for (int i = 0; i < xp_field_count(); i++) {
        const xp_field *field = xp_field_at(i);
        if (strcmp(field->section, section) != 0)
            continue;
        xp_text_printf(text, "%s    \"%s\": {\"value\": ", separator, field->key);
        if (field->type != XP_FIELD_LIST && xp_field_is_unset(&set->config, field))
            xp_text_puts(text, "null");
        else
            xp_field_add_value(&set->config, field, true, text);
        xp_text_puts(text, ", \"origin\": ");
        add_origin(xp_set_origin(set, field), text);
        xp_text_puts(text, "}");
        separator = ",\n";
    }
    xp_text_puts(text, "\n  }");
}

xp_status xp_config_dump_json(const xp_config_set *set, char **text) {
    xp_text made = {0};
    xp_text_puts(&made, "{\n");
    for (int i = 0; xp_field_section(i); i++)
        add_json_section(set, xp_field_section(i), &made);
    xp_text_puts(&made, "\n}\n");
    return give(&made, text);
}
