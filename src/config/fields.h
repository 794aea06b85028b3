/** The field table: every key, once. Parsing, ranges, --help, dumps and docs/reference/config.md all read it.
 * Inside src/config. */
#ifndef XP_CONFIG_FIELDS_H
#define XP_CONFIG_FIELDS_H

#include "config/config.h"
#include <stddef.h>

typedef enum xp_field_type {
    XP_FIELD_INT = 0, /* int64_t */
    XP_FIELD_FLOAT,   /* double */
    XP_FIELD_BOOL,    /* bool */
    XP_FIELD_SWITCH, /* int64_t: -1 = unset, or "auto" where there are choices; 0, 1; a boolean in TOML */
    XP_FIELD_STRING,  /* const char *; NULL = unset */
    XP_FIELD_PATH,    /* const char *; NULL = unset */
    XP_FIELD_CHOICE,  /* const char *, one of `choices`; NULL = unset */
    XP_FIELD_LIST,    /* xp_string_list; an array of strings in TOML, comma-separated on the command
                         line */
    XP_FIELD_SOURCES, /* xp_source_list; an array of tables in TOML, PATH=WEIGHT,... on the command
                         line */
} xp_field_type;

typedef struct xp_field {
    const char *section, *key;
    xp_field_type type;
    size_t offset;       /* into xp_config */
    const char *initial; /* the default as text; NULL = unset */
    const char *unset;   /* what the default stands for when it is no value of its own ("by the
                            flavor"); else NULL */
    double min, max;     /* XP_FIELD_INT and XP_FIELD_FLOAT, inclusive */
    const char *range;   /* the range in words, where min and max would not say it; else NULL */
    bool zero_refused;   /* -1 or 1 and up */
    bool torchtitan;     /* the name is TorchTitan's */
    bool is_input;       /* a path that is read, not written */
    const char *choices; /* "a|b|c"; of a switch: NULL or "auto|true|false" */
    const char *help;    /* one line */
} xp_field;

/** The i-th field, in the order of sections and keys that people see; NULL past the last. */
const xp_field *xp_field_at(int i);
int xp_field_count(void);
/** NULL when there is no such key. */
const xp_field *xp_field_find(const char *section, const char *key);
/** The i-th section's name, NULL past the last. */
const char *xp_field_section(int i);
/** "int", "float", "bool", "string", "path", "list", or the choices. Static storage. */
const char *xp_field_type_text(const xp_field *field);
/** The default as people see it: the value, or what unset stands for, or "none". Static storage. */
const char *xp_field_default_text(const xp_field *field);

/** The field that an older or second name sets (training.seed sets debug.seed), NULL when the name
 * is no alias. */
const xp_field *xp_field_alias(const char *section, const char *key);
/** True for a TorchTitan key that has no counterpart here; `key` NULL asks about the whole section.
 */
bool xp_field_foreign(const char *section, const char *key);
/**
 * The valid name nearest to a wrong one: the same key in another section, a similar key of the
 * section, a similar name.
 * @param section  NULL when only a key was given
 * @return NULL when nothing is near
 */
const xp_field *xp_field_nearest(const char *section, const char *key);
/** The section name nearest to a wrong one, NULL when nothing is near. */
const char *xp_field_nearest_section(const char *section);
/** How many slips a word of this length may hold and still be taken for another. */
int xp_name_tolerance(const char *word);
/**
 * The configuration file nearest to a path at which there is none: in the path's folder, else in configs/.
 * @return its path; NULL: nothing is near. The caller frees it
 */
char *xp_config_file_nearest(const char *path);

#endif
