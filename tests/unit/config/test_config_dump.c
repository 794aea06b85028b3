/** What the configuration writes: TOML that reads back, JSON with origins, help, and the committed
 * documentation page. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "config/config.h"
#include "config/fields.h"
#include "core/file.h"

/* Every kind of field away from its default, with characters that need escapes. */
static const char rich[] =
    "[job]\n"
    "dump_folder = 'out \"puts\" \\ x'\n"
    "description = \"a\\tb\\u0001 \\u007f é 🎉 'q'\"\n"
    "threads_per_rank = 3\n"
    "[model]\n"
    "tie_embeddings = false\n"
    "rope_theta = 1000000\n"
    "norm_eps = 1e-6\n"
    "[training]\n"
    "global_batch_size = 64\n"
    "shuffle = true\n"
    "dtype = \"bfloat16\"\n"
    "max_norm = 0.1\n"
    "datasets = [{path = \"a \\\"b\\\".jsonl\", weight = 0.1}, {path = \"c\"}]\n"
    "[optimizer]\n"
    "lr = 0.30000000000000004\n"
    "eps = 1.0000000000000002e-30\n"
    "[lr_scheduler]\n"
    "decay_ratio = 0.0\n"
    "[moe]\n"
    "use_deepep = true\n"
    "[checkpoint]\n"
    "exclude_from_loading = [\"optimizer\", \"a b\"]\n"
    "[debug]\n"
    "seed = -1\n";

static xp_config_set *load_text(const char *text, size_t n_bytes, char *path) {
    int fd = mkstemps(path, 5);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, n_bytes), (ssize_t)n_bytes);
    close(fd);
    char option[] = "--job.config_file";
    char *words[] = {option, path};
    xp_config_set *set = NULL;
    if (xp_config_load(2, words, false, &set) != XP_OK)
        fail_msg("%s", xp_last_error());
    unlink(path);
    return set;
}

static bool same_list(const xp_string_list *a, const xp_string_list *b) {
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++)
        same = strcmp(a->items[i], b->items[i]) == 0;
    return same;
}

static bool same_sources(const xp_source_list *a, const xp_source_list *b) {
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++)
        same = strcmp(a->items[i].path, b->items[i].path) == 0 &&
               memcmp(&a->items[i].weight, &b->items[i].weight, sizeof(double)) == 0;
    return same;
}

/** Bit for bit, through the field table. */
static bool same_field(const xp_config *a, const xp_config *b, const xp_field *f) {
    const void *x = (const char *)a + f->offset, *y = (const char *)b + f->offset;
    switch (f->type) {
    case XP_FIELD_INT:
    case XP_FIELD_SWITCH:
        return memcmp(x, y, sizeof(int64_t)) == 0;
    case XP_FIELD_FLOAT:
        return memcmp(x, y, sizeof(double)) == 0;
    case XP_FIELD_BOOL:
        return memcmp(x, y, sizeof(bool)) == 0;
    case XP_FIELD_LIST:
        return same_list(x, y);
    case XP_FIELD_SOURCES:
        return same_sources(x, y);
    case XP_FIELD_STRING:
    case XP_FIELD_PATH:
    case XP_FIELD_CHOICE:
        break;
    }
    const char *s = *(const char *const *)x, *t = *(const char *const *)y;
    return s && t ? strcmp(s, t) == 0 : s == t;
}

static void toml_reads_back_to_the_same_configuration(void **state) {
    (void)state;
    char first_path[] = XP_BINARY_DIR "/dump_XXXXXX.toml";
    char second_path[] = XP_BINARY_DIR "/dump_XXXXXX.toml";
    xp_config_set *first = load_text(rich, strlen(rich), first_path);
    char *text = NULL;
    assert_int_equal(xp_config_dump_toml(first, &text), XP_OK);
    assert_non_null(strstr(text, "\nrope_theta = 1000000.0\n")); /* floats stay floats */
    xp_config_set *second = load_text(text, strlen(text), second_path);
    for (int i = 0; i < xp_field_count(); i++) {
        const xp_field *f = xp_field_at(i);
        if (strcmp(f->key, "config_file") != 0 &&
            !same_field(xp_config_get(first), xp_config_get(second), f))
            fail_msg("%s.%s changed on its way through TOML", f->section, f->key);
    }
    free(text);
    xp_config_destroy(first);
    xp_config_destroy(second);
}

static void json_names_the_origin_of_each_value(void **state) {
    (void)state;
    char path[] = XP_BINARY_DIR "/dump_XXXXXX.toml", want[400];
    setenv("NGPU", "2", 1);
    const char text[] = "[training]\n\nsteps = 3\n";
    int fd = mkstemps(path, 5);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    char option[] = "--job.config_file", lr[] = "--optimizer.lr=1e-3";
    char *words[] = {option, path, lr};
    xp_config_set *set = NULL;
    assert_int_equal(xp_config_load(3, words, true, &set), XP_OK);
    char *json = NULL;
    assert_int_equal(xp_config_dump_json(set, &json), XP_OK);
    snprintf(want, sizeof want, "\"steps\": {\"value\": 3, \"origin\": \"%s:3\"}", path);
    assert_non_null(strstr(json, want));
    assert_non_null(strstr(json, "\"lr\": {\"value\": 0.001, \"origin\": \"command line\"}"));
    assert_non_null(strstr(json, "\"ngpu\": {\"value\": 2, \"origin\": \"environment NGPU\"}"));
    assert_non_null(strstr(json, "\"seq_len\": {\"value\": 2048, \"origin\": \"default\"}"));
    assert_non_null(strstr(json, "\"dtype\": {\"value\": null, \"origin\": \"default\"}"));
    assert_non_null(strstr(json, "\"exclude_from_loading\": {\"value\": [], "));
    free(json);
    xp_config_destroy(set);
    unlink(path);
    unsetenv("NGPU");
}

static void help_names_every_key(void **state) {
    (void)state;
    char *text = NULL;
    assert_int_equal(xp_config_help(NULL, false, &text), XP_OK);
    for (int i = 0; i < xp_field_count(); i++) {
        char name[200];
        snprintf(name, sizeof name, "--%s.%s", xp_field_at(i)->section, xp_field_at(i)->key);
        if (!strstr(text, name))
            fail_msg("%s is missing", name);
    }
    free(text);
    assert_int_equal(xp_config_help("training", false, &text), XP_OK);
    assert_non_null(strstr(text, "--training.steps"));
    assert_null(strstr(text, "--optimizer.lr"));
    free(text);
    assert_int_equal(xp_config_help("trainign", false, &text), XP_ECONFIG);
    assert_non_null(strstr(xp_last_error(), "did you mean training"));
}

static void every_field_belongs_to_a_section_once(void **state) {
    (void)state;
    for (int i = 0; i < xp_field_count(); i++) {
        const xp_field *f = xp_field_at(i);
        assert_ptr_equal(xp_field_find(f->section, f->key), f); /* the first of its name */
        bool known = false;
        for (int s = 0; xp_field_section(s); s++)
            known = known || strcmp(xp_field_section(s), f->section) == 0;
        assert_true(known);
        assert_non_null(f->help);
        assert_false(xp_field_foreign(f->section, f->key));
        for (int j = 0; j < i; j++)
            assert_int_not_equal(xp_field_at(j)->offset, f->offset);
    }
}

/** docs/reference/config.md carries the tables between two marker lines; `expar config --markdown` prints
 * them. */
static void the_documentation_page_is_up_to_date(void **state) {
    (void)state;
    char *page = NULL, *tables = NULL;
    size_t n_bytes = 0;
    assert_int_equal(
        xp_file_read(XP_SOURCE_DIR "/docs/reference/config.md", 1 << 20, &page, &n_bytes), XP_OK);
    assert_int_equal(xp_config_help(NULL, true, &tables), XP_OK);
    static const char begin[] = "<!-- begin: expar config --markdown -->\n";
    char *start = strstr(page, begin);
    assert_non_null(start);
    char *end = strstr(start, "<!-- end -->");
    assert_non_null(end);
    *end = '\0';
    if (strcmp(start + strlen(begin), tables) != 0)
        fail_msg(
            "docs/reference/config.md is out of date: put the output of `expar config --markdown` "
            "between its markers");
    free(page);
    free(tables);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(toml_reads_back_to_the_same_configuration),
        cmocka_unit_test(json_names_the_origin_of_each_value),
        cmocka_unit_test(help_names_every_key),
        cmocka_unit_test(every_field_belongs_to_a_section_once),
        cmocka_unit_test(the_documentation_page_is_up_to_date),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
