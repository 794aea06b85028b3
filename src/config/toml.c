/** The document: key/value lines, headers, arrays, inline tables; and the tree's readers. */
#include "config/toml_reader.h"

#include <stdlib.h>
#include <string.h>

static bool is_bare(int byte) {
    return (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') ||
           (byte >= 'A' && byte <= 'Z') || byte == '_' || byte == '-';
}

static xp_status read_key(xp_toml_reader *r, xp_toml_key *key) {
    *key = (xp_toml_key){.offset = r->at, .line = r->line};
    int byte = xp_toml_peek(r, 0);
    if (byte == '"' || byte == '\'')
        return xp_toml_read_string(r, false, &key->name, &key->n_bytes);
    size_t n = 0;
    while (is_bare(xp_toml_peek(r, n)))
        n++;
    if (n == 0)
        return xp_toml_fail_expected(r, "a key");
    key->name = xp_arena_strndup(r->arena, r->text + r->at, n);
    if (!key->name)
        return xp_toml_fail_memory(r);
    key->n_bytes = n;
    r->at += n;
    return XP_OK;
}

xp_status xp_toml_read_keys(xp_toml_reader *r, xp_toml_key **keys, int *n_keys) {
    xp_toml_key parts[XP_TOML_MAX_DEPTH];
    int n = 0;
    for (;;) {
        if (n == XP_TOML_MAX_DEPTH)
            return xp_toml_fail(r, r->at, r->line, "nested deeper than %d levels",
                                XP_TOML_MAX_DEPTH);
        XP_TRY(read_key(r, &parts[n]));
        n++;
        xp_toml_skip_blanks(r);
        if (xp_toml_peek(r, 0) != '.')
            break;
        r->at++;
        xp_toml_skip_blanks(r);
    }
    *keys = xp_arena_alloc(r->arena, (size_t)n * sizeof **keys);
    if (!*keys)
        return xp_toml_fail_memory(r);
    memcpy(*keys, parts, (size_t)n * sizeof **keys);
    *n_keys = n;
    return XP_OK;
}

xp_status xp_toml_read_assignment(xp_toml_reader *r, xp_toml_table *table) {
    xp_toml_key *keys = NULL;
    int n_keys = 0;
    XP_TRY(xp_toml_read_keys(r, &keys, &n_keys));
    if (xp_toml_peek(r, 0) != '=')
        return xp_toml_fail_expected(r, "'=' after the key");
    r->at++;
    xp_toml_skip_blanks(r);
    xp_toml_table *target = NULL;
    XP_TRY(xp_toml_open_dotted(r, table, keys, n_keys, &target));
    const xp_toml_key *key = &keys[n_keys - 1];
    const xp_toml_entry *known = xp_toml_table_lookup(target, key->name, key->n_bytes);
    if (known)
        return xp_toml_fail(r, key->offset, key->line, "'%.*s' was already given on line %d",
                            key->n_bytes < 64 ? (int)key->n_bytes : 64, key->name, known->line);
    xp_toml_value value = {.type = XP_TOML_STRING};
    XP_TRY(xp_toml_read_value(r, target->depth, &value));
    xp_toml_entry *entry = NULL;
    XP_TRY(xp_toml_table_add(r, target, key, &entry));
    entry->value = value;
    return XP_OK;
}

static xp_status read_array(xp_toml_reader *r, int depth, xp_toml_value *value) {
    xp_toml_array *array = xp_arena_alloc(r->arena, sizeof *array);
    if (!array)
        return xp_toml_fail_memory(r);
    r->at++;
    for (;;) {
        XP_TRY(xp_toml_skip_lines(r));
        if (xp_toml_peek(r, 0) == ']')
            break;
        xp_toml_value item = {.type = XP_TOML_STRING};
        XP_TRY(xp_toml_read_value(r, depth, &item));
        XP_TRY(xp_toml_array_push(r, array, &item));
        XP_TRY(xp_toml_skip_lines(r));
        if (xp_toml_peek(r, 0) == ']')
            break;
        if (xp_toml_peek(r, 0) != ',')
            return xp_toml_fail_expected(r, "',' or ']' in the array");
        r->at++;
    }
    r->at++;
    value->type = XP_TOML_ARRAY;
    value->as.array = array;
    return XP_OK;
}

static xp_status read_inline_table(xp_toml_reader *r, int depth, xp_toml_value *value) {
    xp_toml_table *table = NULL;
    /* Open to its own dotted keys while it is read, closed afterwards. */
    XP_TRY(xp_toml_table_create(r, XP_TOML_DOTTED, depth, r->line, &table));
    r->at++;
    xp_toml_skip_blanks(r);
    if (xp_toml_peek(r, 0) != '}') {
        for (;;) {
            XP_TRY(xp_toml_read_assignment(r, table));
            xp_toml_skip_blanks(r);
            if (xp_toml_peek(r, 0) == '}')
                break;
            if (xp_toml_peek(r, 0) != ',')
                return xp_toml_fail_expected(r, "',' or '}' in the inline table");
            r->at++;
            xp_toml_skip_blanks(r);
        }
    }
    r->at++;
    table->origin = XP_TOML_INLINE;
    value->type = XP_TOML_TABLE;
    value->as.table = table;
    return XP_OK;
}

/** True when the word stands at the cursor and ends there. */
static bool at_word(const xp_toml_reader *r, const char *word) {
    size_t n = strlen(word);
    return r->n_bytes - r->at >= n && memcmp(r->text + r->at, word, n) == 0 &&
           !is_bare(xp_toml_peek(r, n));
}

xp_status xp_toml_read_value(xp_toml_reader *r, int depth, xp_toml_value *value) {
    value->line = r->line;
    value->offset = r->at;
    int byte = xp_toml_peek(r, 0);
    if ((byte == '[' || byte == '{') && depth >= XP_TOML_MAX_DEPTH)
        return xp_toml_fail(r, r->at, r->line, "nested deeper than %d levels", XP_TOML_MAX_DEPTH);
    if (byte == '[')
        return read_array(r, depth + 1, value);
    if (byte == '{')
        return read_inline_table(r, depth + 1, value);
    if (byte == '"' || byte == '\'') {
        value->type = XP_TOML_STRING;
        return xp_toml_read_string(r, true, &value->as.string.data, &value->as.string.n_bytes);
    }
    if (at_word(r, "true") || at_word(r, "false")) {
        value->type = XP_TOML_BOOL;
        value->as.boolean = byte == 't';
        r->at += byte == 't' ? 4 : 5;
        return XP_OK;
    }
    return xp_toml_read_number(r, value);
}

/** [a.b] or [[a.b]]; the cursor stands on the bracket. */
static xp_status read_header(xp_toml_reader *r, xp_toml_table **table) {
    bool of_array = xp_toml_peek(r, 1) == '[';
    r->at += of_array ? 2 : 1;
    xp_toml_skip_blanks(r);
    xp_toml_key *keys = NULL;
    int n_keys = 0;
    XP_TRY(xp_toml_read_keys(r, &keys, &n_keys));
    if (xp_toml_peek(r, 0) != ']')
        return xp_toml_fail_expected(r, "']' after the table's name");
    r->at++;
    if (!of_array)
        return xp_toml_define_table(r, keys, n_keys, table);
    if (xp_toml_peek(r, 0) != ']')
        return xp_toml_fail_expected(r, "']]' after the name of the array of tables");
    r->at++;
    return xp_toml_append_table(r, keys, n_keys, table);
}

static xp_status read_document(xp_toml_reader *r) {
    XP_TRY(xp_toml_table_create(r, XP_TOML_HEADER, 0, 1, &r->toml->root));
    xp_toml_table *table = r->toml->root;
    for (;;) {
        XP_TRY(xp_toml_skip_lines(r));
        int byte = xp_toml_peek(r, 0);
        if (byte < 0)
            return XP_OK;
        if (byte == '[')
            XP_TRY(read_header(r, &table));
        else
            XP_TRY(xp_toml_read_assignment(r, table));
        xp_toml_skip_blanks(r);
        XP_TRY(xp_toml_skip_comment(r));
        if (xp_toml_peek(r, 0) >= 0 && !xp_toml_skip_newline(r))
            return xp_toml_fail_expected(r, "the end of the line");
    }
}

/** The whole text must be UTF-8; the place of the first bad byte is worth a pass of its own. */
static xp_status check_utf8(xp_toml_reader *r) {
    size_t valid = xp_utf8_valid_prefix(r->text, r->n_bytes);
    if (valid == r->n_bytes)
        return XP_OK;
    int line = 1;
    for (size_t i = 0; i < valid; i++)
        line += r->text[i] == '\n';
    return xp_toml_fail(r, valid, line, "byte 0x%02x is not valid UTF-8",
                        (unsigned)(unsigned char)r->text[valid]);
}

xp_status xp_toml_parse(const char *name, const char *text, size_t n_bytes, xp_toml **toml) {
    if (n_bytes > XP_TOML_MAX_BYTES)
        return xp_error(XP_ECONFIG, "%s:1:1: larger than 1 GiB", name);
    xp_toml *made = calloc(1, sizeof *made);
    if (!made)
        return xp_error(XP_ENOMEM, "%s: out of memory while reading TOML", name);
    xp_status status = xp_arena_create(&made->arena);
    if (status != XP_OK) {
        free(made);
        return status;
    }
    bool mark = n_bytes >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0;
    made->text = mark ? text + 3 : text;
    made->n_bytes = mark ? n_bytes - 3 : n_bytes;
    made->name = xp_arena_strdup(made->arena, name);
    xp_toml_reader reader = {.toml = made,
                             .arena = made->arena,
                             .text = made->text,
                             .n_bytes = made->n_bytes,
                             .line = 1};
    status = made->name ? check_utf8(&reader) : xp_error(XP_ENOMEM, "out of memory for %s", name);
    if (status == XP_OK)
        status = read_document(&reader);
    xp_text_free(&reader.scratch);
    if (status != XP_OK) {
        xp_toml_destroy(made);
        return status;
    }
    *toml = made;
    return XP_OK;
}

void xp_toml_destroy(xp_toml *toml) {
    if (!toml)
        return;
    xp_arena_destroy(toml->arena);
    free(toml);
}

const xp_toml_table *xp_toml_root(const xp_toml *toml) {
    return toml->root;
}

size_t xp_toml_table_count(const xp_toml_table *table) {
    return table->n;
}

const xp_toml_entry *xp_toml_table_entry(const xp_toml_table *table, size_t i) {
    return i < table->n ? &table->entries[i] : NULL;
}

size_t xp_toml_array_count(const xp_toml_array *array) {
    return array->n;
}

const xp_toml_value *xp_toml_array_item(const xp_toml_array *array, size_t i) {
    return i < array->n ? &array->items[i] : NULL;
}

const char *xp_toml_type_text(xp_toml_type type) {
    static const char *const texts[XP_TOML_N_TYPES] = {
        "a string",        "an integer",   "a float", "a boolean", "a date and time",
        "a date and time", "a local date", "a time",  "an array",  "a table"};
    return (unsigned)type < XP_TOML_N_TYPES ? texts[type] : "?";
}
