/** Fields of type XP_FIELD_SOURCES: a list of {path, weight}. */
#include "config/set.h"

#include <string.h>

static xp_status no_memory(void) {
    return xp_error(XP_ENOMEM, "out of memory for the configuration");
}

static xp_status bad(const xp_assignment *a, const char *what) {
    return xp_error(XP_ECONFIG, "%s: %s.%s %s", a->where, a->field->section, a->field->key, what);
}

static xp_status check(const xp_assignment *a, const xp_data_source *source) {
    if (source->path == NULL || source->path[0] == '\0')
        return bad(a, "has a source without a path");
    if (source->weight > 0 && source->weight <= 1e12)
        return XP_OK;
    return xp_error(XP_ECONFIG, "%s: %s.%s gives %s the weight %g, must be above 0", a->where,
                    a->field->section, a->field->key, source->path, source->weight);
}

/* "path=weight,path=weight"; a path alone weighs 1. */
xp_status xp_sources_from_text(xp_config_set *set, const xp_assignment *a, const char *text,
                               xp_source_list *list) {
    size_t n = *text != '\0';
    for (const char *at = text; *at; at++)
        n += *at == ',';
    xp_data_source *items = xp_arena_alloc(set->arena, (n + 1) * sizeof *items);
    if (!items)
        return no_memory();
    for (size_t i = 0; i < n; i++) {
        size_t length = strcspn(text, ",");
        char *item = xp_arena_strndup(set->arena, text, length);
        if (!item)
            return no_memory();
        items[i] = (xp_data_source){.path = item, .weight = 1};
        char *equals = strrchr(item, '=');
        if (equals) {
            *equals = '\0';
            if (!xp_parse_f64(equals + 1, &items[i].weight))
                return bad(a, "must be PATH=WEIGHT,PATH=WEIGHT");
        }
        XP_TRY(check(a, &items[i]));
        text += length + (text[length] == ',');
    }
    *list = (xp_source_list){.n = (int)n, .items = items};
    return XP_OK;
}

static xp_status read_table(xp_config_set *set, const xp_assignment *a, const xp_toml_table *table,
                            xp_data_source *source) {
    *source = (xp_data_source){.weight = 1};
    for (size_t i = 0; i < xp_toml_table_count(table); i++) {
        const xp_toml_entry *entry = xp_toml_table_entry(table, i);
        const xp_toml_value *v = &entry->value;
        if (strcmp(entry->key, "path") == 0) {
            if (v->type != XP_TOML_STRING || strlen(v->as.string.data) != v->as.string.n_bytes)
                return bad(a, "needs a string as path");
            source->path = xp_arena_strdup(set->arena, v->as.string.data);
            if (!source->path)
                return no_memory();
        } else if (strcmp(entry->key, "weight") == 0) {
            if (v->type != XP_TOML_INTEGER && v->type != XP_TOML_FLOAT)
                return bad(a, "needs a number as weight");
            source->weight = v->type == XP_TOML_INTEGER ? (double)v->as.integer : v->as.real;
        } else {
            return xp_error(XP_ECONFIG,
                            "%s: %s.%s has a source with the key %.80s; there are path "
                            "and weight",
                            a->where, a->field->section, a->field->key, entry->key);
        }
    }
    return check(a, source);
}

xp_status xp_sources_from_toml(xp_config_set *set, const xp_assignment *a,
                               const xp_toml_array *array, xp_source_list *list) {
    size_t n = xp_toml_array_count(array);
    xp_data_source *items = xp_arena_alloc(set->arena, (n + 1) * sizeof *items);
    if (!items)
        return no_memory();
    for (size_t i = 0; i < n; i++) {
        const xp_toml_value *item = xp_toml_array_item(array, i);
        if (item->type != XP_TOML_TABLE)
            return bad(a, "must be a list of tables {path = \"...\", weight = ...}");
        XP_TRY(read_table(set, a, item->as.table, &items[i]));
    }
    *list = (xp_source_list){.n = (int)n, .items = items};
    return XP_OK;
}

void xp_sources_add(const xp_source_list *list, bool json, xp_text *text) {
    xp_text_puts(text, "[");
    for (int i = 0; i < list->n; i++) {
        xp_text_puts(text, i ? ", " : "");
        xp_text_puts(text, json ? "{\"path\": " : "{path = ");
        xp_text_add_json(text, list->items[i].path, strlen(list->items[i].path));
        xp_text_puts(text, json ? ", \"weight\": " : ", weight = ");
        xp_text_add_json_double(text, list->items[i].weight);
        xp_text_puts(text, "}");
    }
    xp_text_puts(text, "]");
}
