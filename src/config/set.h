/** Inside src/config: the merged configuration while it is built, and setting one field of it. */
#ifndef XP_CONFIG_SET_H
#define XP_CONFIG_SET_H

#include "config/fields.h"
#include "config/toml.h"
#include "core/arena.h"

typedef enum xp_origin_kind {
    XP_ORIGIN_DEFAULT = 0,
    XP_ORIGIN_FILE,
    XP_ORIGIN_ENVIRONMENT,
    XP_ORIGIN_COMMAND_LINE,
    XP_ORIGIN_PROGRAM, /* xp_config_override() */
} xp_origin_kind;

typedef struct xp_origin {
    xp_origin_kind kind;
    const char *name; /* the file or the variable */
    int line, column; /* in the file */
} xp_origin;

struct xp_config_set {
    xp_arena *arena;
    xp_config config;
    xp_origin *origins; /* one for each field of the table */
    const char **warnings;
    int n_warnings;
    const char *tuned_note; /* xp_config_tuned_note() */
    xp_text foreign;        /* TorchTitan keys met on the way, ", " between them */
    int n_foreign;
};

/** A value on its way into a field. `where` is put in front of errors: "file:line:column" or
 * "--section.key". */
typedef struct xp_assignment {
    const xp_field *field;
    const char *where;
    xp_origin origin;
} xp_assignment;

/** Set a field from words of the command line, the environment or the table's default. */
XP_NODISCARD xp_status xp_set_text(xp_config_set *set, const xp_assignment *assignment,
                                   const char *text);
/** Set a field from a TOML value. */
XP_NODISCARD xp_status xp_set_toml(xp_config_set *set, const xp_assignment *assignment,
                                   const xp_toml_value *value);
/** Fields of type XP_FIELD_SOURCES, for the two above, and their dump. */
XP_NODISCARD xp_status xp_sources_from_text(xp_config_set *set, const xp_assignment *assignment,
                                            const char *text, xp_source_list *list);
XP_NODISCARD xp_status xp_sources_from_toml(xp_config_set *set, const xp_assignment *assignment,
                                            const xp_toml_array *array, xp_source_list *list);
void xp_sources_add(const xp_source_list *list, bool json, xp_text *text);
/** All fields to their defaults. */
XP_NODISCARD xp_status xp_set_defaults(xp_config_set *set);
/** Paths in the file that name what is read: where nothing is in the folder the command runs in, what lies beside
 * the file is meant. */
XP_NODISCARD xp_status xp_set_resolve_paths(xp_config_set *set);
/** Rules between fields. */
XP_NODISCARD xp_status xp_set_check(xp_config_set *set);
/** Add a warning; `text` belongs to the set's arena, NULL is XP_ENOMEM. */
XP_NODISCARD xp_status xp_set_warn(xp_config_set *set, const char *text);
/** Note a TorchTitan key that has no counterpart. */
void xp_set_note_foreign(xp_config_set *set, const char *section, const char *key);
xp_origin *xp_set_origin(const xp_config_set *set, const xp_field *field);

/** True when the field stands for something else than its own value: not written into TOML, null in
 * JSON. */
bool xp_field_is_unset(const xp_config *config, const xp_field *field);
/** The field's value as TOML or JSON spell it; the caller has asked xp_field_is_unset(). */
void xp_field_add_value(const xp_config *config, const xp_field *field, bool json, xp_text *text);

/** Read the file into the set. */
XP_NODISCARD xp_status xp_set_file(xp_config_set *set, const char *path);
/** Read TOML into the set. @param name  where it is from, for errors */
XP_NODISCARD xp_status xp_set_toml_text(xp_config_set *set, const char *name, const char *text,
                                        size_t n_bytes);

/** One word or pair of words of the command line. */
typedef struct xp_option {
    const xp_field *field; /* NULL: a TorchTitan key without a counterpart */
    const char *name;      /* "--section.key" as typed, for errors */
    const char *value;
} xp_option;
/** Take the words apart without setting anything. *options belongs to the set's arena. */
XP_NODISCARD xp_status xp_set_parse_options(xp_config_set *set, int argc, char **argv,
                                            xp_option **options, int *n_options);

#endif
