/* Runs read back from metrics.jsonl, and what a report makes of them. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "report/data.h"
#include "report/page.h"
#include "report/run.h"
#include "report/terminal.h"
#include "unit/checkpoint/scratch.h"

/* ---- lines and columns ------------------------------------------------------------------- */

static bool parse(const char *line, float loads[XP_N_LOADS][XP_REPORT_MAX_LAYERS],
                  xp_report_row *row) {
    return xp_report_parse_line(line, strlen(line), loads, row);
}

static void one_line(void **state) {
    (void)state;
    static float loads[XP_N_LOADS][XP_REPORT_MAX_LAYERS];
    xp_report_row row;
    assert_true(
        parse("{\"step\": 7, \"loss\": 2.5, \"mfu\": null, \"lr\": 1e-4, \"tokens_seen\": 9, "
              "\"moe_load_max_over_mean\": [1.5, 2.5], "
              "\"moe_load_busiest_rank_share\": [0.25, 0.5], \"unknown\": {}}",
              loads, &row));
    assert_true(row.values[XP_COLUMN_STEP] == 7 && row.values[XP_COLUMN_LOSS] == 2.5);
    assert_true(row.values[XP_COLUMN_LR] == 1e-4 && row.values[XP_COLUMN_TOKENS] == 9);
    assert_true(isnan(row.values[XP_COLUMN_MFU]) && isnan(row.values[XP_COLUMN_VALIDATION_LOSS]));
    assert_int_equal(row.n_layers, 2);
    assert_true(row.loads[XP_LOAD_MAX][1] == 2.5F && row.loads[XP_LOAD_SHARE][0] == 0.25F);
    assert_true(parse("{\"step\": 8, \"loss\": NaN, \"grad_norm\": -Infinity}", loads, &row));
    assert_true(isnan(row.values[XP_COLUMN_LOSS]) && isnan(row.values[XP_COLUMN_GRAD_NORM]));
    assert_int_equal(row.n_layers, 0);
    assert_true(parse("{\"step\": 9, \"loss\": \"high\", \"moe_load_max_over_mean\": [1], "
                      "\"moe_load_busiest_rank_share\": []}",
                      loads, &row));
    assert_true(isnan(row.values[XP_COLUMN_LOSS]));
    assert_int_equal(row.n_layers, 0); /* the lists do not belong together */
    const char *const damaged[] = {"",
                                   "{\"step\": 8, \"loss\": 2.",
                                   "{\"step\": 0}",
                                   "{\"step\": \"8\"}",
                                   "{\"loss\": 1}",
                                   "[1]",
                                   "{\"step\": 1} x"};
    for (size_t i = 0; i < sizeof damaged / sizeof damaged[0]; i++)
        assert_false(parse(damaged[i], loads, &row));
}

/* Lines as they are written are scanned, others go through a JSON library: a string makes a line one of those. */
static void same_by_both_readers(void **state) {
    (void)state;
    static float scanned[XP_N_LOADS][XP_REPORT_MAX_LAYERS], read[XP_N_LOADS][XP_REPORT_MAX_LAYERS];
    static const char *const bodies[] = {
        "\"step\": 3, \"loss\": 2.123456789012345, \"lr\": 1e-300, \"tps\": -1, \"mfu\": null",
        " \"loss\":1E+2 ,\"step\" : 12345678901234 , \"unknown\": [1, null], \"lr\": 0.1 ",
        "\"step\": 4, \"moe_load_max_over_mean\": [1, null, 2.5e0], "
        "\"moe_load_busiest_rank_share\": [0.1, 0.2, 0.3]",
        "\"step\": 4, \"moe_load_max_over_mean\": [], \"moe_load_busiest_rank_share\": [1]",
        "\"step\": 4, \"loss\": 1, \"loss\": 2",
        "\"step\": 4.5",
        "\"step\": 0",
        "\"step\": 5, \"loss\": 01",
        "\"step\": 5, \"loss\": 0x10",
        "\"step\": 5,",
        "\"step\" 5",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        char first[512], second[512];
        xp_report_row a = {0}, b = {0};
        snprintf(first, sizeof first, "{%s}", bodies[i]);
        snprintf(second, sizeof second, "{\"text\": \"\", %s}", bodies[i]);
        const bool is_step = parse(first, scanned, &a);
        assert_int_equal(is_step, parse(second, read, &b));
        if (!is_step)
            continue;
        assert_memory_equal(a.values, b.values, sizeof a.values);
        assert_int_equal(a.n_layers, b.n_layers);
        for (int k = 0; k < XP_N_LOADS; k++)
            for (int l = 0; l < a.n_layers; l++)
                assert_true(a.loads[k][l] == b.loads[k][l] ||
                            (isnan(a.loads[k][l]) && isnan(b.loads[k][l])));
    }
}

static void buckets(void **state) {
    (void)state;
    double values[8] = {1, 1, 9, 1, NAN, NAN, 2, NAN};
    assert_int_equal(xp_report_bucket(0, 4000), 1);
    assert_int_equal(xp_report_bucket(4000, 4000), 1);
    assert_int_equal(xp_report_bucket(4001, 4000), 2);
    assert_int_equal(xp_report_bucket(100000, 4000), 32);
    xp_report_range range = xp_report_range_of(values, 0, 4); /* a spike stays visible */
    assert_true(range.mean == 3 && range.low == 1 && range.high == 9);
    range = xp_report_range_of(values, 6, 8);
    assert_true(range.mean == 2 && range.low == 2 && range.high == 2);
    range = xp_report_range_of(values, 4, 6);
    assert_true(isnan(range.mean) && isnan(range.low) && isnan(range.high));
}

static void configuration(void **state) {
    (void)state;
    xp_report_setting *settings = NULL;
    int n = 0;
    assert_int_equal(
        xp_report_parse_config("stray = 1\n[job]\n# description: none\ndump_folder = \"a = b: c\"\n"
                               "# a remark without the sign\n\n[training]\r\nsteps = 60\r\n"
                               "datasets = [ \"x\" ]",
                               &settings, &n),
        XP_OK);
    static const char *const wanted[][2] = {{"job.description", "none"},
                                            {"job.dump_folder", "\"a = b: c\""},
                                            {"training.steps", "60"},
                                            {"training.datasets", "[ \"x\" ]"}};
    assert_int_equal(n, 4);
    for (int i = 0; i < n; i++) {
        assert_string_equal(settings[i].key, wanted[i][0]);
        assert_string_equal(settings[i].value, wanted[i][1]);
        free(settings[i].key);
        free(settings[i].value);
    }
    free(settings);
}

/* ---- runs -------------------------------------------------------------------------------- */

static void add_line(FILE *file, int step, double loss, const char *more) {
    fprintf(file,
            "{\"step\": %d, \"loss\": %.6f, \"grad_norm\": 1.5, \"lr\": 0.001, \"memory_gib\": 2, "
            "\"tps\": %d, \"mfu\": null, \"tokens_seen\": %d, \"time_s\": 0.5, "
            "\"forward_backward_s\": 0.25"
            "%s, \"moe_load_max_over_mean\": [1.5, 2.5], \"moe_load_busiest_rank_share\": [0.5, "
            "0.75]}\n",
            step, loss, 1000 + step, 64 * step, more);
}

static xp_scratch_path write_run(const char *folder, int from, int to) {
    const xp_scratch_path path = xp_scratch_join(folder, "metrics.jsonl");
    FILE *file = fopen(path.text, from == 1 ? "w" : "a");
    assert_non_null(file);
    for (int step = from; step <= to; step++)
        add_line(file, step, step == 40 ? 9 : 4.0 - 0.02 * step,
                 step == 1        ? ", \"resumed_step\": 0"
                 : step == 21     ? ", \"resumed_step\": 20, \"validation_loss\": 3.5"
                 : step % 10 == 0 ? ", \"validation_loss\": 3.75"
                                  : "");
    fclose(file);
    return path;
}

static void append(const char *path, const char *text) {
    FILE *file = fopen(path, "a");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void whole_run(void **state) {
    const char *folder = *state;
    xp_report_run *run = NULL;
    xp_report_summary s;
    const xp_scratch_path path = write_run(folder, 1, 60);
    append(path.text, "half a line\n{\"step\": 61, \"lo\n");
    const xp_scratch_path config = xp_scratch_join(folder, "config.toml");
    xp_scratch_write(config.text, "[training]\nsteps = 60\n", 22);
    assert_int_equal(xp_report_run_open(folder, false, &run), XP_OK);
    assert_int_equal(run->n_steps, 60);
    assert_true(run->n_damaged == 2 && run->first_damaged == 61);
    assert_int_equal(run->n_layers, 2);
    assert_int_equal(run->n_settings, 1);
    assert_true(run->loads[XP_LOAD_SHARE][59 * 2 + 1] == 0.75F);
    assert_true(run->columns[XP_COLUMN_ELAPSED][59] == 30);
    assert_int_equal(xp_report_summarise(run, &s), XP_OK);
    assert_true(s.n_restarts == 1 && s.n_not_finite == 0);
    assert_true(s.validation == 3.5 && s.validation_step == 21);
    assert_true(s.tps == 1031 && isnan(s.mfu) && s.tokens == 3840 && s.seconds == 30);
    xp_report_run_close(run);
}

/* Steps that stand twice are those of a run that went back: the later lines count. */
static void went_back(void **state) {
    const char *folder = *state;
    xp_report_run *run = NULL;
    const xp_scratch_path path = write_run(folder, 1, 30);
    FILE *file = fopen(path.text, "a");
    add_line(file, 21, 1.25, "");
    fclose(file);
    assert_int_equal(xp_report_run_open(path.text, false, &run), XP_OK);
    assert_int_equal(run->n_steps, 21);
    assert_true(run->columns[XP_COLUMN_LOSS][20] == 1.25);
    assert_true(run->columns[XP_COLUMN_ELAPSED][20] == 10.5);
    assert_null(run->folder);
    xp_report_run_close(run);
}

static void following(void **state) {
    const char *folder = *state;
    xp_report_run *run = NULL;
    bool changed = true;
    const xp_scratch_path path = write_run(folder, 1, 5);
    assert_int_equal(xp_report_run_open(folder, true, &run), XP_OK);
    assert_int_equal(xp_report_run_refresh(run, &changed), XP_OK);
    assert_false(changed);
    append(path.text, "{\"step\": 6, \"loss\": 1"); /* being written */
    assert_int_equal(xp_report_run_refresh(run, &changed), XP_OK);
    assert_false(changed);
    append(path.text, ".5}\n");
    assert_int_equal(xp_report_run_refresh(run, &changed), XP_OK);
    assert_true(changed);
    assert_int_equal(run->n_steps, 6);
    assert_int_equal(run->n_damaged, 0);
    /* cut, as a resumed run does */
    write_run(folder, 1, 3);
    assert_int_equal(xp_report_run_refresh(run, &changed), XP_OK);
    assert_true(changed);
    assert_int_equal(run->n_steps, 3);
    /* another file of the same length and more */
    xp_scratch_path other = xp_scratch_join(folder, "other");
    xp_scratch_write(other.text, "{\"step\": 1, \"loss\": 8}\n", 23);
    assert_int_equal(rename(other.text, path.text), 0);
    assert_int_equal(xp_report_run_refresh(run, &changed), XP_OK);
    assert_true(changed);
    assert_int_equal(run->n_steps, 1);
    assert_true(run->columns[XP_COLUMN_LOSS][0] == 8);
    assert_int_equal(unlink(path.text), 0);
    assert_int_equal(xp_report_run_refresh(run, &changed), XP_ENOENT);
    assert_int_equal(run->n_steps, 1);
    xp_report_run_close(run);
}

static void refused(void **state) {
    const char *folder = *state;
    bool changed = false;
    xp_report_run *run = NULL;
    const xp_scratch_path path = xp_scratch_join(folder, "metrics.jsonl");
    const xp_scratch_path pipe_path = xp_scratch_join(folder, "pipe");
    assert_int_equal(xp_report_run_open("/no/such/folder", false, &run), XP_ENOENT);
    assert_true(xp_scratch_error_has("there is no folder or file /no/such/folder"));
    assert_int_equal(xp_report_run_open(folder, false, &run), XP_ENOENT);
    assert_true(xp_scratch_error_has("has no metrics.jsonl"));
    xp_scratch_write(path.text, "", 0);
    assert_int_equal(xp_report_run_open(folder, false, &run), XP_ENOENT);
    assert_true(xp_scratch_error_has("has no step yet"));
    xp_scratch_write(path.text, "a\nb\n", 4);
    assert_int_equal(xp_report_run_open(folder, false, &run), XP_EFORMAT);
    assert_true(xp_scratch_error_has("not one of its 2 lines"));
    assert_int_equal(mkfifo(pipe_path.text, 0600), 0);
    assert_int_equal(xp_report_run_open(pipe_path.text, false, &run), XP_EIO);
    assert_null(run);
    xp_scratch_write(path.text, "", 0); /* one that follows waits for the first step */
    assert_int_equal(xp_report_run_open(folder, true, &run), XP_OK);
    xp_report_run_close(run);
    assert_int_equal(unlink(path.text), 0);
    assert_int_equal(xp_report_run_open(folder, true, &run), XP_OK);
    assert_int_equal(run->n_steps, 0);
    write_run(folder, 1, 2);
    assert_int_equal(xp_report_run_refresh(run, &changed), XP_OK);
    assert_true(changed);
    assert_int_equal(run->n_steps, 2);
    xp_report_run_close(run);
}

/* ---- reports ----------------------------------------------------------------------------- */

static void page_data(void **state) {
    const char *folder = *state;
    const xp_scratch_path odd = xp_scratch_join(folder, "</script><b>&.jsonl");
    const xp_scratch_path path = write_run(folder, 1, 60);
    xp_report_run *run = NULL;
    xp_text data = {0}, page = {0};
    const xp_scratch_path inner = xp_scratch_join(folder, "<");
    assert_int_equal(mkdir(inner.text, 0700), 0);
    assert_int_equal(rename(path.text, odd.text), 0);
    append(odd.text, "{\"step\": 61, \"loss\": NaN}\n");
    assert_int_equal(xp_report_run_open(odd.text, false, &run), XP_OK);
    assert_int_equal(xp_report_data(&run, 1, 3, &data), XP_OK);
    assert_null(strpbrk(data.data, "<>&"));
    json_t *root = json_loads(data.data, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    assert_int_equal(json_integer_value(json_object_get(root, "version")), 3);
    const json_t *made = json_array_get(json_object_get(root, "runs"), 0);
    assert_string_equal(json_string_value(json_object_get(made, "name")), odd.text);
    const json_t *loss = json_object_get(json_object_get(made, "series"), "loss");
    assert_int_equal(json_array_size(loss), 61);
    assert_true(json_is_null(json_array_get(loss, 60)));
    assert_null(json_object_get(json_object_get(made, "series"), "mfu")); /* it never has a value */
    const json_t *resumed = json_object_get(made, "resumed");
    assert_int_equal(json_array_size(resumed), 2);
    assert_int_equal(json_array_size(json_object_get(made, "validation")), 7);
    const json_t *load = json_object_get(json_object_get(made, "load"), "moe_load_max_over_mean");
    assert_int_equal(json_array_size(load), 2);
    assert_int_equal(json_array_size(json_array_get(load, 0)), 61);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(made, "summary"), "not_finite")), 1);
    json_decref(root);

    assert_int_equal(xp_report_page(&data, false, &page), XP_OK);
    assert_non_null(strstr(page.data, "connect-src 'none'"));
    assert_non_null(strstr(page.data, data.data));
    assert_true(strstr(page.data, "var uPlot=") && !strstr(page.data, "@DATA@"));
    xp_text_clear(&page);
    assert_int_equal(xp_report_page(&data, true, &page), XP_OK);
    assert_non_null(strstr(page.data, "connect-src 'self'"));
    assert_non_null(strstr(page.data, "data-live=\"yes\""));
    xp_text_free(&page);
    xp_text_free(&data);
    xp_report_run_close(run);
}

/* Long runs keep a bounded number of points, and their spikes. */
static void long_run(void **state) {
    const char *folder = *state;
    xp_report_run *run = NULL;
    xp_text data = {0};
    write_run(folder, 1, 9000);
    assert_int_equal(xp_report_run_open(folder, false, &run), XP_OK);
    assert_int_equal(xp_report_data(&run, 1, 0, &data), XP_OK);
    json_t *root = json_loads(data.data, 0, NULL);
    const json_t *made = json_array_get(json_object_get(root, "runs"), 0);
    const json_t *series = json_object_get(made, "series");
    assert_int_equal(json_integer_value(json_object_get(made, "bucket")), 4);
    assert_int_equal(json_array_size(json_object_get(series, "loss")), 2250);
    assert_true(json_number_value(json_array_get(json_object_get(series, "loss.high"), 9)) == 9);
    const json_t *steps = json_object_get(made, "step");
    assert_int_equal(json_integer_value(json_array_get(steps, 9)), 40);
    assert_int_equal(json_integer_value(json_array_get(steps, 2249)), 9000);
    json_decref(root);
    xp_text_free(&data);
    xp_report_run_close(run);
}

static void check_columns(const char *text, int columns) {
    for (const char *at = text; *at; at = strchr(at, '\n') + 1) {
        int n = 0;
        for (const char *c = at; *c != '\n'; c++)
            n += ((unsigned char)*c & 0xc0) != 0x80;
        const bool curve = at[0] == ' ' || (at[0] >= '0' && at[0] <= '9');
        if (curve && n > columns)
            fail_msg("%d columns: %.*s", n, (int)strcspn(at, "\n"), at);
    }
}

static void terminal(void **state) {
    const char *folder = *state;
    xp_report_run *run = NULL;
    xp_text out = {0};
    write_run(folder, 1, 60);
    assert_int_equal(xp_report_run_open(folder, false, &run), XP_OK);
    const xp_report_terminal plain = {.columns = 60};
    assert_int_equal(xp_report_draw(run, &plain, &out), XP_OK);
    assert_non_null(strstr(out.data, "loss: first 3.98, last 2.8, min 2.8 at step 60\n"));
    assert_non_null(strstr(out.data, "resumed from step 20\n"));
    assert_non_null(strstr(out.data, "best validation 3.5 at step 21"));
    assert_null(strstr(out.data, "MFU"));
    assert_null(strchr(out.data, '\033'));
    for (const char *c = out.data; *c; c++)
        assert_true(*c == '\n' || (*c >= ' ' && *c < 0x7f));
    check_columns(out.data, 60);
    xp_text_clear(&out);
    const xp_report_terminal rich = {.columns = 100, .utf8 = true, .color = true};
    assert_int_equal(xp_report_draw(run, &rich, &out), XP_OK);
    assert_non_null(strstr(out.data, "\033["));
    assert_int_equal(xp_utf8_valid_prefix(out.data, out.length), out.length);
    xp_text_clear(&out);
    for (int columns = 1; columns < 700; columns += 41) {
        const xp_report_terminal t = {.columns = columns, .utf8 = true};
        assert_int_equal(xp_report_draw(run, &t, &out), XP_OK);
        check_columns(out.data, columns > 30 ? columns : 30);
        xp_text_clear(&out);
    }
    xp_text_free(&out);
    xp_report_run_close(run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_line),
        cmocka_unit_test(same_by_both_readers),
        cmocka_unit_test(buckets),
        cmocka_unit_test(configuration),
        cmocka_unit_test_setup_teardown(whole_run, xp_scratch_setup, xp_scratch_teardown),
        cmocka_unit_test_setup_teardown(went_back, xp_scratch_setup, xp_scratch_teardown),
        cmocka_unit_test_setup_teardown(following, xp_scratch_setup, xp_scratch_teardown),
        cmocka_unit_test_setup_teardown(refused, xp_scratch_setup, xp_scratch_teardown),
        cmocka_unit_test_setup_teardown(page_data, xp_scratch_setup, xp_scratch_teardown),
        cmocka_unit_test_setup_teardown(long_run, xp_scratch_setup, xp_scratch_teardown),
        cmocka_unit_test_setup_teardown(terminal, xp_scratch_setup, xp_scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
