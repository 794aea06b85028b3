/* Reading and writing a hardware description: one table of its keys. */
#include "predict/hardware.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "config/toml.h"
#include "core/file.h"
#include "predict/hardware_files.h"

#define MAX_FILE_BYTES ((size_t)1 << 20)
#define MAX_LIKE       4 /* descriptions that lean on another */

typedef struct key {
    const char *section, *name;
    size_t offset;
    double low, high;
} key;

#define KEY(section, name, low, high)                                                              \
    { #section, #name, offsetof(xp_hardware, section.name), low, high }
/* Above 1 where a kernel of our own beats the library that the limit was measured with. */
#define SHARE(name) KEY(reached, name, 0.001, 20)

static const key keys[] = {
    KEY(limits, memory_gib, 0.01, 1e6),
    KEY(limits, reserved_gib, 0, 1e5),
    KEY(limits, tflops, 1e-6, 1e6),
    KEY(limits, memory_tbps, 1e-6, 1e4),
    KEY(limits, link_gbps, 1e-3, 1e6),
    KEY(limits, units, 1, 1e5),
    KEY(measured, gemm_tflops, 1e-6, 1e6),
    KEY(measured, copy_tbps, 1e-6, 1e4),
    KEY(measured, link_gbps, 1e-3, 1e6),
    KEY(network, gpus_per_node, 1, 1024),
    KEY(network, gbps, 1e-3, 1e6),
    KEY(network, latency_us, 0, 1e6),
    SHARE(dense),
    KEY(reached, dense_depth, 0, 1e5),
    SHARE(attention_forward),
    SHARE(attention_backward),
    KEY(reached, attention_length, 0, 1e5),
    SHARE(grouped),
    KEY(reached, grouped_depth, 0, 1e5),
    SHARE(grouped_2048_rows),
    SHARE(grouped_256_rows),
    SHARE(wgrad),
    KEY(reached, adding_16384_rows, 1, 100),
    KEY(reached, adding_2048_rows, 1, 100),
    KEY(reached, adding_256_rows, 1, 100),
    SHARE(memory),
    SHARE(link),
    SHARE(link_backward),
    SHARE(link_alone),
    SHARE(all_to_all),
    SHARE(collectives),
    SHARE(network),
    KEY(reached, collectives_cost, 0, 100),
    KEY(reached, overlap_hides, 0, 1),
    KEY(costs, kernel_us, 0, 1e6),
    KEY(costs, launch_us, 0, 1e6),
    KEY(costs, graph_kernel_us, 0, 1e6),
    KEY(costs, plan_us, 0, 1e6),
    KEY(costs, plan_assignment_ns, 0, 1e6),
    KEY(costs, rendezvous_us, 0, 1e6),
};
enum { N_KEYS = sizeof keys / sizeof keys[0] };
static const char *const sections[] = {"limits", "measured", "network", "reached", "costs"};
enum { N_SECTIONS = sizeof sections / sizeof sections[0] };
static const char *const texts[] = {"name", "kind", "model", "like"};
enum { N_TEXTS = sizeof texts / sizeof texts[0] };

static double *value_of(xp_hardware *h, const key *k) {
    return (double *)((char *)h + k->offset);
}

static bool is_optional(const key *k) {
    return strcmp(k->section, "measured") == 0;
}

typedef struct reader {
    const char *path;
    xp_hardware *out;
} reader;

/* The nearest of the names that are valid here; section NULL: of the top level. */
static xp_status unknown(const reader *r, const char *section, const xp_toml_entry *entry) {
    const char *best = NULL;
    int distance = 1000;
    const int n = section ? N_KEYS : N_TEXTS + N_SECTIONS;
    for (int i = 0; i < n; i++) {
        const char *name = section ? keys[i].name : i < N_TEXTS ? texts[i] : sections[i - N_TEXTS];
        if (section && strcmp(keys[i].section, section) != 0)
            continue;
        const int d = xp_edit_distance(entry->key, name);
        if (d < distance) {
            distance = d;
            best = name;
        }
    }
    return xp_error(XP_ECONFIG, "%s:%d: unknown key \"%s\"%s%s; did you mean \"%s\"?", r->path,
                    entry->line, entry->key, section ? " in section " : "", section ? section : "",
                    best ? best : "name");
}

static xp_status read_number(const reader *r, const key *k, const xp_toml_entry *entry) {
    const xp_toml_value *v = &entry->value;
    if (v->type != XP_TOML_FLOAT && v->type != XP_TOML_INTEGER)
        return xp_error(XP_ECONFIG, "%s:%d: %s.%s must be a number, not %s", r->path, v->line,
                        k->section, k->name, xp_toml_type_text(v->type));
    const double value = v->type == XP_TOML_FLOAT ? v->as.real : (double)v->as.integer;
    if (!(value >= k->low && value <= k->high))
        return xp_error(XP_ECONFIG, "%s:%d: %s.%s = %g: must be between %g and %g", r->path,
                        v->line, k->section, k->name, value, k->low, k->high);
    *value_of(r->out, k) = value;
    return XP_OK;
}

static xp_status read_section(const reader *r, const char *section, const xp_toml_table *table) {
    const xp_toml_entry *entry;
    for (size_t i = 0; (entry = xp_toml_table_entry(table, i)) != NULL; i++) {
        const key *found = NULL;
        for (int j = 0; j < N_KEYS && !found; j++)
            if (strcmp(keys[j].section, section) == 0 && strcmp(keys[j].name, entry->key) == 0)
                found = &keys[j];
        if (!found)
            return unknown(r, section, entry);
        XP_TRY(read_number(r, found, entry));
    }
    r->out->has_own_shares |= strcmp(section, "reached") == 0;
    return XP_OK;
}

static xp_status read_text(const reader *r, const xp_toml_entry *entry) {
    const xp_toml_value *v = &entry->value;
    const bool is_kind = strcmp(entry->key, "kind") == 0;
    if (v->type != XP_TOML_STRING || v->as.string.n_bytes >= XP_HARDWARE_NAME)
        return xp_error(XP_ECONFIG, "%s:%d: %s must be a string of less than %d characters",
                        r->path, v->line, entry->key, XP_HARDWARE_NAME);
    const char *text = v->as.string.data;
    if (is_kind && strcmp(text, "cpu") != 0 && strcmp(text, "gpu") != 0)
        return xp_error(XP_ECONFIG, "%s:%d: kind = \"%s\": \"gpu\" or \"cpu\"", r->path, v->line,
                        text);
    if (is_kind) {
        r->out->is_cpu = strcmp(text, "cpu") == 0;
        return XP_OK;
    }
    char *out = strcmp(entry->key, "name") == 0    ? r->out->name
                : strcmp(entry->key, "model") == 0 ? r->out->model
                                                   : r->out->like;
    snprintf(out, XP_HARDWARE_NAME, "%s", text);
    return XP_OK;
}

static bool listed(const char *const *names, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

static xp_status read_root(const reader *r, const xp_toml_table *root) {
    const xp_toml_entry *entry;
    for (size_t i = 0; (entry = xp_toml_table_entry(root, i)) != NULL; i++) {
        if (listed(texts, N_TEXTS, entry->key))
            XP_TRY(read_text(r, entry));
        else if (listed(sections, N_SECTIONS, entry->key) && entry->value.type == XP_TOML_TABLE)
            XP_TRY(read_section(r, entry->key, entry->value.as.table));
        else
            return unknown(r, NULL, entry);
    }
    return XP_OK;
}

static xp_status read_file(const char *path, xp_hardware *out) {
    const reader r = {.path = path, .out = out};
    char *text = NULL;
    size_t n_bytes = 0;
    xp_toml *toml = NULL;
    XP_TRY(xp_file_read(path, MAX_FILE_BYTES, &text, &n_bytes));
    memset(out, 0, sizeof *out);
    for (int i = 0; i < N_KEYS; i++)
        *value_of(out, &keys[i]) = is_optional(&keys[i]) ? 0 : NAN;
    xp_status status = xp_toml_parse(path, text, n_bytes, &toml);
    if (status == XP_OK)
        status = read_root(&r, xp_toml_root(toml));
    if (status == XP_OK && out->name[0] == '\0')
        status = xp_error(XP_ECONFIG, "%s: `name` is missing", path);
    xp_toml_destroy(toml);
    free(text);
    return status;
}

/* What the file leaves out comes from the one it names. */
static xp_status lean_on(const char *path, int depth, xp_hardware *h) {
    xp_hardware base;
    char other[4096];
    if (depth == MAX_LIKE)
        return xp_error(XP_ECONFIG, "%s: like = \"%s\": more than %d files lean on each other",
                        path, h->like, MAX_LIKE);
    XP_TRY(xp_hardware_path(h->like, other, sizeof other));
    XP_TRY(read_file(other, &base));
    if (base.like[0] != '\0')
        XP_TRY(lean_on(other, depth + 1, &base));
    for (int i = 0; i < N_KEYS; i++)
        if (isnan(*value_of(h, &keys[i])))
            *value_of(h, &keys[i]) = *value_of(&base, &keys[i]);
    return XP_OK;
}

xp_status xp_hardware_read(const char *name, xp_hardware *hardware) {
    char path[4096];
    xp_hardware made;
    XP_TRY(xp_hardware_path(name, path, sizeof path));
    XP_TRY(read_file(path, &made));
    if (made.like[0] != '\0')
        XP_TRY(lean_on(path, 0, &made));
    for (int i = 0; i < N_KEYS; i++)
        if (isnan(*value_of(&made, &keys[i])))
            return xp_error(XP_ECONFIG,
                            "%s: %s.%s is missing: give it, or like = \"NAME\" of a description "
                            "that has it",
                            path, keys[i].section, keys[i].name);
    *hardware = made;
    return XP_OK;
}

void xp_hardware_add_toml(const xp_hardware *hardware, xp_text *text) {
    xp_hardware copy = *hardware;
    xp_text_printf(text, "name = \"%s\"\nkind = \"%s\"\n", copy.name, copy.is_cpu ? "cpu" : "gpu");
    if (copy.model[0] != '\0')
        xp_text_printf(text, "model = \"%s\"\n", copy.model);
    for (int s = 0; s < N_SECTIONS; s++) {
        xp_text_printf(text, "\n[%s]\n", sections[s]);
        for (int i = 0; i < N_KEYS; i++)
            if (strcmp(keys[i].section, sections[s]) == 0 &&
                (!is_optional(&keys[i]) || *value_of(&copy, &keys[i]) > 0))
                xp_text_printf(text, "%s = %.5g\n", keys[i].name, *value_of(&copy, &keys[i]));
    }
}
