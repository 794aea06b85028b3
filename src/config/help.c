/** The field table for people: --help, and the tables of docs/reference/config.md. */
#include "config/fields.h"

#include <string.h>
#include "core/text.h"

/** "|" separates cells of a Markdown table. */
static void add_cell(const char *string, xp_text *text) {
    for (; *string; string++) {
        if (*string == '|')
            xp_text_puts(text, "\\");
        xp_text_add(text, string, 1);
    }
}

static void add_markdown_row(const xp_field *field, xp_text *text) {
    xp_text_printf(text, "| `%s`%s | ", field->key, field->torchtitan ? " (t)" : "");
    add_cell(xp_field_type_text(field), text);
    bool is_value = field->initial && !field->unset;
    xp_text_puts(text, is_value ? " | `" : " | ");
    add_cell(xp_field_default_text(field), text);
    xp_text_puts(text, is_value ? "` | " : " | ");
    add_cell(field->help, text);
    xp_text_puts(text, " |\n");
}

static void add_help_row(const xp_field *field, xp_text *text) {
    bool flag = field->type == XP_FIELD_BOOL || (field->type == XP_FIELD_SWITCH && !field->choices);
    xp_text_printf(text, "  --%s.%s%s%s\n        %s (default: %s)\n", field->section, field->key,
                   flag ? "" : " ", flag ? "" : xp_field_type_text(field), field->help,
                   xp_field_default_text(field));
}

static void add_section(const char *section, bool markdown, xp_text *text) {
    if (markdown)
        xp_text_printf(text,
                       "%s### `[%s]`\n\n| key | type | default | meaning |\n|---|---|---|---|\n",
                       text->length ? "\n" : "", section);
    else
        xp_text_printf(text, "%s[%s]\n", text->length ? "\n" : "", section);
    for (int i = 0; i < xp_field_count(); i++) {
        const xp_field *field = xp_field_at(i);
        if (strcmp(field->section, section) != 0)
            continue;
        if (markdown)
            add_markdown_row(field, text);
        else
            add_help_row(field, text);
    }
}

xp_status xp_config_help(const char *section, bool markdown, char **text) {
    xp_text made = {0};
    for (int i = 0; xp_field_section(i); i++)
        if (!section || strcmp(section, xp_field_section(i)) == 0)
            add_section(xp_field_section(i), markdown, &made);
    if (!made.failed && made.length == 0) {
        xp_text_free(&made);
        const char *near = xp_field_nearest_section(section);
        return xp_error(XP_ECONFIG, "unknown section \"%s\"%s%s", section,
                        near ? "; did you mean " : "", near ? near : "");
    }
    if (made.failed) {
        xp_text_free(&made);
        return xp_error(XP_ENOMEM, "out of memory for the help text");
    }
    *text = made.data;
    return XP_OK;
}
