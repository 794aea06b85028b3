/**
 * TOML 1.0 reader: complete and strict. Text in, a read-only tree out; every error is
 * "name:line:column: what".
 *
 * Columns count code points from 1. Tables keep the order of the file. Reading is linear in the
 * size of the text, and nesting is limited to XP_TOML_MAX_DEPTH, so that no input overflows the
 * stack of the reader or of a walk over the tree.
 */
#ifndef XP_CONFIG_TOML_H
#define XP_CONFIG_TOML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/text.h"

#define XP_TOML_MAX_DEPTH 256
#define XP_TOML_MAX_BYTES ((size_t)1 << 30) /* lines and columns are ints */

typedef enum xp_toml_type {
    XP_TOML_STRING = 0,
    XP_TOML_INTEGER,
    XP_TOML_FLOAT,
    XP_TOML_BOOL,
    XP_TOML_DATETIME,       /* with an offset */
    XP_TOML_DATETIME_LOCAL, /* no offset */
    XP_TOML_DATE_LOCAL,
    XP_TOML_TIME_LOCAL,
    XP_TOML_ARRAY,
    XP_TOML_TABLE,
    XP_TOML_N_TYPES
} xp_toml_type;

typedef struct xp_toml xp_toml;
typedef struct xp_toml_table xp_toml_table;
typedef struct xp_toml_array xp_toml_array;

typedef struct xp_toml_value {
    xp_toml_type type;
    int line;      /* where the value starts, from 1 */
    size_t offset; /* the same place, in bytes from the start of the text */
    union {
        struct {
            const char *data; /* NUL-terminated; may hold NUL bytes of its own */
            size_t n_bytes;
        } string; /* XP_TOML_STRING, and the dates and times in RFC 3339 form */
        int64_t integer;
        double real;
        bool boolean;
        const xp_toml_array *array;
        const xp_toml_table *table;
    } as;
} xp_toml_value;

typedef struct xp_toml_entry {
    const char *key; /* NUL-terminated; may hold NUL bytes of its own */
    size_t key_bytes;
    int line; /* where the key stands */
    size_t offset;
    xp_toml_value value;
} xp_toml_entry;

/**
 * Read a document.
 * @param name  stands in errors: the file's path, "<stdin>"
 * @param text  [n_bytes] UTF-8; borrowed until xp_toml_destroy(). A byte order mark at the front is
 * skipped
 * @param[out] toml  set only on success
 * @return XP_OK; XP_ECONFIG with name:line:column; XP_ENOMEM
 */
XP_NODISCARD xp_status xp_toml_parse(const char *name, const char *text, size_t n_bytes,
                                     xp_toml **toml);
void xp_toml_destroy(xp_toml *toml);

const xp_toml_table *xp_toml_root(const xp_toml *toml);
size_t xp_toml_table_count(const xp_toml_table *table);
/** The i-th entry in file order, NULL past the last. */
const xp_toml_entry *xp_toml_table_entry(const xp_toml_table *table, size_t i);
size_t xp_toml_array_count(const xp_toml_array *array);
/** The i-th element, NULL past the last. */
const xp_toml_value *xp_toml_array_item(const xp_toml_array *array, size_t i);

/** "a string", "an integer", ...: for messages. Static storage. */
const char *xp_toml_type_text(xp_toml_type type);
/** The column, from 1, of a byte of the text; walks back to the start of its line. */
int xp_toml_column(const xp_toml *toml, size_t offset);

/** The tagged JSON of the public toml-test suite, one line with a newline. Check text->failed for
 * memory. */
void xp_toml_add_json(const xp_toml *toml, xp_text *text);

#endif
