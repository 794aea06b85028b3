/** The tree as the tagged JSON of the toml-test suite: {"key": {"type": "integer", "value": "1"}}.
 */
#include "config/toml_reader.h"

#include <inttypes.h>
#include <math.h>

static void add_table(const xp_toml_table *table, xp_text *text);

static void add_float(double real, xp_text *text) {
    if (isnan(real))
        xp_text_puts(text, "nan");
    else if (isinf(real))
        xp_text_puts(text, real < 0 ? "-inf" : "inf");
    else
        xp_text_add_json_double(text, real);
}

static void add_scalar(const xp_toml_value *value, xp_text *text) {
    static const char *const names[XP_TOML_N_TYPES] = {
        "string",         "integer",    "float",      "bool", "datetime",
        "datetime-local", "date-local", "time-local", "",     ""};
    xp_text_printf(text, "{\"type\":\"%s\",\"value\":", names[value->type]);
    if (value->type == XP_TOML_INTEGER) {
        xp_text_printf(text, "\"%" PRId64 "\"", value->as.integer);
    } else if (value->type == XP_TOML_BOOL) {
        xp_text_puts(text, value->as.boolean ? "\"true\"" : "\"false\"");
    } else if (value->type == XP_TOML_FLOAT) {
        xp_text_puts(text, "\"");
        add_float(value->as.real, text);
        xp_text_puts(text, "\"");
    } else {
        xp_text_add_json(text, value->as.string.data, value->as.string.n_bytes);
    }
    xp_text_puts(text, "}");
}

static void add_value(const xp_toml_value *value, xp_text *text) {
    if (value->type == XP_TOML_TABLE) {
        add_table(value->as.table, text);
    } else if (value->type == XP_TOML_ARRAY) {
        xp_text_puts(text, "[");
        for (size_t i = 0; i < value->as.array->n; i++) {
            xp_text_puts(text, i ? "," : "");
            add_value(&value->as.array->items[i], text);
        }
        xp_text_puts(text, "]");
    } else {
        add_scalar(value, text);
    }
}

static void add_table(const xp_toml_table *table, xp_text *text) {
    xp_text_puts(text, "{");
    for (size_t i = 0; i < table->n; i++) {
        const xp_toml_entry *entry = &table->entries[i];
        xp_text_puts(text, i ? "," : "");
        xp_text_add_json(text, entry->key, entry->key_bytes);
        xp_text_puts(text, ":");
        add_value(&entry->value, text);
    }
    xp_text_puts(text, "}");
}

void xp_toml_add_json(const xp_toml *toml, xp_text *text) {
    add_table(toml->root, text);
    xp_text_puts(text, "\n");
}
