/** The TOML file: sections and keys to fields, with the nearest name for every wrong one. */
#include "config/set.h"

#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include "core/file.h"

enum { MAX_FILE_BYTES = 16 << 20 };

enum { MAX_FAULTS = 8 };

typedef struct file_reader {
    xp_config_set *set;
    const xp_toml *toml;
    const char *name; /* the arena's copy */
    xp_text *faults;  /* what is wrong, "; " between */
    int *n_faults;
} file_reader;

/* A wrong key does not hide the ones behind it: all are reported together. */
static xp_status note_fault(const file_reader *r, xp_status status) {
    if (status != XP_ECONFIG)
        return status;
    if (++*r->n_faults <= MAX_FAULTS)
        xp_text_printf(r->faults, "%s%s", *r->n_faults > 1 ? " | " : "", xp_last_error());
    return XP_OK;
}

static xp_status report_faults(const file_reader *r) {
    if (r->faults->failed)
        return xp_error(XP_ENOMEM, "out of memory for the configuration");
    if (*r->n_faults == 0)
        return XP_OK;
    if (*r->n_faults == 1)
        return xp_error(XP_ECONFIG, "%s", r->faults->data);
    char more[48] = "";
    if (*r->n_faults > MAX_FAULTS)
        snprintf(more, sizeof more, " | and %d more", *r->n_faults - MAX_FAULTS);
    return xp_error(XP_ECONFIG, "%s holds %d mistakes: %s%s", r->name, *r->n_faults,
                    r->faults->data, more);
}

static xp_status fail_at(const file_reader *r, int line, size_t offset, const char *what) {
    return xp_error(XP_ECONFIG, "%s:%d:%d: %s", r->name, line, xp_toml_column(r->toml, offset),
                    what);
}

static xp_status fail_unknown_key(const file_reader *r, const char *section,
                                  const xp_toml_entry *entry) {
    const xp_field *near = xp_field_nearest(section, entry->key);
    char what[400];
    if (near)
        snprintf(what, sizeof what, "unknown key %.80s.%.80s; did you mean %s.%s?", section,
                 entry->key, near->section, near->key);
    else
        snprintf(what, sizeof what, "unknown key %.80s.%.80s; `expar config --help` lists all keys",
                 section, entry->key);
    return fail_at(r, entry->line, entry->offset, what);
}

static xp_status fail_unknown_section(const file_reader *r, const xp_toml_entry *entry) {
    char what[400];
    const char *section = xp_field_nearest_section(entry->key);
    const xp_field *field =
        entry->value.type == XP_TOML_TABLE ? NULL : xp_field_nearest(NULL, entry->key);
    if (field)
        snprintf(what, sizeof what,
                 "key %.80s stands outside any section; did you mean %s under [%s]?", entry->key,
                 field->key, field->section);
    else if (section)
        snprintf(what, sizeof what, "unknown section [%.80s]; did you mean [%s]?", entry->key,
                 section);
    else
        snprintf(what, sizeof what,
                 "unknown section [%.80s]; `expar config --help` lists all sections", entry->key);
    return fail_at(r, entry->line, entry->offset, what);
}

/** Names every value below a foreign table; the depth is limited by the reader. */
static void note_foreign(const file_reader *r, const char *section, const char *prefix,
                         const xp_toml_entry *entry) {
    xp_text name = {0};
    xp_text_printf(&name, "%s%s%s", prefix, *prefix ? "." : "", entry->key);
    if (!name.failed && entry->value.type == XP_TOML_TABLE) {
        const xp_toml_table *table = entry->value.as.table;
        for (size_t i = 0; i < xp_toml_table_count(table); i++)
            note_foreign(r, section, name.data, xp_toml_table_entry(table, i));
    } else if (!name.failed) {
        xp_set_note_foreign(r->set, section, name.data);
    }
    xp_text_free(&name);
}

/** Two names of one field, both in this file, must agree. */
static xp_status check_second_name(const file_reader *r, const xp_toml_entry *entry,
                                   const xp_field *field, const xp_config *before,
                                   const xp_origin *origin) {
    if (origin->kind != XP_ORIGIN_FILE)
        return XP_OK;
    xp_text first = {0}, second = {0};
    if (!xp_field_is_unset(before, field))
        xp_field_add_value(before, field, false, &first);
    if (!xp_field_is_unset(&r->set->config, field))
        xp_field_add_value(&r->set->config, field, false, &second);
    bool same = first.length == second.length &&
                (first.length == 0 || memcmp(first.data, second.data, first.length) == 0);
    xp_text_free(&first);
    xp_text_free(&second);
    if (same)
        return XP_OK;
    char what[300];
    snprintf(what, sizeof what, "%s also sets %s.%s, which line %d gives another value", entry->key,
             field->section, field->key, origin->line);
    return fail_at(r, entry->line, entry->offset, what);
}

static xp_status set_key(const file_reader *r, const char *section, const xp_toml_entry *entry) {
    const xp_field *field = xp_field_find(section, entry->key);
    if (!field)
        field = xp_field_alias(section, entry->key);
    if (!field && xp_field_foreign(section, entry->key)) {
        note_foreign(r, section, "", entry);
        return XP_OK;
    }
    if (!field || strlen(entry->key) != entry->key_bytes)
        return fail_unknown_key(r, section, entry);
    if (field == xp_field_find("job", "config_file"))
        return fail_at(r, entry->line, entry->offset,
                       "job.config_file cannot be set in a file; give it on the command line");
    int column = xp_toml_column(r->toml, entry->value.offset);
    const char *where =
        xp_arena_printf(r->set->arena, "%s:%d:%d", r->name, entry->value.line, column);
    if (!where)
        return xp_error(XP_ENOMEM, "out of memory for the configuration");
    xp_config before = r->set->config;
    xp_origin origin = *xp_set_origin(r->set, field);
    xp_assignment a = {.field = field,
                       .where = where,
                       .origin = {XP_ORIGIN_FILE, r->name, entry->value.line, column}};
    XP_TRY(xp_set_toml(r->set, &a, &entry->value));
    return check_second_name(r, entry, field, &before, &origin);
}

static bool known_section(const char *name) {
    for (int i = 0; xp_field_section(i); i++)
        if (strcmp(xp_field_section(i), name) == 0)
            return true;
    return false;
}

static xp_status set_section(const file_reader *r, const xp_toml_entry *section) {
    bool known = known_section(section->key) && strlen(section->key) == section->key_bytes;
    if (!known && xp_field_foreign(section->key, NULL)) {
        if (section->value.type != XP_TOML_TABLE) {
            xp_set_note_foreign(r->set, section->key, "*");
            return XP_OK;
        }
    } else if (!known) {
        return fail_unknown_section(r, section);
    } else if (section->value.type != XP_TOML_TABLE) {
        char what[200];
        snprintf(what, sizeof what, "[%s] must be a section, not %s", section->key,
                 xp_toml_type_text(section->value.type));
        return fail_at(r, section->line, section->offset, what);
    }
    const xp_toml_table *table = section->value.as.table;
    for (size_t i = 0; i < xp_toml_table_count(table); i++) {
        const xp_toml_entry *entry = xp_toml_table_entry(table, i);
        if (known)
            XP_TRY(note_fault(r, set_key(r, section->key, entry)));
        else
            note_foreign(r, section->key, "", entry);
    }
    return XP_OK;
}

static xp_status set_document(const file_reader *r) {
    const xp_toml_table *root = xp_toml_root(r->toml);
    for (size_t i = 0; i < xp_toml_table_count(root); i++)
        XP_TRY(note_fault(r, set_section(r, xp_toml_table_entry(root, i))));
    return report_faults(r);
}

xp_status xp_set_toml_text(xp_config_set *set, const char *name, const char *text, size_t n_bytes) {
    xp_toml *toml = NULL;
    xp_text faults = {0};
    int n_faults = 0;
    XP_TRY(xp_toml_parse(name, text, n_bytes, &toml));
    file_reader reader = {.set = set,
                          .toml = toml,
                          .name = xp_arena_strdup(set->arena, name),
                          .faults = &faults,
                          .n_faults = &n_faults};
    const xp_status status = reader.name
                                 ? set_document(&reader)
                                 : xp_error(XP_ENOMEM, "out of memory for the configuration");
    xp_text_free(&faults);
    xp_toml_destroy(toml);
    return status;
}

/* The error that there is no such file, and which one may be meant. */
static xp_status fail_no_file(xp_status status, const char *path) {
    char what[600];
    snprintf(what, sizeof what, "%s", xp_last_error());
    char *near = status == XP_ENOENT ? xp_config_file_nearest(path) : NULL;
    status =
        near ? xp_error(status, "%s; did you mean %s?", what, near) : xp_error(status, "%s", what);
    free(near);
    return status;
}

xp_status xp_set_file(xp_config_set *set, const char *path) {
    char *text = NULL;
    size_t n_bytes = 0;
    xp_status status = xp_file_read(path, MAX_FILE_BYTES, &text, &n_bytes);
    if (status != XP_OK)
        return fail_no_file(status, path);
    status = xp_set_toml_text(set, path, text, n_bytes);
    free(text);
    return status;
}
