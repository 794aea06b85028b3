/** TOML texts that are valid, and the tagged JSON they must give. Expected values come from an
 * independent reader. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "config/toml.h"

typedef struct valid_case {
    const char *toml, *json;
} valid_case;

static const valid_case cases[] = {
    {"", "{}"},
    {"# nothing\n", "{}"},
    {"a = 1", "{\"a\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"a = 1 # comment", "{\"a\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"\t a \t=\t 1 \t\n", "{\"a\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"a = 1\r\nb = 2\r\n",
     "{\"a\":{\"type\":\"integer\",\"value\":\"1\"},\"b\":{\"type\":\"integer\",\"value\":\"2\"}}"},
    {"\357\273\277a = 1", "{\"a\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"a-b_1 = 1", "{\"a-b_1\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"1234 = 1", "{\"1234\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"-_- = 1", "{\"-_-\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"'a b' = 1", "{\"a b\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"\"a b\" = 1", "{\"a b\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"\"\\u00e9\" = 1", "{\"\303\251\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"\"\" = 1", "{\"\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"a . b = 1", "{\"a\":{\"b\":{\"type\":\"integer\",\"value\":\"1\"}}}"},
    {"a.\"b.c\".d = 1", "{\"a\":{\"b.c\":{\"d\":{\"type\":\"integer\",\"value\":\"1\"}}}}"},
    {"3.14 = 1", "{\"3\":{\"14\":{\"type\":\"integer\",\"value\":\"1\"}}}"},
    {"a.b = 1\na.c = 2", "{\"a\":{\"b\":{\"type\":\"integer\",\"value\":\"1\"},\"c\":{\"type\":"
                         "\"integer\",\"value\":\"2\"}}}"},
    {"true = 1", "{\"true\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"inf = 1", "{\"inf\":{\"type\":\"integer\",\"value\":\"1\"}}"},
    {"a = 0", "{\"a\":{\"type\":\"integer\",\"value\":\"0\"}}"},
    {"a = +99", "{\"a\":{\"type\":\"integer\",\"value\":\"99\"}}"},
    {"a = -17", "{\"a\":{\"type\":\"integer\",\"value\":\"-17\"}}"},
    {"a = -0", "{\"a\":{\"type\":\"integer\",\"value\":\"0\"}}"},
    {"a = 1_000", "{\"a\":{\"type\":\"integer\",\"value\":\"1000\"}}"},
    {"a = 5_349_221", "{\"a\":{\"type\":\"integer\",\"value\":\"5349221\"}}"},
    {"a = 0xDEAD_beef", "{\"a\":{\"type\":\"integer\",\"value\":\"3735928559\"}}"},
    {"a = 0o755", "{\"a\":{\"type\":\"integer\",\"value\":\"493\"}}"},
    {"a = 0b1101_0110", "{\"a\":{\"type\":\"integer\",\"value\":\"214\"}}"},
    {"a = 9223372036854775807", "{\"a\":{\"type\":\"integer\",\"value\":\"9223372036854775807\"}}"},
    {"a = -9223372036854775808",
     "{\"a\":{\"type\":\"integer\",\"value\":\"-9223372036854775808\"}}"},
    {"a = 0x7fffffffffffffff", "{\"a\":{\"type\":\"integer\",\"value\":\"9223372036854775807\"}}"},
    {"a = 0x00ff", "{\"a\":{\"type\":\"integer\",\"value\":\"255\"}}"},
    {"a = 1.0", "{\"a\":{\"type\":\"float\",\"value\":\"1\"}}"},
    {"a = -0.01", "{\"a\":{\"type\":\"float\",\"value\":\"-0.01\"}}"},
    {"a = 5e+22", "{\"a\":{\"type\":\"float\",\"value\":\"5e+22\"}}"},
    {"a = 1e06", "{\"a\":{\"type\":\"float\",\"value\":\"1000000\"}}"},
    {"a = -2E-2", "{\"a\":{\"type\":\"float\",\"value\":\"-0.02\"}}"},
    {"a = 6.626e-34", "{\"a\":{\"type\":\"float\",\"value\":\"6.626e-34\"}}"},
    {"a = 224_617.445_991_228", "{\"a\":{\"type\":\"float\",\"value\":\"224617.445991228\"}}"},
    {"a = inf", "{\"a\":{\"type\":\"float\",\"value\":\"inf\"}}"},
    {"a = -inf", "{\"a\":{\"type\":\"float\",\"value\":\"-inf\"}}"},
    {"a = +nan", "{\"a\":{\"type\":\"float\",\"value\":\"nan\"}}"},
    {"a = 0.0", "{\"a\":{\"type\":\"float\",\"value\":\"0\"}}"},
    {"a = 0e0", "{\"a\":{\"type\":\"float\",\"value\":\"0\"}}"},
    {"a = 1e-400", "{\"a\":{\"type\":\"float\",\"value\":\"0\"}}"},
    {"a = true", "{\"a\":{\"type\":\"bool\",\"value\":\"true\"}}"},
    {"a = false", "{\"a\":{\"type\":\"bool\",\"value\":\"false\"}}"},
    {"a = \"\"", "{\"a\":{\"type\":\"string\",\"value\":\"\"}}"},
    {"a = \"x\"", "{\"a\":{\"type\":\"string\",\"value\":\"x\"}}"},
    {"a = 'C:\\n'", "{\"a\":{\"type\":\"string\",\"value\":\"C:\\\\n\"}}"},
    {"a = \"\\b\\t\\n\\f\\r\\\"\\\\\"",
     "{\"a\":{\"type\":\"string\",\"value\":\"\\u0008\\t\\n\\u000c\\u000d\\\"\\\\\"}}"},
    {"a = \"\\u03B1\\U0001F600\"",
     "{\"a\":{\"type\":\"string\",\"value\":\"\316\261\360\237\230\200\"}}"},
    {"a = \"\"\"\nRoses\nViolets\"\"\"",
     "{\"a\":{\"type\":\"string\",\"value\":\"Roses\\nViolets\"}}"},
    {"a = \"\"\"a \\\n   \n   b\"\"\"", "{\"a\":{\"type\":\"string\",\"value\":\"a b\"}}"},
    {"a = \"\"\"a \"quoted\" \"\"b\"\"\"",
     "{\"a\":{\"type\":\"string\",\"value\":\"a \\\"quoted\\\" \\\"\\\"b\"}}"},
    {"a = \"\"\"x\"\"\"\"\"", "{\"a\":{\"type\":\"string\",\"value\":\"x\\\"\\\"\"}}"},
    {"a = '''\nraw \\ ''x'''", "{\"a\":{\"type\":\"string\",\"value\":\"raw \\\\ ''x\"}}"},
    {"a = '''x'''''", "{\"a\":{\"type\":\"string\",\"value\":\"x''\"}}"},
    {"a = \"\"\"\\\n  \"\"\"", "{\"a\":{\"type\":\"string\",\"value\":\"\"}}"},
    {"a = \"\"\"x\r\ny\"\"\"", "{\"a\":{\"type\":\"string\",\"value\":\"x\\u000d\\ny\"}}"},
    {"a = \"tab\there\"", "{\"a\":{\"type\":\"string\",\"value\":\"tab\\there\"}}"},
    {"a = '\346\227\245\346\234\254\350\252\236 \360\237\216\211'",
     "{\"a\":{\"type\":\"string\",\"value\":\"\346\227\245\346\234\254\350\252\236 "
     "\360\237\216\211\"}}"},
    {"a = \"\"\"\"\"\"", "{\"a\":{\"type\":\"string\",\"value\":\"\"}}"},
    {"a = ''''''", "{\"a\":{\"type\":\"string\",\"value\":\"\"}}"},
    {"a = \"# no comment\"", "{\"a\":{\"type\":\"string\",\"value\":\"# no comment\"}}"},
    {"a = []", "{\"a\":[]}"},
    {"a = [1, 2, 3]", "{\"a\":[{\"type\":\"integer\",\"value\":\"1\"},{\"type\":\"integer\","
                      "\"value\":\"2\"},{\"type\":\"integer\",\"value\":\"3\"}]}"},
    {"a = [1, 2, 3,]", "{\"a\":[{\"type\":\"integer\",\"value\":\"1\"},{\"type\":\"integer\","
                       "\"value\":\"2\"},{\"type\":\"integer\",\"value\":\"3\"}]}"},
    {"a = [\n 1, # one\n\n 2\n # end\n]",
     "{\"a\":[{\"type\":\"integer\",\"value\":\"1\"},{\"type\":\"integer\",\"value\":\"2\"}]}"},
    {"a = [[1, 2], ['x'], []]",
     "{\"a\":[[{\"type\":\"integer\",\"value\":\"1\"},{\"type\":\"integer\",\"value\":\"2\"}],[{"
     "\"type\":\"string\",\"value\":\"x\"}],[]]}"},
    {"a = [1, 'x', 2.5, true, {b = 1}]",
     "{\"a\":[{\"type\":\"integer\",\"value\":\"1\"},{\"type\":\"string\",\"value\":\"x\"},{"
     "\"type\":\"float\",\"value\":\"2.5\"},{\"type\":\"bool\",\"value\":\"true\"},{\"b\":{"
     "\"type\":\"integer\",\"value\":\"1\"}}]}"},
    {"a = [ ]", "{\"a\":[]}"},
    {"a = [{x = 1}, {}]", "{\"a\":[{\"x\":{\"type\":\"integer\",\"value\":\"1\"}},{}]}"},
    {"a = {}", "{\"a\":{}}"},
    {"a = { }", "{\"a\":{}}"},
    {"a = {b = 1, c = 'x'}", "{\"a\":{\"b\":{\"type\":\"integer\",\"value\":\"1\"},\"c\":{\"type\":"
                             "\"string\",\"value\":\"x\"}}}"},
    {"a = {b.c = 1, b.d = 2}", "{\"a\":{\"b\":{\"c\":{\"type\":\"integer\",\"value\":\"1\"},\"d\":{"
                               "\"type\":\"integer\",\"value\":\"2\"}}}}"},
    {"a = {b = {c = {d = 1}}}",
     "{\"a\":{\"b\":{\"c\":{\"d\":{\"type\":\"integer\",\"value\":\"1\"}}}}}"},
    {"a = {b = [\n1,\n2\n]}", "{\"a\":{\"b\":[{\"type\":\"integer\",\"value\":\"1\"},{\"type\":"
                              "\"integer\",\"value\":\"2\"}]}}"},
    {"a = {'x y' = 1}", "{\"a\":{\"x y\":{\"type\":\"integer\",\"value\":\"1\"}}}"},
    {"[a]", "{\"a\":{}}"},
    {"[a]\nb = 1", "{\"a\":{\"b\":{\"type\":\"integer\",\"value\":\"1\"}}}"},
    {"[a.b.c]\nd = 1", "{\"a\":{\"b\":{\"c\":{\"d\":{\"type\":\"integer\",\"value\":\"1\"}}}}}"},
    {"[a.b]\n[a]\nc = 1", "{\"a\":{\"b\":{},\"c\":{\"type\":\"integer\",\"value\":\"1\"}}}"},
    {"[ a . 'b' ]", "{\"a\":{\"b\":{}}}"},
    {"[a]\n[b]\n[a.c]", "{\"a\":{\"c\":{}},\"b\":{}}"},
    {"[a]\nb.c = 1\n[a.b.d]\ne = 1", "{\"a\":{\"b\":{\"c\":{\"type\":\"integer\",\"value\":\"1\"},"
                                     "\"d\":{\"e\":{\"type\":\"integer\",\"value\":\"1\"}}}}}"},
    {"[[a]]", "{\"a\":[{}]}"},
    {"[[a]]\nb = 1\n[[a]]\nb = 2", "{\"a\":[{\"b\":{\"type\":\"integer\",\"value\":\"1\"}},{\"b\":{"
                                   "\"type\":\"integer\",\"value\":\"2\"}}]}"},
    {"[[a]]\n[a.b]\nc = 1\n[[a.d]]\n[[a.d]]\n[[a]]\n[a.b]",
     "{\"a\":[{\"b\":{\"c\":{\"type\":\"integer\",\"value\":\"1\"}},\"d\":[{},{}]},{\"b\":{}}]}"},
    {"[a.b]\nx.y = 1\nx.z = 2", "{\"a\":{\"b\":{\"x\":{\"y\":{\"type\":\"integer\",\"value\":\"1\"}"
                                ",\"z\":{\"type\":\"integer\",\"value\":\"2\"}}}}}"},
    {"[[a.b]]\nc = 1\n[a]\nd = 1", "{\"a\":{\"b\":[{\"c\":{\"type\":\"integer\",\"value\":\"1\"}}],"
                                   "\"d\":{\"type\":\"integer\",\"value\":\"1\"}}}"},
    {"[a] # comment\nb = 1", "{\"a\":{\"b\":{\"type\":\"integer\",\"value\":\"1\"}}}"},
    {"[''.b]", "{\"\":{\"b\":{}}}"},
    {"[a.b]\n[a.c]\n[d]", "{\"a\":{\"b\":{},\"c\":{}},\"d\":{}}"},
    {"[[ a . b ]]\nc = 1", "{\"a\":{\"b\":[{\"c\":{\"type\":\"integer\",\"value\":\"1\"}}]}}"},
    {"a.b.c = 1\n[x]\na.b = 2", "{\"a\":{\"b\":{\"c\":{\"type\":\"integer\",\"value\":\"1\"}}},"
                                "\"x\":{\"a\":{\"b\":{\"type\":\"integer\",\"value\":\"2\"}}}}"},
    {"[a]\n[a.b]\n[[a.c]]\n[[a.c]]", "{\"a\":{\"b\":{},\"c\":[{},{}]}}"},
    {"a = 1979-05-27T07:32:00Z",
     "{\"a\":{\"type\":\"datetime\",\"value\":\"1979-05-27T07:32:00Z\"}}"},
    {"a = 1979-05-27t00:32:00.999999-07:00",
     "{\"a\":{\"type\":\"datetime\",\"value\":\"1979-05-27T00:32:00.999999-07:00\"}}"},
    {"a = 1979-05-27 07:32:00z",
     "{\"a\":{\"type\":\"datetime\",\"value\":\"1979-05-27T07:32:00Z\"}}"},
    {"a = 1979-05-27T07:32:00",
     "{\"a\":{\"type\":\"datetime-local\",\"value\":\"1979-05-27T07:32:00\"}}"},
    {"a = 2000-02-29", "{\"a\":{\"type\":\"date-local\",\"value\":\"2000-02-29\"}}"},
    {"a = 0001-01-01", "{\"a\":{\"type\":\"date-local\",\"value\":\"0001-01-01\"}}"},
    {"a = 07:32:00", "{\"a\":{\"type\":\"time-local\",\"value\":\"07:32:00\"}}"},
    {"a = 00:32:00.999", "{\"a\":{\"type\":\"time-local\",\"value\":\"00:32:00.999\"}}"},
    {"a = 1990-12-31T23:59:60Z",
     "{\"a\":{\"type\":\"datetime\",\"value\":\"1990-12-31T23:59:60Z\"}}"},
    {"a = [1979-05-27 # day\n]", "{\"a\":[{\"type\":\"date-local\",\"value\":\"1979-05-27\"}]}"},
};

static void every_case_gives_its_json(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        xp_toml *toml = NULL;
        if (xp_toml_parse("case", cases[i].toml, strlen(cases[i].toml), &toml) != XP_OK)
            fail_msg("refused: %s\n%s", cases[i].toml, xp_last_error());
        xp_text json = {0};
        xp_toml_add_json(toml, &json);
        assert_false(json.failed);
        json.data[json.length - 1] = '\0'; /* the newline */
        if (strcmp(json.data, cases[i].json) != 0)
            fail_msg("%s\n gave %s\n want %s", cases[i].toml, json.data, cases[i].json);
        xp_text_free(&json);
        xp_toml_destroy(toml);
    }
}

/* The entry of a key, NULL when there is none. */
static const xp_toml_entry *find(const xp_toml_table *table, const char *key) {
    for (size_t i = 0; i < xp_toml_table_count(table); i++)
        if (strcmp(xp_toml_table_entry(table, i)->key, key) == 0)
            return xp_toml_table_entry(table, i);
    return NULL;
}

static void strings_may_hold_nul(void **state) {
    (void)state;
    const char text[] = "a = \"x\\u0000y\"";
    xp_toml *toml = NULL;
    assert_int_equal(xp_toml_parse("case", text, strlen(text), &toml), XP_OK);
    const xp_toml_entry *entry = find(xp_toml_root(toml), "a");
    assert_non_null(entry);
    assert_int_equal(entry->value.as.string.n_bytes, 3);
    assert_memory_equal(entry->value.as.string.data, "x\0y", 4);
    xp_toml_destroy(toml);
}

static void the_tree_keeps_order_and_places(void **state) {
    (void)state;
    const char text[] = "z = 1\n[s]\n  é = 'x'\n  'é' = 2\n";
    const char good[] = "z = 1\n[s]\n  b = [\n 1,\n   'x']\n";
    xp_toml *toml = NULL;
    assert_int_equal(xp_toml_parse("case", text, strlen(text), &toml), XP_ECONFIG);
    assert_int_equal(xp_toml_parse("case", good, strlen(good), &toml), XP_OK);
    const xp_toml_table *root = xp_toml_root(toml);
    assert_int_equal(xp_toml_table_count(root), 2);
    assert_string_equal(xp_toml_table_entry(root, 0)->key, "z");
    assert_null(xp_toml_table_entry(root, 2));
    assert_null(find(root, "b"));
    const xp_toml_entry *b = find(xp_toml_table_entry(root, 1)->value.as.table, "b");
    assert_int_equal(b->line, 3);
    assert_int_equal(xp_toml_column(toml, b->offset), 3);
    const xp_toml_value *item = xp_toml_array_item(b->value.as.array, 1);
    assert_int_equal(item->line, 5);
    assert_int_equal(xp_toml_column(toml, item->offset), 4);
    assert_null(xp_toml_array_item(b->value.as.array, 2));
    xp_toml_destroy(toml);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_case_gives_its_json),
        cmocka_unit_test(strings_may_hold_nul),
        cmocka_unit_test(the_tree_keeps_order_and_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
