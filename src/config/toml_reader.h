/** Inside the TOML reader: the cursor and the pieces that its files share. Not for anybody else. */
#ifndef XP_CONFIG_TOML_READER_H
#define XP_CONFIG_TOML_READER_H

#include "config/toml.h"
#include "core/arena.h"

/** How a table came to be decides who may still add to it. */
typedef enum xp_toml_origin {
    XP_TOML_IMPLICIT = 0, /* [a.b] made a: a header may define it once, headers may add tables */
    XP_TOML_HEADER,       /* [a]: headers may add tables, dotted keys of other tables may not */
    XP_TOML_DOTTED,       /* a.b = 1 made a: dotted keys may add, a header may not define it */
    XP_TOML_INLINE,       /* { }: closed */
} xp_toml_origin;

struct xp_toml_table {
    xp_toml_entry *entries;
    size_t n, capacity;
    uint32_t *slots; /* entry number + 1 by hash, once there are many entries; 0 = free */
    size_t n_slots;
    xp_toml_origin origin;
    int depth; /* the root has 0 */
    int line;  /* of the definition, for messages */
};

struct xp_toml_array {
    xp_toml_value *items;
    size_t n, capacity;
    bool of_tables; /* made by [[name]], and so open to more of them */
};

struct xp_toml {
    xp_arena *arena; /* the tree */
    const char *name;
    const char *text; /* borrowed */
    size_t n_bytes;
    xp_toml_table *root;
};

typedef struct xp_toml_reader {
    xp_toml *toml;
    xp_arena *arena;
    const char *text;
    size_t n_bytes, at;
    int line;        /* of `at`, from 1 */
    xp_text scratch; /* the string or number at hand, decoded */
} xp_toml_reader;

/** One part of a dotted key. */
typedef struct xp_toml_key {
    const char *name;
    size_t n_bytes;
    size_t offset;
    int line;
} xp_toml_key;

/** XP_ECONFIG with "name:line:column: " in front; `offset` must lie in line `line`. */
XP_NODISCARD xp_status xp_toml_fail(const xp_toml_reader *reader, size_t offset, int line,
                                    const char *format, ...) XP_PRINTF(4, 5);
/** The same at the cursor: "expected <what>, found <the character there>". */
XP_NODISCARD xp_status xp_toml_fail_expected(const xp_toml_reader *reader, const char *what);
XP_NODISCARD xp_status xp_toml_fail_memory(const xp_toml_reader *reader);

/** The byte at the cursor + ahead, or -1 past the end. */
int xp_toml_peek(const xp_toml_reader *reader, size_t ahead);
void xp_toml_skip_blanks(xp_toml_reader *reader);
/** A newline (LF or CRLF) at the cursor: skip it and count the line. False when there is none. */
bool xp_toml_skip_newline(xp_toml_reader *reader);
/** A comment at the cursor, up to its newline; nothing when there is none. */
XP_NODISCARD xp_status xp_toml_skip_comment(xp_toml_reader *reader);
/** Blanks, comments and newlines, any number. */
XP_NODISCARD xp_status xp_toml_skip_lines(xp_toml_reader *reader);
/** True for the control characters that TOML forbids in comments and strings (all but tab). */
bool xp_toml_is_control(int byte);

/** A string of any of the four kinds; the cursor stands on its first quote. Bytes belong to the
 * arena. */
XP_NODISCARD xp_status xp_toml_read_string(xp_toml_reader *reader, bool multi_line,
                                           const char **data, size_t *n_bytes);
/** A number or a date or time; the cursor stands on its first character. */
XP_NODISCARD xp_status xp_toml_read_number(xp_toml_reader *reader, xp_toml_value *value);
/** True when the characters at the cursor can only be a date or a time. */
bool xp_toml_at_datetime(const xp_toml_reader *reader);
XP_NODISCARD xp_status xp_toml_read_datetime(xp_toml_reader *reader, xp_toml_value *value);
/** Any value. @param depth  of the table or array that will hold it */
XP_NODISCARD xp_status xp_toml_read_value(xp_toml_reader *reader, int depth, xp_toml_value *value);
/** key [. key ...] with blanks; calls nothing, stores parts in *keys (arena). */
XP_NODISCARD xp_status xp_toml_read_keys(xp_toml_reader *reader, xp_toml_key **keys, int *n_keys);
/** keys = value, put into `table`. */
XP_NODISCARD xp_status xp_toml_read_assignment(xp_toml_reader *reader, xp_toml_table *table);

XP_NODISCARD xp_status xp_toml_table_create(xp_toml_reader *reader, xp_toml_origin origin,
                                            int depth, int line, xp_toml_table **table);
/** Add an entry whose key is not there yet. `*entry` is valid until the next addition to the table.
 */
XP_NODISCARD xp_status xp_toml_table_add(xp_toml_reader *reader, xp_toml_table *table,
                                         const xp_toml_key *key, xp_toml_entry **entry);
xp_toml_entry *xp_toml_table_lookup(const xp_toml_table *table, const char *key, size_t n_bytes);
/** The table that [keys] names, made or opened. */
XP_NODISCARD xp_status xp_toml_define_table(xp_toml_reader *reader, const xp_toml_key *keys,
                                            int n_keys, xp_toml_table **table);
/** A new last table of the array that [[keys]] names. */
XP_NODISCARD xp_status xp_toml_append_table(xp_toml_reader *reader, const xp_toml_key *keys,
                                            int n_keys, xp_toml_table **table);
/** Where the last of `keys` goes, starting from `table`: the tables of the parts before it are made
 * or opened. */
XP_NODISCARD xp_status xp_toml_open_dotted(xp_toml_reader *reader, xp_toml_table *table,
                                           const xp_toml_key *keys, int n_keys,
                                           xp_toml_table **target);
XP_NODISCARD xp_status xp_toml_array_push(xp_toml_reader *reader, xp_toml_array *array,
                                          const xp_toml_value *value);

#endif
