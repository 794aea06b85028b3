/** Tables and arrays: storage, look-up in constant time, and TOML's rules about who may define and
 * extend what. */
#include "config/toml_reader.h"

#include <string.h>

enum { LINEAR_LIMIT = 8 }; /* entries up to which a scan is as good as a hash */

static uint64_t hash_bytes(const char *bytes, size_t n) {
    uint64_t hash = 0xcbf29ce484222325ULL; /* FNV-1a, then mixed: its low bits alone are weak */
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001b3ULL;
    hash ^= hash >> 32;
    hash *= 0x9E3779B97F4A7C15ULL;
    return hash ^ hash >> 29;
}

static bool same_key(const xp_toml_entry *entry, const char *key, size_t n) {
    return entry->key_bytes == n && memcmp(entry->key, key, n) == 0;
}

static void put_slot(xp_toml_table *table, size_t number) {
    const xp_toml_entry *entry = &table->entries[number];
    size_t at = hash_bytes(entry->key, entry->key_bytes) & (table->n_slots - 1);
    while (table->slots[at] != 0)
        at = (at + 1) & (table->n_slots - 1);
    table->slots[at] = (uint32_t)number + 1;
}

xp_toml_entry *xp_toml_table_lookup(const xp_toml_table *table, const char *key, size_t n_bytes) {
    if (!table->slots) {
        for (size_t i = 0; i < table->n; i++)
            if (same_key(&table->entries[i], key, n_bytes))
                return &table->entries[i];
        return NULL;
    }
    size_t at = hash_bytes(key, n_bytes) & (table->n_slots - 1);
    for (; table->slots[at] != 0; at = (at + 1) & (table->n_slots - 1)) {
        xp_toml_entry *entry = &table->entries[table->slots[at] - 1];
        if (same_key(entry, key, n_bytes))
            return entry;
    }
    return NULL;
}

xp_status xp_toml_table_create(xp_toml_reader *r, xp_toml_origin origin, int depth, int line,
                               xp_toml_table **table) {
    xp_toml_table *made = xp_arena_alloc(r->arena, sizeof *made);
    if (!made)
        return xp_toml_fail_memory(r);
    made->origin = origin;
    made->depth = depth;
    made->line = line;
    *table = made;
    return XP_OK;
}

/** Room for one more entry; memory doubles, so that the arena holds at most twice what is used. */
static xp_status grow_table(xp_toml_reader *r, xp_toml_table *table) {
    size_t capacity = table->capacity ? table->capacity * 2 : 4;
    xp_toml_entry *entries = xp_arena_alloc(r->arena, capacity * sizeof *entries);
    if (!entries)
        return xp_toml_fail_memory(r);
    if (table->n > 0)
        memcpy(entries, table->entries, table->n * sizeof *entries);
    table->entries = entries;
    table->capacity = capacity;
    if (capacity <= LINEAR_LIMIT)
        return XP_OK;
    table->n_slots = capacity * 2;
    table->slots = xp_arena_alloc(r->arena, table->n_slots * sizeof *table->slots);
    if (!table->slots)
        return xp_toml_fail_memory(r);
    for (size_t i = 0; i < table->n; i++)
        put_slot(table, i);
    return XP_OK;
}

xp_status xp_toml_table_add(xp_toml_reader *r, xp_toml_table *table, const xp_toml_key *key,
                            xp_toml_entry **entry) {
    if (table->n == table->capacity)
        XP_TRY(grow_table(r, table));
    xp_toml_entry *made = &table->entries[table->n];
    *made = (xp_toml_entry){
        .key = key->name, .key_bytes = key->n_bytes, .line = key->line, .offset = key->offset};
    table->n++;
    if (table->slots)
        put_slot(table, table->n - 1);
    *entry = made;
    return XP_OK;
}

xp_status xp_toml_array_push(xp_toml_reader *r, xp_toml_array *array, const xp_toml_value *value) {
    if (array->n == array->capacity) {
        size_t capacity = array->capacity ? array->capacity * 2 : 4;
        xp_toml_value *items = xp_arena_alloc(r->arena, capacity * sizeof *items);
        if (!items)
            return xp_toml_fail_memory(r);
        if (array->n > 0)
            memcpy(items, array->items, array->n * sizeof *items);
        array->items = items;
        array->capacity = capacity;
    }
    array->items[array->n++] = *value;
    return XP_OK;
}

static xp_status fail_key(const xp_toml_reader *r, const xp_toml_key *key, const char *why,
                          int line) {
    return xp_toml_fail(r, key->offset, key->line, "'%.*s' %s on line %d",
                        key->n_bytes < 64 ? (int)key->n_bytes : 64, key->name, why, line);
}

static xp_status add_table(xp_toml_reader *r, xp_toml_table *parent, const xp_toml_key *key,
                           xp_toml_origin origin, xp_toml_table **table) {
    if (parent->depth >= XP_TOML_MAX_DEPTH)
        return xp_toml_fail(r, key->offset, key->line, "nested deeper than %d levels",
                            XP_TOML_MAX_DEPTH);
    XP_TRY(xp_toml_table_create(r, origin, parent->depth + 1, key->line, table));
    xp_toml_entry *entry = NULL;
    XP_TRY(xp_toml_table_add(r, parent, key, &entry));
    entry->value = (xp_toml_value){
        .type = XP_TOML_TABLE, .line = key->line, .offset = key->offset, .as.table = *table};
    return XP_OK;
}

/* The tree is const for its readers; while it is read, these two give it back. */
static xp_toml_table *open_table(const xp_toml_value *value) {
    return (xp_toml_table *)value->as.table;
}
static xp_toml_array *open_array(const xp_toml_value *value) {
    return (xp_toml_array *)value->as.array;
}

/** One step of a header's path: into a table, into the last table of an array of tables, or a new
 * implicit table. */
static xp_status step_header(xp_toml_reader *r, xp_toml_table *parent, const xp_toml_key *key,
                             xp_toml_table **child) {
    xp_toml_entry *entry = xp_toml_table_lookup(parent, key->name, key->n_bytes);
    if (!entry)
        return add_table(r, parent, key, XP_TOML_IMPLICIT, child);
    if (entry->value.type == XP_TOML_ARRAY && entry->value.as.array->of_tables) {
        xp_toml_array *array = open_array(&entry->value);
        *child = open_table(&array->items[array->n - 1]);
        return XP_OK;
    }
    if (entry->value.type != XP_TOML_TABLE)
        return fail_key(r, key, "is no table: it was given a value", entry->line);
    if (entry->value.as.table->origin == XP_TOML_INLINE)
        return fail_key(r, key, "cannot be extended: it is the inline table", entry->line);
    *child = open_table(&entry->value);
    return XP_OK;
}

xp_status xp_toml_define_table(xp_toml_reader *r, const xp_toml_key *keys, int n_keys,
                               xp_toml_table **table) {
    xp_toml_table *parent = r->toml->root;
    for (int i = 0; i < n_keys - 1; i++)
        XP_TRY(step_header(r, parent, &keys[i], &parent));
    const xp_toml_key *key = &keys[n_keys - 1];
    xp_toml_entry *entry = xp_toml_table_lookup(parent, key->name, key->n_bytes);
    if (!entry)
        return add_table(r, parent, key, XP_TOML_HEADER, table);
    if (entry->value.type != XP_TOML_TABLE)
        return fail_key(r, key, "is already defined, and not as a table,", entry->line);
    xp_toml_table *known = open_table(&entry->value);
    if (known->origin != XP_TOML_IMPLICIT)
        return fail_key(r, key, "is already defined", known->line);
    known->origin = XP_TOML_HEADER;
    known->line = key->line;
    *table = known;
    return XP_OK;
}

xp_status xp_toml_append_table(xp_toml_reader *r, const xp_toml_key *keys, int n_keys,
                               xp_toml_table **table) {
    xp_toml_table *parent = r->toml->root;
    for (int i = 0; i < n_keys - 1; i++)
        XP_TRY(step_header(r, parent, &keys[i], &parent));
    const xp_toml_key *key = &keys[n_keys - 1];
    xp_toml_entry *entry = xp_toml_table_lookup(parent, key->name, key->n_bytes);
    if (parent->depth + 1 >= XP_TOML_MAX_DEPTH)
        return xp_toml_fail(r, key->offset, key->line, "nested deeper than %d levels",
                            XP_TOML_MAX_DEPTH);
    if (!entry) {
        xp_toml_array *array = xp_arena_alloc(r->arena, sizeof *array);
        if (!array)
            return xp_toml_fail_memory(r);
        array->of_tables = true;
        XP_TRY(xp_toml_table_add(r, parent, key, &entry));
        entry->value = (xp_toml_value){
            .type = XP_TOML_ARRAY, .line = key->line, .offset = key->offset, .as.array = array};
    }
    if (entry->value.type != XP_TOML_ARRAY || !entry->value.as.array->of_tables)
        return fail_key(r, key, "is already defined, and not by [[...]],", entry->line);
    xp_toml_array *array = open_array(&entry->value);
    XP_TRY(xp_toml_table_create(r, XP_TOML_HEADER, parent->depth + 2, key->line, table));
    xp_toml_value item = {
        .type = XP_TOML_TABLE, .line = key->line, .offset = key->offset, .as.table = *table};
    return xp_toml_array_push(r, array, &item);
}

xp_status xp_toml_open_dotted(xp_toml_reader *r, xp_toml_table *table, const xp_toml_key *keys,
                              int n_keys, xp_toml_table **target) {
    for (int i = 0; i < n_keys - 1; i++) {
        xp_toml_entry *entry = xp_toml_table_lookup(table, keys[i].name, keys[i].n_bytes);
        if (!entry) {
            XP_TRY(add_table(r, table, &keys[i], XP_TOML_DOTTED, &table));
            continue;
        }
        if (entry->value.type != XP_TOML_TABLE)
            return fail_key(r, &keys[i], "is no table: it was given a value", entry->line);
        xp_toml_table *known = open_table(&entry->value);
        if (known->origin == XP_TOML_INLINE)
            return fail_key(r, &keys[i], "cannot be extended: it is the inline table", entry->line);
        if (known->origin == XP_TOML_HEADER)
            return fail_key(r, &keys[i], "cannot be extended by a dotted key: it is the table",
                            known->line);
        known->origin = XP_TOML_DOTTED;
        table = known;
    }
    *target = table;
    return XP_OK;
}
