/** Setting one field: types, ranges and choices are judged here and nowhere else. */
#include "config/set.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

static void *member(xp_config *config, const xp_field *field) {
    return (char *)config + field->offset;
}

xp_origin *xp_set_origin(const xp_config_set *set, const xp_field *field) {
    return &set->origins[field - xp_field_at(0)];
}

static xp_status fail_memory(void) {
    return xp_error(XP_ENOMEM, "out of memory for the configuration");
}

static xp_status fail_type(const xp_assignment *a, const char *expected, const char *got) {
    return xp_error(XP_ECONFIG, "%s: %s.%s must be %s, got %s", a->where, a->field->section,
                    a->field->key, expected, got);
}

static xp_status set_int(xp_config_set *set, const xp_assignment *a, int64_t value) {
    const xp_field *f = a->field;
    /* The value that stands for "unset" may be written out, also where it lies outside the range.
     */
    int64_t unset = f->unset ? strtoll(f->initial, NULL, 10) : 0;
    bool is_unset = f->unset && value == unset;
    bool inside = (double)value >= f->min && (double)value <= f->max;
    if (!is_unset && (!inside || (f->zero_refused && value == 0))) {
        if (f->zero_refused)
            return xp_error(XP_ECONFIG, "%s: %s.%s is %" PRId64 ", must be -1 or at least 1",
                            a->where, f->section, f->key, value);
        if (value > 0 || f->max < 1e9)
            return xp_error(XP_ECONFIG, "%s: %s.%s is %" PRId64 ", must be %.0f to %.0f", a->where,
                            f->section, f->key, value, f->min, f->max);
        return xp_error(XP_ECONFIG, "%s: %s.%s is %" PRId64 ", must be at least %.0f", a->where,
                        f->section, f->key, value, f->min);
    }
    *(int64_t *)member(&set->config, f) = value;
    return XP_OK;
}

static xp_status set_float(xp_config_set *set, const xp_assignment *a, double value) {
    const xp_field *f = a->field;
    bool is_unset = f->unset && value == strtod(f->initial, NULL);
    bool inside = value >= f->min && value <= f->max;
    if (!is_unset && !inside && f->range)
        return xp_error(XP_ECONFIG, "%s: %s.%s is %g, must be %s", a->where, f->section, f->key,
                        value, f->range);
    if (!is_unset && !inside)
        return xp_error(XP_ECONFIG, "%s: %s.%s is %g, must be %g to %g", a->where, f->section,
                        f->key, value, f->min, f->max);
    *(double *)member(&set->config, f) = value;
    return XP_OK;
}

static void set_bool(xp_config_set *set, const xp_field *field, bool value) {
    if (field->type == XP_FIELD_SWITCH)
        *(int64_t *)member(&set->config, field) = value;
    else
        *(bool *)member(&set->config, field) = value;
}

/* "auto", where a switch has it. */
static bool set_auto(xp_config_set *set, const xp_field *field, const char *text) {
    if (field->type != XP_FIELD_SWITCH || !field->choices || strcmp(text, "auto") != 0)
        return false;
    *(int64_t *)member(&set->config, field) = -1;
    return true;
}

static const char *bool_words(const xp_field *field) {
    return field->choices ? "auto, true or false" : "true or false";
}

static bool is_choice(const char *choices, const char *text) {
    size_t n = strlen(text);
    for (const char *at = choices; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL)
        if (n > 0 && strcspn(at, "|") == n && strncmp(at, text, n) == 0)
            return true;
    return false;
}

static xp_status set_string(xp_config_set *set, const xp_assignment *a, const char *value,
                            size_t n_bytes) {
    const xp_field *f = a->field;
    if (strlen(value) != n_bytes)
        return xp_error(XP_ECONFIG, "%s: %s.%s holds a NUL character", a->where, f->section,
                        f->key);
    if (n_bytes == 0 && f->initial)
        return xp_error(XP_ECONFIG, "%s: %s.%s must not be empty", a->where, f->section, f->key);
    const char *copy = NULL;
    if (n_bytes > 0) {
        if (f->type == XP_FIELD_CHOICE && !is_choice(f->choices, value))
            return xp_error(XP_ECONFIG, "%s: %s.%s is \"%s\", must be one of %s", a->where,
                            f->section, f->key, value, f->choices);
        copy = xp_arena_strdup(set->arena, value);
        if (!copy)
            return fail_memory();
    }
    *(const char **)member(&set->config, f) = copy;
    return XP_OK;
}

/** Room for n items; the caller fills items[]. */
static xp_status make_list(xp_config_set *set, size_t n, const char ***items) {
    *items = xp_arena_alloc(set->arena, (n ? n : 1) * sizeof **items);
    return *items ? XP_OK : fail_memory();
}

static xp_status set_list_text(xp_config_set *set, const xp_assignment *a, const char *text) {
    size_t n = *text != '\0';
    for (const char *at = text; *at; at++)
        n += *at == ',';
    const char **items = NULL;
    XP_TRY(make_list(set, n, &items));
    for (size_t i = 0; i < n; i++) {
        size_t length = strcspn(text, ",");
        if (length == 0)
            return xp_error(XP_ECONFIG, "%s: %s.%s has an empty name between its commas", a->where,
                            a->field->section, a->field->key);
        items[i] = xp_arena_strndup(set->arena, text, length);
        if (!items[i])
            return fail_memory();
        text += length + (text[length] == ',');
    }
    *(xp_string_list *)member(&set->config, a->field) =
        (xp_string_list){.n = (int)n, .items = items};
    return XP_OK;
}

static xp_status set_list_toml(xp_config_set *set, const xp_assignment *a,
                               const xp_toml_array *array) {
    size_t n = xp_toml_array_count(array);
    const char **items = NULL;
    XP_TRY(make_list(set, n, &items));
    for (size_t i = 0; i < n; i++) {
        const xp_toml_value *item = xp_toml_array_item(array, i);
        if (item->type != XP_TOML_STRING)
            return fail_type(a, "a list of strings", xp_toml_type_text(item->type));
        size_t length = item->as.string.n_bytes;
        if (length == 0 || strlen(item->as.string.data) != length ||
            strchr(item->as.string.data, ','))
            return xp_error(XP_ECONFIG, "%s: %s.%s: names must not be empty or hold commas",
                            a->where, a->field->section, a->field->key);
        items[i] = xp_arena_strdup(set->arena, item->as.string.data);
        if (!items[i])
            return fail_memory();
    }
    *(xp_string_list *)member(&set->config, a->field) =
        (xp_string_list){.n = (int)n, .items = items};
    return XP_OK;
}

/** The words people use for yes and no. */
static bool parse_bool(const char *text, bool *value) {
    static const char *const yes[] = {"true", "True", "1", "yes", "on"};
    static const char *const no[] = {"false", "False", "0", "no", "off"};
    for (size_t i = 0; i < sizeof yes / sizeof yes[0]; i++) {
        if (strcmp(text, yes[i]) == 0 || strcmp(text, no[i]) == 0) {
            *value = strcmp(text, yes[i]) == 0;
            return true;
        }
    }
    return false;
}

static xp_status assign_text(xp_config_set *set, const xp_assignment *a, const char *text) {
    int64_t integer = 0;
    double real = 0;
    bool boolean = false;
    char quoted[80];
    snprintf(quoted, sizeof quoted, "\"%.60s\"", text);
    switch (a->field->type) {
    case XP_FIELD_INT:
        if (!xp_parse_i64(text, &integer))
            return fail_type(a, "a whole number", quoted);
        return set_int(set, a, integer);
    case XP_FIELD_FLOAT:
        if (!xp_parse_f64(text, &real))
            return fail_type(a, "a number", quoted);
        return set_float(set, a, real);
    case XP_FIELD_BOOL:
    case XP_FIELD_SWITCH:
        if (set_auto(set, a->field, text))
            return XP_OK;
        if (!parse_bool(text, &boolean))
            return fail_type(a, bool_words(a->field), quoted);
        set_bool(set, a->field, boolean);
        return XP_OK;
    case XP_FIELD_LIST:
        return set_list_text(set, a, text);
    case XP_FIELD_SOURCES:
        return xp_sources_from_text(set, a, text, member(&set->config, a->field));
    case XP_FIELD_STRING:
    case XP_FIELD_PATH:
    case XP_FIELD_CHOICE:
        return set_string(set, a, text, strlen(text));
    }
    return xp_error(XP_EINTERNAL, "%s: field without a type", a->where);
}

static xp_status assign_toml(xp_config_set *set, const xp_assignment *a, const xp_toml_value *v) {
    const char *got = xp_toml_type_text(v->type);
    switch (a->field->type) {
    case XP_FIELD_INT:
        if (v->type != XP_TOML_INTEGER)
            return fail_type(a, "a whole number", got);
        return set_int(set, a, v->as.integer);
    case XP_FIELD_FLOAT:
        if (v->type == XP_TOML_INTEGER)
            return set_float(set, a, (double)v->as.integer);
        if (v->type != XP_TOML_FLOAT)
            return fail_type(a, "a number", got);
        return set_float(set, a, v->as.real);
    case XP_FIELD_BOOL:
    case XP_FIELD_SWITCH:
        if (v->type == XP_TOML_STRING && set_auto(set, a->field, v->as.string.data))
            return XP_OK;
        if (v->type != XP_TOML_BOOL)
            return fail_type(a, bool_words(a->field), got);
        set_bool(set, a->field, v->as.boolean);
        return XP_OK;
    case XP_FIELD_LIST:
        if (v->type == XP_TOML_ARRAY)
            return set_list_toml(set, a, v->as.array);
        if (v->type != XP_TOML_STRING)
            return fail_type(a, "a list of strings", got);
        return set_list_text(set, a, v->as.string.data);
    case XP_FIELD_SOURCES:
        if (v->type != XP_TOML_ARRAY)
            return fail_type(a, "a list of tables {path, weight}", got);
        return xp_sources_from_toml(set, a, v->as.array, member(&set->config, a->field));
    case XP_FIELD_STRING:
    case XP_FIELD_PATH:
    case XP_FIELD_CHOICE:
        if (v->type != XP_TOML_STRING)
            return fail_type(a, "a string", got);
        return set_string(set, a, v->as.string.data, v->as.string.n_bytes);
    }
    return xp_error(XP_EINTERNAL, "%s: field without a type", a->where);
}

xp_status xp_set_text(xp_config_set *set, const xp_assignment *assignment, const char *text) {
    XP_TRY(assign_text(set, assignment, text));
    *xp_set_origin(set, assignment->field) = assignment->origin;
    return XP_OK;
}

xp_status xp_set_toml(xp_config_set *set, const xp_assignment *assignment,
                      const xp_toml_value *value) {
    XP_TRY(assign_toml(set, assignment, value));
    *xp_set_origin(set, assignment->field) = assignment->origin;
    return XP_OK;
}

xp_status xp_set_defaults(xp_config_set *set) {
    for (int i = 0; i < xp_field_count(); i++) {
        const xp_field *field = xp_field_at(i);
        xp_assignment a = {.field = field, .where = "default"};
        if (field->initial)
            XP_TRY(xp_set_text(set, &a, field->initial));
        else if (field->type == XP_FIELD_SWITCH)
            *(int64_t *)member(&set->config, field) = -1;
    }
    return XP_OK;
}

xp_status xp_set_warn(xp_config_set *set, const char *text) {
    for (int i = 0; text && i < set->n_warnings; i++) /* rules run again after an override */
        if (strcmp(set->warnings[i], text) == 0)
            return XP_OK;
    const char **grown = xp_arena_alloc(set->arena, (size_t)(set->n_warnings + 2) * sizeof *grown);
    if (!grown || !text)
        return fail_memory();
    for (int i = 0; i < set->n_warnings; i++)
        grown[i] = set->warnings[i];
    grown[set->n_warnings++] = text;
    set->warnings = grown;
    return XP_OK;
}

void xp_set_note_foreign(xp_config_set *set, const char *section, const char *key) {
    size_t start = set->foreign.length;
    xp_text_printf(&set->foreign, "%s%s.%s", set->n_foreign ? ", " : "", section, key);
    for (size_t i = start; i < set->foreign.length; i++) /* quoted keys may hold anything */
        if ((unsigned char)set->foreign.data[i] < 0x20)
            set->foreign.data[i] = ' ';
    set->n_foreign++;
}

bool xp_field_is_unset(const xp_config *config, const xp_field *field) {
    const char *at = (const char *)config + field->offset;
    switch (field->type) {
    case XP_FIELD_INT:
        return field->unset &&
               *(const int64_t *)(const void *)at == strtoll(field->initial, NULL, 10);
    case XP_FIELD_FLOAT:
        return field->unset && *(const double *)(const void *)at == strtod(field->initial, NULL);
    case XP_FIELD_BOOL:
        return false;
    case XP_FIELD_SWITCH:
        return !field->choices && *(const int64_t *)(const void *)at < 0;
    case XP_FIELD_LIST:
        return ((const xp_string_list *)(const void *)at)->n == 0;
    case XP_FIELD_SOURCES:
        return ((const xp_source_list *)(const void *)at)->n == 0;
    case XP_FIELD_STRING:
    case XP_FIELD_PATH:
    case XP_FIELD_CHOICE:
        break;
    }
    return *(const char *const *)(const void *)at == NULL;
}

static void add_float(double value, bool json, xp_text *text) {
    size_t start = text->length;
    xp_text_add_json_double(text, value);
    /* In TOML 1 is an integer; a float says so. */
    if (!json && !text->failed && !strpbrk(text->data + start, ".eEn"))
        xp_text_puts(text, ".0");
}

void xp_field_add_value(const xp_config *config, const xp_field *field, bool json, xp_text *text) {
    const void *at = (const char *)config + field->offset;
    const xp_string_list *list = at;
    switch (field->type) {
    case XP_FIELD_INT:
        xp_text_printf(text, "%" PRId64, *(const int64_t *)at);
        return;
    case XP_FIELD_FLOAT:
        add_float(*(const double *)at, json, text);
        return;
    case XP_FIELD_BOOL:
        xp_text_puts(text, *(const bool *)at ? "true" : "false");
        return;
    case XP_FIELD_SWITCH:
        xp_text_puts(text, *(const int64_t *)at < 0 ? "\"auto\""
                           : *(const int64_t *)at   ? "true"
                                                    : "false");
        return;
    case XP_FIELD_LIST:
        xp_text_puts(text, "[");
        for (int i = 0; i < list->n; i++) {
            xp_text_puts(text, i ? ", " : "");
            xp_text_add_json(text, list->items[i], strlen(list->items[i]));
        }
        xp_text_puts(text, "]");
        return;
    case XP_FIELD_SOURCES:
        xp_sources_add(at, json, text);
        return;
    case XP_FIELD_STRING:
    case XP_FIELD_PATH:
    case XP_FIELD_CHOICE:
        break;
    }
    const char *string = *(const char *const *)at;
    xp_text_add_json(text, string, strlen(string));
}
