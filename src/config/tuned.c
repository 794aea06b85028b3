#include "config/tuned.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "config/set.h"
#include "core/file.h"

enum { MAX_BYTES = 1 << 20 };

static const char *const tuned_keys[] = {"transport", "num_sms"};
enum { N_KEYS = sizeof tuned_keys / sizeof tuned_keys[0] };

/* ---- the file ---------------------------------------------------------------------------- */

xp_status xp_config_tuned_path(const xp_config_set *set, char *path, size_t n_path, bool *named) {
    const char *file = set->config.deepep.tuned_file, *config = set->config.job.config_file;
    int n = 0;
    path[0] = '\0';
    *named = file && strcmp(file, "none") != 0;
    if (*named) {
        n = snprintf(path, n_path, "%s", file);
    } else if (!file && config && config[0]) {
        size_t stem = strlen(config);
        if (stem > 5 && strcmp(config + stem - 5, ".toml") == 0)
            stem -= 5;
        n = snprintf(path, n_path, "%.*s.tuned.toml", (int)stem, config);
    }
    return n >= 0 && (size_t)n < n_path ? XP_OK
                                        : xp_error(XP_ECONFIG, "deepep.tuned_file: path too long");
}

static xp_status bad(const xp_toml *toml, const char *path, int line, size_t offset,
                     const char *what) {
    return xp_error(XP_ECONFIG, "%s:%d:%d: %s", path, line, xp_toml_column(toml, offset), what);
}

static xp_status read_key(const xp_toml *toml, const xp_toml_entry *entry, xp_tuned *tuned) {
    const xp_toml_value *v = &entry->value;
    const bool is_text =
        v->type == XP_TOML_STRING && strlen(v->as.string.data) == v->as.string.n_bytes;
    const char *text = is_text ? v->as.string.data : "";
    if (strcmp(entry->key, "tuned_for") == 0) {
        if (!is_text || !text[0] || v->as.string.n_bytes >= XP_TUNED_FOR_MAX)
            return bad(toml, tuned->path, v->line, v->offset, "deepep.tuned_for is no such text");
        snprintf(tuned->tuned_for, sizeof tuned->tuned_for, "%s", text);
    } else if (strcmp(entry->key, "transport") == 0) {
        /* hierarchical rounds once more: other bits, so it is the user's to set */
        if (strcmp(text, "auto") != 0 && strcmp(text, "p2p") != 0 && strcmp(text, "a2a") != 0)
            return bad(toml, tuned->path, v->line, v->offset,
                       "deepep.transport must be one of auto|p2p|a2a in a tuned file");
        snprintf(tuned->transport, sizeof tuned->transport, "%s",
                 strcmp(text, "auto") == 0 ? "" : text);
        tuned->transport_line = v->line;
    } else if (strcmp(entry->key, "num_sms") == 0) {
        const xp_field *field = xp_field_find("deepep", "num_sms");
        if (v->type != XP_TOML_INTEGER || v->as.integer < 0 || (double)v->as.integer > field->max)
            return bad(toml, tuned->path, v->line, v->offset,
                       "deepep.num_sms must be a number of multiprocessors, 0 to 1024");
        tuned->num_sms = v->as.integer;
        tuned->num_sms_line = v->line;
    } else {
        char what[200];
        snprintf(what, sizeof what,
                 "a tuned file holds deepep.tuned_for, transport and num_sms, not deepep.%.80s",
                 entry->key);
        return bad(toml, tuned->path, entry->line, entry->offset, what);
    }
    return XP_OK;
}

/* The algorithms as one text; what each means is the ops' business. */
static xp_status read_gemms(const xp_toml *toml, const xp_toml_value *v, xp_tuned *tuned) {
    const size_t n = v->type == XP_TOML_ARRAY ? xp_toml_array_count(v->as.array) : 0;
    size_t length = 0;
    bool right = v->type == XP_TOML_ARRAY;
    for (size_t i = 0; right && i < n; i++) {
        const xp_toml_value *item = xp_toml_array_item(v->as.array, i);
        const size_t n_bytes = item->type == XP_TOML_STRING ? item->as.string.n_bytes : 0;
        right = n_bytes > 0 && strlen(item->as.string.data) == n_bytes &&
                !strchr(item->as.string.data, ',') && length + n_bytes + 2 < sizeof tuned->gemms;
        if (right)
            length += (size_t)snprintf(tuned->gemms + length, sizeof tuned->gemms - length, "%s%s",
                                       i > 0 ? "," : "", item->as.string.data);
    }
    tuned->gemm_line = v->line;
    return right ? XP_OK
                 : bad(toml, tuned->path, v->line, v->offset,
                       "gemm.algorithms must be a list of texts without commas");
}

static xp_status read_gemm_key(const xp_toml *toml, const xp_toml_entry *entry, xp_tuned *tuned) {
    const xp_toml_value *v = &entry->value;
    const size_t n_bytes = v->type == XP_TOML_STRING ? v->as.string.n_bytes : 0;
    if (strcmp(entry->key, "algorithms") == 0)
        return read_gemms(toml, v, tuned);
    if (strcmp(entry->key, "tuned_for") != 0)
        return bad(toml, tuned->path, entry->line, entry->offset,
                   "[gemm] of a tuned file holds tuned_for and algorithms");
    if (n_bytes == 0 || n_bytes >= XP_TUNED_FOR_MAX || strlen(v->as.string.data) != n_bytes)
        return bad(toml, tuned->path, v->line, v->offset, "gemm.tuned_for is no such text");
    snprintf(tuned->gemm_for, sizeof tuned->gemm_for, "%s", v->as.string.data);
    return XP_OK;
}

static xp_status read_document(const xp_toml *toml, xp_tuned *tuned) {
    const xp_toml_table *root = xp_toml_root(toml);
    for (size_t i = 0; i < xp_toml_table_count(root); i++) {
        const xp_toml_entry *section = xp_toml_table_entry(root, i);
        const bool is_gemm = strcmp(section->key, "gemm") == 0;
        if ((!is_gemm && strcmp(section->key, "deepep") != 0) ||
            section->value.type != XP_TOML_TABLE)
            return bad(toml, tuned->path, section->line, section->offset,
                       "a tuned file holds the sections [deepep] and [gemm]");
        const xp_toml_table *table = section->value.as.table;
        for (size_t k = 0; k < xp_toml_table_count(table); k++)
            XP_TRY(
                (is_gemm ? read_gemm_key : read_key)(toml, xp_toml_table_entry(table, k), tuned));
    }
    if (tuned->gemms[0] && !tuned->gemm_for[0])
        return xp_error(XP_ECONFIG, "%s: there is no gemm.tuned_for in it", tuned->path);
    return tuned->tuned_for[0]
               ? XP_OK
               : xp_error(XP_ECONFIG, "%s: there is no deepep.tuned_for in it", tuned->path);
}

xp_status xp_tuned_read(const char *path, xp_tuned *tuned) {
    char *text = NULL;
    size_t n_bytes = 0;
    xp_toml *toml = NULL;
    *tuned = (xp_tuned){0};
    if (strlen(path) >= sizeof tuned->path)
        return xp_error(XP_ECONFIG, "deepep.tuned_file: path too long");
    snprintf(tuned->path, sizeof tuned->path, "%s", path);
    XP_TRY(xp_file_read(path, MAX_BYTES, &text, &n_bytes));
    xp_status status = xp_toml_parse(path, text, n_bytes, &toml);
    if (status == XP_OK)
        status = read_document(toml, tuned);
    xp_toml_destroy(toml);
    free(text);
    return status;
}

/* ---- into the configuration -------------------------------------------------------------- */

static xp_status set_gemm(xp_config_set *set, const char *key, const char *value,
                          const xp_origin *origin) {
    const xp_assignment a = {
        .field = xp_field_find("gemm", key), .where = origin->name, .origin = *origin};
    return xp_set_text(set, &a, value);
}

xp_status xp_config_take_tuned_gemms(xp_config_set *set, const xp_tuned *tuned, bool *taken) {
    const xp_field *field = xp_field_find("gemm", "algorithms");
    const char *path = xp_arena_strdup(set->arena, tuned->path);
    const xp_origin origin = {XP_ORIGIN_FILE, path, tuned->gemm_line, 1};
    if (!path)
        return xp_error(XP_ENOMEM, "out of memory for the configuration");
    *taken = xp_set_origin(set, field)->kind == XP_ORIGIN_DEFAULT;
    if (!*taken)
        return XP_OK;
    XP_TRY(set_gemm(set, "algorithms", tuned->gemms, &origin));
    return set_gemm(set, "tuned_for", tuned->gemm_for, &origin);
}

const char *xp_config_own_gemm_tuned_for(const xp_config_set *set, char *where, size_t n_where) {
    const xp_origin *origin = xp_set_origin(set, xp_field_find("gemm", "tuned_for"));
    const char *text = set->config.gemm.tuned_for;
    if (!text || !text[0] || origin->kind != XP_ORIGIN_FILE)
        return NULL;
    snprintf(where, n_where, "%s:%d", origin->name, origin->line);
    return text;
}

xp_status xp_config_drop_tuned_gemms(xp_config_set *set) {
    const xp_origin none = {XP_ORIGIN_DEFAULT, NULL, 0, 0};
    if (xp_set_origin(set, xp_field_find("gemm", "algorithms"))->kind == XP_ORIGIN_FILE)
        XP_TRY(set_gemm(set, "algorithms", "", &none));
    return set_gemm(set, "tuned_for", "", &none);
}

static bool is_open(const xp_config_set *set, const xp_field *field) {
    const xp_origin *origin = xp_set_origin(set, field);
    if (origin->kind == XP_ORIGIN_DEFAULT)
        return true;
    if (origin->kind != XP_ORIGIN_FILE)
        return false;
    if (xp_field_is_unset(&set->config, field))
        return true;
    return field == xp_field_find("deepep", "transport") &&
           strcmp(set->config.deepep.transport, "auto") == 0;
}

static xp_status set_field(xp_config_set *set, const char *key, const char *value,
                           const xp_origin *origin) {
    const xp_assignment a = {
        .field = xp_field_find("deepep", key), .where = origin->name, .origin = *origin};
    return xp_set_text(set, &a, value);
}

xp_status xp_config_take_tuned(xp_config_set *set, const xp_tuned *tuned, int *n_taken) {
    char sms[24];
    const char *path = xp_arena_strdup(set->arena, tuned->path);
    if (!path)
        return xp_error(XP_ENOMEM, "out of memory for the configuration");
    snprintf(sms, sizeof sms, "%lld", (long long)tuned->num_sms);
    *n_taken = 0;
    if (tuned->transport[0] && is_open(set, xp_field_find("deepep", "transport"))) {
        XP_TRY(set_field(set, "transport", tuned->transport,
                         &(xp_origin){XP_ORIGIN_FILE, path, tuned->transport_line, 1}));
        ++*n_taken;
    }
    if (tuned->num_sms > 0 && is_open(set, xp_field_find("deepep", "num_sms"))) {
        XP_TRY(set_field(set, "num_sms", sms,
                         &(xp_origin){XP_ORIGIN_FILE, path, tuned->num_sms_line, 1}));
        ++*n_taken;
    }
    if (*n_taken == 0) /* the run has nothing that was tuned */
        return XP_OK;
    return set_field(set, "tuned_for", tuned->tuned_for, &(xp_origin){XP_ORIGIN_FILE, path, 1, 1});
}

const char *xp_config_own_tuned_for(const xp_config_set *set, char *where, size_t n_where) {
    const xp_origin *origin = xp_set_origin(set, xp_field_find("deepep", "tuned_for"));
    const char *text = set->config.deepep.tuned_for;
    if (!text || !text[0] || origin->kind != XP_ORIGIN_FILE)
        return NULL;
    snprintf(where, n_where, "%s:%d", origin->name, origin->line);
    return text;
}

static xp_status to_default(xp_config_set *set, const char *key) {
    const xp_field *field = xp_field_find("deepep", key);
    const xp_assignment a = {
        .field = field, .where = key, .origin = {XP_ORIGIN_DEFAULT, NULL, 0, 0}};
    return xp_set_text(set, &a, field->initial ? field->initial : "");
}

xp_status xp_config_drop_tuned(xp_config_set *set) {
    const xp_origin own = *xp_set_origin(set, xp_field_find("deepep", "tuned_for"));
    for (int i = 0; i < N_KEYS; i++) {
        const xp_origin *origin = xp_set_origin(set, xp_field_find("deepep", tuned_keys[i]));
        if (origin->kind == XP_ORIGIN_FILE && strcmp(origin->name, own.name) == 0)
            XP_TRY(to_default(set, tuned_keys[i]));
    }
    return to_default(set, "tuned_for");
}

/* ---- what a run says about it ------------------------------------------------------------ */

xp_status xp_config_set_tuned_note(xp_config_set *set, const char *text, bool warns) {
    const char *copy = xp_arena_strdup(set->arena, text);
    if (warns)
        return xp_set_warn(set, copy);
    set->tuned_note = copy;
    return copy ? XP_OK : xp_error(XP_ENOMEM, "out of memory for the configuration");
}

const char *xp_config_tuned_note(const xp_config_set *set) {
    return set->tuned_note;
}
